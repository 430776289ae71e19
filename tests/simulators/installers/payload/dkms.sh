#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Stand-in for dkms, as far as the driver's packages and an operator use it: add, build, install,
# remove, status, with dkms's places, words and exit codes. To build is to copy the objects that lie
# beside dkms.conf; the headers of the kernel must be there all the same.
set -eu

root=${NVIDIA_SIM_ROOT:-}
tree=/var/lib/dkms
module=/usr/lib/nvidia-sim/module
arch=$(uname -m)

die() {
    code=$1
    shift
    printf 'Error! %s\n' "$*" >&2
    exit "$code"
}

[ $# -gt 0 ] || die 1 'No action was given; add, build, install, remove and status are known.'
action=$1 name='' version='' kernel=$(uname -r) all=no
shift
while [ $# -gt 0 ]; do
    case $1 in
    -m | -v | -k) [ $# -gt 1 ] || die 2 "Option $1 needs a value." ;;
    esac
    case $1 in
    -m) name=$2 && shift ;;
    -v) version=$2 && shift ;;
    -k) kernel=$2 && shift ;;
    --all) all=yes ;;
    */*) name=${1%%/*} version=${1#*/} ;;
    -*) die 1 "Unknown option: $1" ;;
    *) name=$1 ;;
    esac
    shift
done

modules_of() {
    # Where /lib is still a directory of its own, modules live there and not under /usr.
    [ -L "$root/lib" ] && echo "/usr/lib/modules/$1" || echo "/lib/modules/$1"
}

place_of() { echo "$tree/$name/$version/$1/$arch/module"; }

indexes='alias alias.bin builtin.alias.bin builtin.bin dep dep.bin devname softdep symbols symbols.bin weakdep'

# depmod's indexes are what modprobe looks the module up in; on a testbed host there are none
# before, and those that were made for us are taken away with the last module.
index_modules() {
    directory=$(modules_of "$1")
    [ -e "$root$directory/modules.dep" ] || : >"$root$tree/indexed-$1"
    depmod ${root:+-b "$root"} -a "$1" 2>/dev/null || true
}

unindex_modules() {
    [ -e "$root$tree/indexed-$1" ] || return 0
    for index in $indexes; do rm -f "$root$(modules_of "$1")/modules.$index"; done
    rm -f "$root$tree/indexed-$1"
}

need_source() {
    [ -f "$root/usr/src/$name-$version/dkms.conf" ] ||
        die 2 "Could not find module source directory. Directory: /usr/src/$name-$version does not exist."
}

add() {
    need_source
    mkdir -p "$root$tree/$name/$version"
    ln -sfn "/usr/src/$name-$version" "$root$tree/$name/$version/source"
}

build() {
    [ -d "$root$tree/$name/$version" ] || add
    [ -e "$root/lib/modules/$kernel/build/Makefile" ] || die 21 \
        "Your kernel headers for kernel $kernel cannot be found at /lib/modules/$kernel/build or" \
        "/lib/modules/$kernel/source. Please install the linux-headers-$kernel package."
    ! "$root$module" faulty build-fails "$version" || die 10 \
        "Bad return status for module build on kernel: $kernel ($arch)" \
        "Consult $tree/$name/$version/build/make.log for more information."
    mkdir -p "$root$(place_of "$kernel")"
    cp "$root/usr/src/$name-$version/"*.ko "$root$(place_of "$kernel")"
}

install() {
    [ -d "$root$(place_of "$kernel")" ] || build
    mkdir -p "$root$(modules_of "$kernel")/updates/dkms"
    cp "$root$(place_of "$kernel")"/*.ko "$root$(modules_of "$kernel")/updates/dkms"
    index_modules "$kernel"
}

remove_from() {
    target=$root$(modules_of "$1")/updates
    # What another version has put in its place meanwhile, as rpm's upgrades do, is not ours.
    for object in "$root$(place_of "$1")"/*.ko; do
        ! cmp -s "$object" "$target/dkms/${object##*/}" || rm "$target/dkms/${object##*/}"
    done
    rmdir "$target/dkms" "$target" 2>/dev/null || true
    index_modules "$1"
    [ -d "$target" ] || unindex_modules "$1"
    rm -rf "$root$tree/$name/$version/${1:?}"
}

remove() {
    [ -d "$root$tree/$name/$version" ] || die 3 "The module/version combo: $name-$version is not located in the DKMS tree."
    for directory in "$root$tree/$name/$version"/*/; do
        built=$(basename "$directory")
        if [ "$built" != source ] && { [ $all = yes ] || [ "$built" = "$kernel" ]; }; then
            remove_from "$built"
        fi
    done
    [ $all = no ] || rm -rf "$root$tree/$name/${version:?}"
    rmdir "$root$tree/$name" 2>/dev/null || true
}

status() {
    for directory in "$root$tree"/*/*/; do
        [ -d "$directory" ] || continue
        known=$(basename "$(dirname "$directory")")/$(basename "$directory")
        [ -z "$name" ] || [ "${known%%/*}" = "$name" ] || continue
        found=no
        for built in "$directory"*/"$arch"/module; do
            [ -d "$built" ] || continue
            found=yes
            echo "$known, $(basename "$(dirname "$(dirname "$built")")"), $arch: installed"
        done
        [ $found = yes ] || echo "$known: added"
    done
}

case $action in
add | build | install | remove | status) "$action" ;;
*) die 1 "Unknown action specified: \"$action\"" ;;
esac
