
# -- the firmware's part ----------------------------------------------------------------------------------------------
logfile=$root/var/log/ascend_seclog/ascend_install.log
allowed='--full --upgrade'
info=$root/etc/ascend_install.info
home=$root/usr/local/Ascend/firmware

before() {
    [ -f "$root/usr/local/Ascend/driver/version.info" ] || die 'The driver is not installed; install it first.'
    [ "$action" != upgrade ] || [ -f "$home/version.info" ] || die 'There is no firmware to upgrade; use --full.'
    ! faulty davinci-lost || die 'upgrade-tool: device 0 did not answer.'
}

put() {
    mkdir -p "$home"
    rm -f "$home/version.info"
    faulty half-way && die 'killed half-way.'
    unpack "$home"
    note "$info" Firmware_Install_Type full
    note "$info" Firmware_Install_Path_Param "${path:-/usr/local/Ascend}"
    printf 'Version=%s\nfirmware_version=1.0\npackage_version=@DRIVER@\n' "$version" >"$home/version.info"
    say 'Firmware package installed successfully! Reboot needed for installation/upgrade to take effect!'
}

remove() {
    [ -f "$home/version.info" ] || die 'There is no firmware to uninstall.'
    rm -rf "$home"
    forget "$info" '^Firmware_'
}

run "$@"; exit
