
# -- the part of CANN's packages --------------------------------------------------------------------------------------
logfile=$root/var/log/ascend_seclog/ascend_install.log
part='@PART@'
record=$root/etc/Ascend/ascend_cann_install.info
case $part in
toolkit) allowed='--full --install --devel --upgrade' ;;
*) allowed='--install --upgrade' ;;
esac

before() {
    recorded=$(value "$record" Install_Path)
    [ -z "$path" ] || [ -z "$recorded" ] || [ "$path" = "$recorded" ] ||
        die "--install-path=$path differs from the path $recorded of $record, where CANN is installed."
    path=${recorded:-${path:-/usr/local/Ascend}}
    base=$root$path
    toolkit=$base/ascend-toolkit
    if [ "$part" = toolkit ]; then
        [ "$action" != install ] || [ -f "$root/usr/local/Ascend/driver/version.info" ] ||
            die 'The driver is not installed; use --full on a host without it.'
    elif [ "$part" = kernels ]; then
        [ -d "$toolkit/$version" ] || die "Please install toolkit or nnae $version before the kernels."
    else
        [ -f "$toolkit/set_env.sh" ] || die 'Source set_env.sh of the toolkit before; there is none.'
    fi
}

put() {
    case $part in
    toolkit) put_toolkit ;;
    kernels) put_kernels ;;
    nnal) put_nnal ;;
    esac
    note "$record" Install_Path "$path"
    say "$package install success"
}

put_toolkit() {
    inner=$toolkit/$version/$arch-linux
    mkdir -p "$inner" "$toolkit/$version/opp"
    faulty half-way && die 'killed half-way.'
    unpack "$toolkit/$version"
    ln -sfn "./$version" "$toolkit/latest"
    printf 'export ASCEND_TOOLKIT_HOME=%s/ascend-toolkit/latest\n' "$path" >"$toolkit/set_env.sh"
    cat >"$inner/ascend_toolkit_install.info" <<END
package_name=Ascend-cann-toolkit
version=$version
innerversion=V100R001C21SPC001B238
arch=$arch
os=linux
path=$path/ascend-toolkit/$version/$arch-linux
END
}

put_kernels() {
    kernel=$toolkit/$version/opp/built-in/op_impl/ai_core/tbe/kernel
    mkdir -p "$kernel/config"
    faulty half-way && die 'killed half-way.'
    mkdir -p "$kernel/ascend$chip" "$kernel/config/ascend$chip" "$toolkit/$version/opp_kernel"
    printf 'Version=%s\nversion_dir=%s\n' "$version" "$version" >"$toolkit/$version/opp_kernel/version.info"
}

put_nnal() {
    atb=$base/nnal/atb
    mkdir -p "$atb/$version"
    faulty half-way && die 'killed half-way.'
    ln -sfn "./$version" "$atb/latest"
    printf 'export ATB_HOME_PATH=%s/nnal/atb/latest\n' "$path" >"$atb/set_env.sh"
    printf 'Ascend-cann-atb : %s\nPlatform : %s\n' "$version" "$arch" >"$atb/$version/version.info"
}

remove() {
    path=$(value "$record" Install_Path)
    base=$root${path:-/usr/local/Ascend}
    toolkit=$base/ascend-toolkit
    case $part in
    toolkit)
        rm -rf "${toolkit:?}/$version"
        [ "$(readlink "$toolkit/latest")" != "./$version" ] || rm -f "$toolkit/latest" "$toolkit/set_env.sh"
        rmdir "$toolkit" 2>/dev/null
        [ -e "$toolkit" ] || [ -e "$base/nnal" ] || rm -f "$record"
        ;;
    kernels) rm -rf "$toolkit/$version/opp_kernel" "$toolkit/$version/opp/built-in" ;;
    nnal)
        rm -rf "${base:?}/nnal"
        [ -e "$toolkit" ] || rm -f "$record"
        ;;
    esac
}

run "$@"; exit
