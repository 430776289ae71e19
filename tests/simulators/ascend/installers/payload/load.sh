#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# What the driver's modules do at boot: device nodes for every chip, if the chips have their firmware.
set -eu
[ -f /usr/local/Ascend/firmware/version.info ] || {
    echo 'npu-sim-load: the chips have no firmware; install it' >&2
    exit 1
}
sed -n 's/^Version=//p' /usr/local/Ascend/firmware/version.info >/usr/local/Ascend/driver/share/npu-sim/firmware
number=0
for card in /sys/bus/pci/devices/*; do
    [ "$(cat "$card/vendor")" = 0x19e5 ] && [ -f "$card/simgpu" ] || continue
    : >"/dev/davinci$number"
    number=$((number + 1))
done
for name in davinci_manager devmm_svm hisi_hdc; do : >"/dev/$name"; done
