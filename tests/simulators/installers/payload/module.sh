#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# What the kernel does when modprobe asks it for the driver's module (by way of modprobe.d): takes
# the object that DKMS has built for the running kernel, or refuses it. Also the faults on demand.
set -u

root=${NVIDIA_SIM_ROOT:-}
unit=nvidia-sim-module.service
known_faults='build-fails module-busy module-load secure-boot'

faults() {
    if [ -e "$root/etc/nvidia-sim/fail" ]; then tr -s ' \t,' '\n' <"$root/etc/nvidia-sim/fail"; fi
}

# A misspelt fault must not pass for a healthy run. What follows an @ is the one version it is for.
check_faults() {
    for word in $(faults); do
        case " $known_faults " in
        *" ${word%%@*} "*) ;;
        *) refuse "the simulation knows no fault '$word'; it knows: $known_faults" ;;
        esac
    done
}

faulty() { faults | grep -Fqx -e "$1" -e "$1@$2"; }

refuse() {
    echo "modprobe: $*" >&2
    exit 1
}

is_loaded() { [ -e "$root/proc/driver/nvidia/version" ]; }

is_signed() { grep -qs '^mok_signing_key=' "$root"/etc/dkms/framework.conf.d/*.conf; }

check() {
    check_faults
    directory=/lib/modules/$(uname -r)
    object=$directory/updates/dkms/nvidia.ko
    [ -e "$root$object" ] || refuse "FATAL: Module nvidia not found in directory $directory"
    version=$(modinfo -F version "$root$object")
    ! faulty module-load "$version" ||
        refuse "ERROR: could not insert 'nvidia': Required key not available (fault module-load)"
    ! faulty secure-boot "$version" || is_signed ||
        refuse "ERROR: could not insert 'nvidia': Key was rejected by service (fault secure-boot)"
}

load() {
    is_loaded && return
    check
    systemctl start "$unit" || refuse "ERROR: could not insert 'nvidia': No such device"
}

unload() {
    is_loaded || return 0
    ! faulty module-busy '' || refuse 'FATAL: Module nvidia is in use. (fault module-busy)'
    systemctl stop "$unit" || refuse 'FATAL: Module nvidia is in use.'
}

case ${1:-} in
check | load | unload) "$1" ;;
faulty) faulty "$2" "$3" ;;
*) refuse "${1:-nothing} was asked; check, load, unload and faulty are known" ;;
esac
