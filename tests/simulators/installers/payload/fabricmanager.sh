#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Stand-in for nv-fabricmanager: it starts only where there are NVSwitches, and beside a driver of
# its own version, as NVIDIA's does. It manages nothing.
set -u

version='@VERSION@'
root=${NVIDIA_SIM_ROOT:-}

die() {
    echo "fabricmanager: $*" >&2
    exit 1
}

check() {
    grep -qsx -e 0x1ac2 -e 0x1af1 -e 0x22a3 "$root"/sys/bus/pci/devices/*/device ||
        die 'no NVSwitch device was found (NV_WARN_NOTHING_TO_DO)'
    driver=$(sed -n 's/^NVRM version:.* \([0-9][0-9.]*[0-9]\) .*/\1/p' \
        "$root/proc/driver/nvidia/version" 2>/dev/null)
    [ "$driver" = "$version" ] ||
        die "fabric manager version $version doesn't match driver version ${driver:-(none loaded)}"
}

case ${1:-} in
--version | -v) echo "Fabric Manager version is : $version (SIMULATION)" ;;
--check) check ;;
'') check && exec sleep infinity ;;
*) die "unknown option $1" ;;
esac
