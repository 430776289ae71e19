
# -- the driver's part ------------------------------------------------------------------------------------------------
logfile=$root/var/log/ascend_seclog/ascend_install.log
allowed='--full --run --devel --upgrade'
info=$root/etc/ascend_install.info
home=$root/usr/local/Ascend/driver

before() {
    if [ -z "$root" ]; then
        id -u "$username" >/dev/null 2>&1 || die "The user $username does not exist, please add it before installation."
        getent group "$usergroup" >/dev/null || die "The group $usergroup does not exist, please add it before installation."
    fi
    [ "$action" != upgrade ] || [ -f "$home/version.info" ] || die 'There is no driver to upgrade; use --full.'
    found=no
    for device in "$root"/sys/bus/pci/devices/*/device; do
        [ "$(cat "${device%device}vendor" 2>/dev/null)" = 0x19e5 ] || continue
        case $(cat "$device") in
        0xd802) [ "$chip" = 910b ] && found=yes ;;
        0xd500) [ "$chip" = 310p ] && found=yes ;;
        esac
    done
    [ "$found" = yes ] || die "This package is for the chip $chip, and there is none on PCI."
    ! faulty busy || die 'The davinci nodes are occupied by some processes, please stop processes and install or uninstall again.'
}

put() {
    was=$(value "$home/version.info" Version)
    mkdir -p "$home/lib64/driver" "$home/tools" "$root/usr/local/bin" "$root/usr/local/dcmi"
    rm -f "$home/version.info"
    faulty half-way && die 'killed half-way.'
    unpack "$home"
    mv "$home/lib/libdcmi.so" "$home/lib64/driver/libdcmi.so" && rm -rf "$home/lib"
    ln -sf ../Ascend/driver/bin/npu-smi "$root/usr/local/bin/npu-smi"
    ln -sf ../Ascend/driver/lib64/driver/libdcmi.so "$root/usr/local/dcmi/libdcmi.so"
    printf 'version %s\n' "$version" >"$home/share/npu-sim/version"
    printf '#!/bin/sh\n# Simulated: prints the firmware of all chips.\nsed -n "s/^Version=//p" %s/usr/local/Ascend/firmware/version.info\n' "$root" >"$home/tools/upgrade-tool"
    chmod 755 "$home/tools/upgrade-tool"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    mv "$home/npu-sim.service" "$root/etc/systemd/system/npu-sim.service"
    ln -sf ../npu-sim.service "$root/etc/systemd/system/multi-user.target.wants/npu-sim.service"
    note "$info" Driver_Install_Type "$([ "$action" = upgrade ] && value "$info" Driver_Install_Type || echo "$action")"
    note "$info" UserName "$username"
    note "$info" UserGroup "$usergroup"
    note "$info" Driver_Install_Path_Param "${path:-/usr/local/Ascend}"
    note "$info" Driver_Install_Mode normal
    note "$info" Driver_Install_For_All "$for_all"
    cat >"$home/version.info.new" <<END
Version=$version
ascendhal_version=7.35.23
aicpu_version=1.0
tdt_version=1.0
log_version=1.0
prof_version=2.0
dvppkernels_version=1.1
tsfw_version=1.0
compatible_version_fw=[7.0.0,7.7.99]
package_version=$version
END
    mv "$home/version.info.new" "$home/version.info"
    log "driver ${was:-none} -> $version"
    say 'Driver package installed successfully! Reboot needed for installation/upgrade to take effect!'
}

remove() {
    [ -f "$info" ] || die 'There is no driver to uninstall.'
    ! faulty busy || die 'The davinci nodes are occupied by some processes, please stop processes and install or uninstall again.'
    rm -rf "$home" "$root/usr/local/dcmi" "$root/usr/local/bin/npu-smi"
    rm -f "$root/etc/systemd/system/npu-sim.service" "$root/etc/systemd/system/multi-user.target.wants/npu-sim.service"
    forget "$info" '^\(Driver_\|User\)'
}

# The last line runs everything, so that a file cut off in the head does nothing.
run "$@"; exit
