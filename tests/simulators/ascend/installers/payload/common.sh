#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Self-extracting head of a SIMULATED Ascend package: no line of Huawei's is in this file. The compressed archive
# follows the last line; packs.py fills in what stands between at-signs, and puts one package's part behind this one.
set -u

package='@PACKAGE@'
version='@VERSION@'
chip='@CHIP@'
arch='@ARCH@'
digest='@DIGEST@'
first_line='@FIRST_LINE@'
root=${NPU_SIM_ROOT:-}
faults_file=$root/etc/npu-sim/fail

action='' quiet=no for_all=no path='' username=HwHiAiUser usergroup=HwHiAiUser extract='' noexec=no

payload() { tail -n "+$first_line" "$0"; }

log() {
    mkdir -p "$(dirname "$logfile")"
    printf '[%s] [%s] %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$package" "$*" >>"$logfile"
}

die() {
    [ "$(id -u)" = 0 ] && log "[ERROR]$*"
    printf '[ERROR]%s\n' "$*" >&2
    exit 1
}

say() {
    log "[INFO]$*"
    printf '[%s] [INFO]%s\n' "$package" "$*"
}

verify() {
    found=$(payload | sha256sum | cut -d' ' -f1)
    [ "$found" = "$digest" ] || {
        echo "Verifying archive integrity... Error in SHA256 checksums: $found is different from $digest" >&2
        exit 1
    }
    echo 'Verifying archive integrity...  100%   SHA256 checksums are OK. All good.'
}

unpack() {
    mkdir -p "$1" && payload | gzip -dc | tar -x -f - -C "$1" || die "cannot unpack into $1; is its disk full?"
}

# A misspelt fault must not pass for a healthy run. A word may be of one package alone: half-way@driver.
faulty() {
    [ -f "$faults_file" ] || return 1
    read -r word <"$faults_file"
    case ${word%@*} in
    half-way | disk-full | busy | davinci-lost) ;;
    *) die "the simulation knows no fault '$word'; it knows: half-way disk-full busy davinci-lost, with @package" ;;
    esac
    [ "${word%@*}" = "$1" ] || return 1
    [ "$word" = "$1" ] || [ "${word#*@}" = "$package" ]
}

parse() {
    for option in "$@"; do
        case $option in
        --check | --version | --full | --run | --devel | --install | --upgrade | --uninstall)
            [ -z "$action" ] || die "--$action and $option exclude each other."
            action=${option#--} ;;
        --quiet) quiet=yes ;;
        --nox11) ;;
        --install-for-all) for_all=yes ;;
        --install-path=/*) path=${option#*=} ;;
        --install-username=?*) username=${option#*=} ;;
        --install-usergroup=?*) usergroup=${option#*=} ;;
        --force) ;;
        --noexec) noexec=yes ;;
        --extract=?*) extract=${option#*=} ;;
        --help) echo "$package $version (SIMULATION): $allowed --check --version --uninstall --quiet --nox11" && exit 0 ;;
        *) die "Unrecognized parameter: $option. Try --help for usage." ;;
        esac
    done
    if [ -n "$extract" ]; then
        [ "$noexec" = yes ] || die '--extract needs --noexec here.'
        unpack "$extract"
        exit 0
    fi
    case " $allowed --check --version --uninstall " in
    *" --$action "*) ;;
    *) die "${action:-nothing} is no action of $package; it has: $allowed --check --version --uninstall." ;;
    esac
}

need_consent() {
    [ "$quiet" = yes ] || [ -t 0 ] || die "the licence must be accepted, and there is no terminal to ask on; run it with --quiet."
}

# One key of one of the vendor's "key=value" files, replaced or added.
note() {
    mkdir -p "$(dirname "$1")"
    [ -f "$1" ] || : >"$1"
    grep -v "^$2=" "$1" >"$1.new"
    printf '%s=%s\n' "$2" "$3" >>"$1.new"
    mv "$1.new" "$1"
}

value() { sed -n "s/^$2=//p" "$1" 2>/dev/null; }

forget() {
    [ -f "$1" ] || return 0
    grep -v "$2" "$1" >"$1.new"
    mv "$1.new" "$1"
    [ -s "$1" ] || rm -f "$1"
}

run() {
    parse "$@"
    case $action in
    check) verify && exit 0 ;;
    version) echo "$version" && exit 0 ;;
    esac
    [ "$(id -u)" = 0 ] || die 'this package is to be installed by root here.'
    if [ "$action" = uninstall ]; then
        remove
        say "$package package uninstalled successfully!"
        exit 0
    fi
    verify
    need_consent
    before
    faulty disk-full && die "write failed: no space left on device."
    put
}
