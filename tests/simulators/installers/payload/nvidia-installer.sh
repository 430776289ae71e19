#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Stand-in for nvidia-installer, and for nvidia-uninstall when called by that name. It puts the
# simulated driver of tests/simulators in place with the flags, files, log and exit codes a site
# knows from NVIDIA's. README.md beside its source lists every difference.
#
# Every path is recorded in $record *before* it is touched. A run that dies at any point therefore
# leaves enough behind for the next one, or for nvidia-uninstall, to clear it away.
set -u

version='@VERSION@'
# A directory that plays the root of the system: only the simulation's own tests set it.
root=${NVIDIA_SIM_ROOT:-}
record=$root/var/lib/nvidia/log
backups=$root/var/lib/nvidia/backup
log=$root/var/log/nvidia-installer.log
units='nvidia-sim-module.service nvidia-persistenced.service'
known_faults='headers-missing nouveau-loaded module-busy disk-full half-way module-load secure-boot'

action=install silent=no license=no questions=yes disable_nouveau=no
x_check=yes nouveau_check=yes dkms=no module_type='' kernel='' kernel_source=''
signing_secret='' signing_public=''

# --- messages ---------------------------------------------------------------------------------

logged() { printf '%s\n' "$*" >>"$log"; }

say() {
    logged "-> $*"
    [ "$silent" = yes ] || printf '%s\n' "$*"
}

warn() {
    logged "WARNING: $*"
    printf 'WARNING: %s\n' "$*" >&2
}

die() {
    [ -w "$log" ] && logged "ERROR: $*" && logged 'ERROR: Installation has failed.'
    printf '\nERROR: %s\n\nERROR: Installation has failed.  See %s for details.\n' "$*" "$log" >&2
    exit 1
}

usage_error() {
    printf '\nERROR: %s: invalid command line; run nvidia-installer --help for its options.\n' \
        "$*" >&2
    exit 1
}

start_log() {
    mkdir -p "${log%/*}"
    {
        echo "nvidia-installer log file '$log'"
        echo "creation time: $(date)"
        echo "installer version: $version (SIMULATION: flexai.xpu tests/simulators)"
        echo
        echo "nvidia-installer command line:"
        printf '    %s\n' "$0" "$@"
        echo
    } >"$log" || {
        echo "ERROR: cannot write $log; is its disk full?" >&2
        exit 1
    }
}

help() {
    cat <<END
nvidia-installer $version (SIMULATION: it drives no hardware)
  -s, --silent                 no output but warnings and errors, no questions, licence accepted
  -a, --accept-license         accept the licence
  -q, --no-questions           take the default answer of every question
      --disable-nouveau        write modprobe configuration that keeps nouveau out
      --no-nouveau-check       do not stop because nouveau is loaded
      --no-x-check             do not stop because an X server runs
  -m, --kernel-module-type=T   open or proprietary
      --dkms                   put the modules where DKMS puts them
  -k, --kernel-name=K          install for kernel K, not the running one
      --kernel-source-path=D   kernel headers
      --module-signing-secret-key=F, --module-signing-public-key=F
                               the pair that signs the modules; both or neither
      --install-libglvnd, --no-opengl-files, --no-drm, --ui=none, --no-rebuild-initramfs,
      --no-install-compat32-libs, --no-cc-version-check     accepted, without effect here
      --uninstall              remove the installed driver
  -v, --version, -h, --help
END
}

# --- command line -----------------------------------------------------------------------------

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        -s | --silent) silent=yes license=yes questions=no ;;
        -a | --accept-license) license=yes ;;
        -q | --no-questions) questions=no ;;
        --disable-nouveau) disable_nouveau=yes ;;
        --no-nouveau-check) nouveau_check=no ;;
        --no-x-check) x_check=no ;;
        --dkms) dkms=yes ;;
        --kernel-module-type=* | --kernel-name=* | --kernel-source-path=* | --module-signing-*-key=*)
            valued "${1%%=*}" "${1#*=}"
            ;;
        -m | --kernel-module-type | -k | --kernel-name | --kernel-source-path)
            [ $# -gt 1 ] || usage_error "option $1 needs a value"
            valued "$1" "$2"
            shift
            ;;
        --install-libglvnd | --no-opengl-files | --no-drm | --ui=none | --no-rebuild-initramfs) ;;
        --no-install-compat32-libs | --no-cc-version-check) ;;
        --uninstall) action=uninstall ;;
        -v | --version) action=show_version ;;
        -h | --help) action=help ;;
        *) usage_error "unrecognized option '$1'" ;;
        esac
        shift
    done
}

valued() {
    case $1 in
    -k | --kernel-name) kernel=$2 ;;
    --kernel-source-path) kernel_source=$2 ;;
    --module-signing-secret-key) signing_secret=$2 ;;
    --module-signing-public-key) signing_public=$2 ;;
    --module-signing-*) usage_error "unrecognized option '$1'" ;;
    *)
        case $2 in
        open | proprietary) module_type=$2 ;;
        *) usage_error "option $1 is '$2', not open or proprietary" ;;
        esac
        ;;
    esac
}

show_version() {
    echo "nvidia-installer:  version $version  (SIMULATION: flexai.xpu tests/simulators)"
}

# --- questions --------------------------------------------------------------------------------

# The default answer is yes. Without a terminal a question can't be answered: stop, do not guess.
confirm() {
    [ "$questions" = no ] && return 0
    [ -t 0 ] || die "a question needs an answer, and there is no terminal: $1" \
        "Run with --silent, or with --accept-license --no-questions."
    printf '%s [Y/n] ' "$1"
    read -r answer
    case $answer in [nN]*) return 1 ;; esac
}

accept_license() {
    [ "$license" = yes ] && return 0
    [ -t 0 ] || die "the licence must be accepted, and there is no terminal to ask on." \
        "Run with --accept-license or --silent."
    echo "This is a simulation; its files are under GPL-3.0-or-later."
    printf 'Do you accept the licence? [accept/decline] '
    read -r answer
    [ "$answer" = accept ] || die "the licence was not accepted."
}

# --- faults on demand -------------------------------------------------------------------------

faults() {
    printf '%s\n' "${NVIDIA_SIM_FAIL:-}" | tr ',' '\n'
    [ -f "$root/etc/nvidia-sim/fail" ] && cat "$root/etc/nvidia-sim/fail"
    return 0
}

# A misspelt fault must not pass for a healthy run. What follows an @ is the one version it is for.
check_faults() {
    for word in $(faults); do
        case " $known_faults " in
        *" ${word%%@*} "*) ;;
        *) die "the simulation knows no fault '$word'; it knows: $known_faults" ;;
        esac
    done
}

faulty() { faults | tr -s ' \t' '\n' | grep -Fqx -e "$1" -e "$1@$version"; }

# --- preflight --------------------------------------------------------------------------------

nouveau_loaded() {
    faulty nouveau-loaded || grep -q '^nouveau ' "$root/proc/modules" 2>/dev/null
}

# Pids that hold the driver: the persistence daemon, or anything with its libraries mapped.
holders() {
    for process in "$root"/proc/[0-9]*; do
        if grep -Eqs '/(libcuda|libnvidia-ml)\.so|/nvidia-persistenced' "$process/maps"; then
            echo "${process##*/}"
        fi
    done
}

check_not_in_use() {
    pids=''
    [ -e "$root/proc/driver/nvidia/version" ] && pids=$(holders | tr '\n' ' ')
    faulty module-busy && pids=${pids:-'0 (fault module-busy)'}
    [ -z "$pids" ] || die "An NVIDIA kernel module 'nvidia' appears to already be loaded in your" \
        "kernel, and is in use by pid $pids. Stop what uses it (CUDA programs, monitoring," \
        "nvidia-persistenced.service) and try again."
}

check_x() {
    [ "$x_check" = no ] && return
    for lock in "$root"/tmp/.X*-lock; do
        [ -e "$lock" ] && die "You appear to be running an X server ($lock); exit X first," \
            "or run with --no-x-check."
    done
}

check_nouveau() {
    [ "$nouveau_check" = yes ] && nouveau_loaded || return 0
    die "The Nouveau kernel driver is currently in use by your system. Keep it out" \
        "(--disable-nouveau writes the configuration), rebuild the initramfs and reboot."
}

check_headers() {
    if faulty headers-missing; then
        die "Unable to find the kernel source tree for the currently running kernel $kernel." \
            "Install its headers (linux-headers-$kernel or kernel-devel-$kernel)."
    fi
    [ -z "$kernel_source" ] || [ -d "$kernel_source" ] ||
        die "The kernel source path '$kernel_source' is not a directory."
}

check_signing() {
    [ -z "$signing_secret$signing_public" ] && return
    for file in "$signing_secret" "$signing_public"; do
        [ -f "$root$file" ] || die "The module signing key '$file' is not a file." \
            "Give both --module-signing-secret-key and --module-signing-public-key."
    done
}

preflight() {
    [ "$(id -u)" = 0 ] || {
        printf '\nERROR: nvidia-installer must be run as root, not as uid %s.\n' "$(id -u)" >&2
        exit 1
    }
    start_log "$@"
    check_faults
    accept_license
    check_x
    check_nouveau
    check_not_in_use
    check_headers
    check_signing
}

# --- the record of what is ours ---------------------------------------------------------------

note() { printf '%s\n' "$*" >>"$record" || die "cannot write $record; is its disk full?"; }

make_dir() {
    [ -d "$root$1/" ] && return
    make_dir "${1%/*}"
    note "dir $1"
    mkdir "$root$1" || die "cannot create $root$1; is its disk full?"
}

# Something foreign at a path of ours is kept aside and comes back with nvidia-uninstall.
set_aside() {
    [ -e "$root$1" ] || [ -L "$root$1" ] || return 0
    mkdir -p "$backups"
    stored=$(echo "$1" | tr / _)
    note "backup $1 $stored"
    mv "$root$1" "$backups/$stored"
}

place() {
    make_dir "${2%/*}"
    set_aside "$2"
    note "file $2 $(sha256sum <"$1" | cut -d' ' -f1)"
    { cp "$1" "$root$2.new" && chmod "$3" "$root$2.new" && mv "$root$2.new" "$root$2"; } ||
        die "cannot write $root$2; is its disk full?"
}

place_link() {
    make_dir "${1%/*}"
    set_aside "$1"
    note "link $1 $2"
    ln -s "$2" "$root$1" || die "cannot link $root$1; is its disk full?"
}

# --- install ----------------------------------------------------------------------------------

library_dir() {
    if grep -Eqs '^ID(_LIKE)?=.*(debian|ubuntu)' "$root/etc/os-release"; then
        echo /usr/lib/x86_64-linux-gnu
    else
        echo /usr/lib64
    fi
}

module_dir() {
    # Where /lib is still a directory of its own, modules live there and not under /usr.
    [ -L "$root/lib" ] && base=/usr/lib/modules || base=/lib/modules
    [ "$dkms" = yes ] && echo "$base/$kernel/updates/dkms" || echo "$base/$kernel/kernel/drivers/video"
}

# The place of a file by its class in the manifest; nothing for module flavours not chosen.
directory_of() {
    case $1 in
    LIBRARY) library_dir ;;
    UTILITY) echo /usr/bin ;;
    DATA) echo /usr/share/nvidia-sim ;;
    UNIT) echo /usr/lib/systemd/system ;;
    "MODULE-$module_type") module_dir ;;
    MODULE-*) ;;
    *) die "the archive's manifest names an unknown class '$1': the archive is damaged." ;;
    esac
}

install_entry() {
    directory=$(directory_of "$2") || exit 1
    [ -n "$directory" ] || return 0
    case $3 in
    link:*) place_link "$directory/$1" "${3#link:}" ;;
    *) place "$4" "$directory/$1" "$3" ;;
    esac
}

install_files() {
    total=$(wc -l <.manifest)
    done_so_far=0
    while read -r name class mode source; do
        if [ "$done_so_far" -ge $((total / 2)) ]; then
            faulty disk-full && die "cannot write $name: No space left on device."
            faulty half-way && die "stopped half way, at $name (fault half-way)."
        fi
        install_entry "$name" "$class" "$mode" "$source"
        done_so_far=$((done_so_far + 1))
    done <.manifest
}

keep_nouveau_out() {
    [ "$disable_nouveau" = yes ] || return 0
    printf '# generated by nvidia-installer (SIMULATION)\nblacklist nouveau\n%s\n' \
        'options nouveau modeset=0' >nouveau.conf
    for directory in /usr/lib/modprobe.d /etc/modprobe.d; do
        place nouveau.conf "$directory/nvidia-installer-disable-nouveau.conf" 644
    done
}

register_dkms() {
    [ "$dkms" = yes ] || return 0
    printf 'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="%s"\nAUTOINSTALL="yes"\n' "$version" >dkms.conf
    place dkms.conf "/usr/src/nvidia-$version/dkms.conf" 644
}

# depmod's indexes are what `modinfo nvidia` looks the module up in. Those that were not there
# before are ours to remove.
index_modules() {
    command -v depmod >/dev/null || return 0
    indexes=${1%/"$kernel"/*}/$kernel
    for index in alias alias.bin builtin.alias.bin builtin.bin dep dep.bin devname softdep \
        symbols symbols.bin weakdep; do
        [ -e "$root$indexes/modules.$index" ] || note "generated $indexes/modules.$index"
    done
    depmod ${root:+-b "$root"} -a "$kernel" 2>>"$log" ||
        warn "depmod failed for kernel $kernel; modinfo will not find the module."
}

systemd_runs() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

refresh() {
    command -v ldconfig >/dev/null && ldconfig ${root:+-r "$root"} 2>>"$log"
    systemd_runs && systemctl daemon-reload
    return 0
}

has_card() { grep -qsx '0x10de' "$root"/sys/bus/pci/devices/*/vendor; }

why_not_loaded() {
    if ! has_card; then
        echo "No such device: no PCI device of vendor 0x10de in $root/sys/bus/pci/devices."
    elif nouveau_loaded; then
        echo 'No such device: the nouveau driver holds it.'
    elif faulty secure-boot && [ -z "$signing_secret" ]; then
        echo 'Key was rejected by service: the module is not signed (fault secure-boot).'
    elif faulty module-load; then
        echo 'Required key not available (fault module-load).'
    else
        start_units
    fi
}

start_units() {
    make_dir /etc/systemd/system
    for unit in $units; do
        note "unit $unit"
        systemctl ${root:+--root="$root"} enable "$unit" >>"$log" 2>&1 ||
            warn "cannot enable $unit; the driver will not be there after a reboot."
        systemd_runs || continue
        systemctl start "$unit" >>"$log" 2>&1 ||
            echo "$unit did not start; see systemctl status $unit."
    done
}

# As with NVIDIA's, a module that can't be loaded means that nothing stays installed.
load_module() {
    reason=$(why_not_loaded)
    [ -z "$reason" ] && return
    clear_away
    die "Unable to load the kernel module 'nvidia.ko'. $reason"
}

choose_module_type() {
    [ -n "$module_type" ] && return
    module_type=@DEFAULT_MODULE_TYPE@
    confirm "No --kernel-module-type was given. Install the $module_type kernel modules?" ||
        die "no kernel module type was chosen; give --kernel-module-type=open or =proprietary."
    say "Kernel module type: $module_type, the default of $version."
}

replace_existing() {
    [ -f "$record" ] || return 0
    existing=$(sed -n 's/^version //p' "$record")
    confirm "Driver $existing is installed and will be removed first. Continue?" ||
        die "the installed driver $existing was kept."
    say "Removing the installed driver $existing."
    clear_away
}

install() {
    kernel=${kernel:-$(uname -r)}
    printf 'nvidia-installer %s is a SIMULATION: it drives no hardware.\n' "$version"
    preflight "$@"
    choose_module_type
    replace_existing
    mkdir -p "${record%/*}"
    note "version $version"
    install_files
    place_link /usr/bin/nvidia-uninstall nvidia-installer
    keep_nouveau_out
    register_dkms
    index_modules "$(module_dir)"
    refresh
    load_module
    note 'complete'
    say "Installation of the (simulated) NVIDIA driver $version is now complete."
}

# --- uninstall --------------------------------------------------------------------------------

remove_unit() {
    systemd_runs && systemctl stop "$1" >>"$log" 2>&1
    systemctl ${root:+--root="$root"} disable "$1" >>"$log" 2>&1
}

# A file that somebody changed is not the one we installed, and stays.
remove_file() {
    rm -f "$root$1.new"
    [ -e "$root$1" ] || return 0
    if [ "$(sha256sum <"$root$1" | cut -d' ' -f1)" = "$2" ]; then
        rm -f "$root$1"
    else
        warn "$1 was changed since it was installed; it is left in place."
    fi
}

remove_link() {
    [ "$(readlink "$root$1")" = "$2" ] && rm -f "$root$1"
    return 0
}

restore() {
    [ -e "$backups/$2" ] || [ -L "$backups/$2" ] || return
    if [ -e "$root$1" ] || [ -L "$root$1" ]; then
        warn "$1 is in use by another file; its backup stays in $backups/$2."
    else
        mv "$backups/$2" "$root$1"
    fi
}

# Newest entry first. The record goes last: a run cut off here is simply taken up again.
clear_away() {
    tac "$record" >"$record.reversed"
    while read -r kind path detail; do
        case $kind in
        unit) remove_unit "$path" ;;
        file) remove_file "$path" "$detail" ;;
        link) remove_link "$path" "$detail" ;;
        generated) rm -f "$root$path" ;;
        backup) restore "$path" "$detail" ;;
        dir) rmdir "$root$path" 2>/dev/null ;;
        esac
    done <"$record.reversed"
    refresh
    rm -f "$record.reversed" "$record"
    rmdir "$backups" "${record%/*}" 2>/dev/null
    return 0
}

uninstall() {
    [ "$(id -u)" = 0 ] || {
        printf '\nERROR: nvidia-uninstall must be run as root, not as uid %s.\n' "$(id -u)" >&2
        exit 1
    }
    log=$root/var/log/nvidia-uninstall.log
    start_log "$@"
    if [ ! -f "$record" ]; then
        say 'There is no NVIDIA driver currently installed.'
        return
    fi
    existing=$(sed -n 's/^version //p' "$record")
    confirm "Remove the (simulated) NVIDIA driver $existing?" || die 'nothing was removed.'
    clear_away
    say "Uninstallation of the (simulated) NVIDIA driver $existing is complete."
}

main() {
    case ${0##*/} in nvidia-uninstall) action=uninstall ;; esac
    parse "$@"
    case $action in
    install) install "$@" ;;
    uninstall) uninstall "$@" ;;
    show_version) show_version ;;
    help) help ;;
    esac
}

main "$@"
