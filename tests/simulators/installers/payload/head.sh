#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Self-extracting head of a SIMULATED NVIDIA driver installer: no line of NVIDIA's is in this file.
# The compressed archive follows the last line; runfile.py fills in what stands between at-signs.
set -u

version='@VERSION@'
digest='@DIGEST@'
first_line='@FIRST_LINE@'
bundle="NVIDIA-Linux-x86_64-$version"
title="NVIDIA Accelerated Graphics Driver for Linux-x86_64 $version (SIMULATION)"

payload() { tail -n "+$first_line" "$0"; }

fail() {
    echo "ERROR: $*" >&2
    exit 1
}

verify() {
    printf 'Verifying archive integrity... '
    found=$(payload | sha256sum | cut -d' ' -f1)
    if [ "$found" != "$digest" ]; then
        echo 'failed'
        fail "the archive in $0 has sha256 $found, not $digest: the file is damaged; fetch it again."
    fi
    echo 'OK'
}

unpack() {
    printf 'Uncompressing %s' "$title"
    mkdir -p "$1" || fail "cannot create $1; give another place with --target or --tmpdir."
    payload | gzip -dc | tar -x -f - -C "$1" || fail "cannot unpack into $1; is its disk full?"
    echo '... done.'
}

info() {
    cat <<END
Identification    : $title
Target directory  : $bundle
Compression       : gzip
Script run after  : ./nvidia-installer
This is the simulated driver of flexai.xpu's tests. It drives no hardware.
END
}

extract_only() {
    target=${target:-$bundle}
    [ -e "$target" ] && fail "$target exists already; remove it or give another place with --target."
    verify
    unpack "$target"
    echo "$target"
}

install() {
    verify
    scratch=$(mktemp -d "${tmpdir:-${TMPDIR:-/tmp}}/selfgz.XXXXXX") ||
        fail "cannot create a directory in ${tmpdir:-${TMPDIR:-/tmp}}; give another place with --tmpdir."
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 1' HUP INT TERM
    unpack "$scratch"
    (cd "$scratch" && ./nvidia-installer "$@")
}

main() {
    action=install
    target='' tmpdir=''
    count=$#
    while [ "$count" -gt 0 ]; do
        option=$1
        shift
        count=$((count - 1))
        case $option in
        --check) action=verify ;;
        --info) action=info ;;
        -x | --extract-only) action=extract_only ;;
        --target=*) target=${option#*=} ;;
        --tmpdir=*) tmpdir=${option#*=} ;;
        --target | --tmpdir)
            [ "$count" -gt 0 ] || fail "$option needs a directory."
            [ "$option" = --target ] && target=$1 || tmpdir=$1
            shift
            count=$((count - 1))
            ;;
        # What the head does not know goes on to nvidia-installer, in its order.
        *) set -- "$@" "$option" ;;
        esac
    done
    case $action in
    verify) verify ;;
    info) info ;;
    extract_only) extract_only ;;
    install) install "$@" ;;
    esac
}

# The last line runs everything, so that a file cut off in the head does nothing.
main "$@"; exit
