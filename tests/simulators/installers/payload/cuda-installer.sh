#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# A SIMULATED CUDA toolkit installer: no line of NVIDIA's is in this file. It takes the flags of the real .run file
# and puts an nvcc in place that says its version and compiles nothing. cudarun.py fills in what stands between
# at-signs; README.md lists every difference.
set -u

version='@VERSION@'
release='@RELEASE@'
root=${NVIDIA_SIM_ROOT:-}
log=$root/var/log/cuda-installer.log
faults_file=$root/etc/nvidia-sim/fail-cuda

silent=no toolkit=no toolkitpath=/usr/local/cuda-$release

die() {
    [ -w "$log" ] && printf '[ERROR]: %s\n' "$*" >>"$log"
    printf 'ERROR: %s\nInstallation failed. See log at %s for details.\n' "$*" "$log" >&2
    exit 1
}

help() {
    cat <<END
cuda_$version (SIMULATION: it compiles nothing)
  --silent              no questions, licence accepted; with --toolkit
  --toolkit             install the toolkit
  --toolkitpath=DIR     where (default $toolkitpath)
  --override, --no-man-page, --no-opengl-libs, --no-drm, --tmpdir=DIR
                        accepted, without effect here
  --driver              refused: the driver is another file's here
  --help
END
}

parse() {
    for option in "$@"; do
        case $option in
        --silent) silent=yes ;;
        --toolkit) toolkit=yes ;;
        --toolkitpath=/*) toolkitpath=${option#*=} ;;
        --override | --no-man-page | --no-opengl-libs | --no-drm | --tmpdir=*) ;;
        --driver) die "the simulation has no driver in this file; run it with --toolkit alone." ;;
        --help) help && exit 0 ;;
        *) die "unrecognized option '$option'; run it with --help." ;;
        esac
    done
    [ "$silent" = yes ] || [ -t 0 ] ||
        die "the licence must be accepted, and there is no terminal to ask on; run it with --silent."
    [ "$toolkit" = yes ] || die "nothing to install; name --toolkit."
}

# A misspelt fault must not pass for a healthy run.
faulty() {
    [ -f "$faults_file" ] || return 1
    read -r word <"$faults_file"
    case $word in
    half-way | disk-full) [ "$word" = "$1" ] ;;
    *) die "the simulation knows no fault '$word'; it knows: half-way disk-full" ;;
    esac
}

compiler() {
    cat <<'END'
@COMPILER@
END
}

install() {
    home=$root$toolkitpath
    mkdir -p "$home/bin" "$home/lib64" "$root/etc/ld.so.conf.d" || die "cannot create $toolkitpath; is its disk full?"
    { compiler >"$home/bin/nvcc" && chmod 755 "$home/bin/nvcc"; } ||
        die "cannot write $toolkitpath/bin/nvcc; is its disk full?"
    faulty half-way && kill -9 $$
    faulty disk-full && die "cannot write $toolkitpath/lib64: No space left on device."
    echo "$toolkitpath/lib64" >"$root/etc/ld.so.conf.d/cuda-$(echo "$release" | tr . -).conf"
    rm -f "$root/usr/local/cuda" && ln -s "$toolkitpath" "$root/usr/local/cuda"
    [ -n "$root" ] || ldconfig
    printf '{"cuda": {"name": "CUDA SDK", "version": "%s"}}\n' "$version" >"$home/version.json"
}

main() {
    mkdir -p "${log%/*}"
    printf '[INFO]: cuda_%s (SIMULATION)\n[INFO]: %s\n' "$version" "$*" >"$log"
    parse "$@"
    [ "$(id -u)" = 0 ] || die "it must be run as root, not as uid $(id -u)."
    install
    printf '[INFO]: Installed: %s\n' "$toolkitpath" >>"$log"
}

# The last line runs everything, so that a file that was cut off does nothing.
main "$@"; exit
