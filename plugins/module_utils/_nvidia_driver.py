# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The NVIDIA driver: what is there and whose it is, what to do, the installer's command line.

It comes by NVIDIA's ``.run`` file or as packages, never by both on one host: each overwrites files
that the other believes its own.
"""

from __future__ import annotations

import re
import typing as t

from . import _driver_packages as by_packages
from . import _kernel as kernel
from . import _owners as owners
from . import _records as records
from ._decision import (
    ADOPT,
    BLOCKED,
    CHANGE,
    INSTALL,
    OK,
    REFUSE,
    REMOVE,
    Claim,
    Decision,
    version_key,
)
from ._driver_packages import PACKAGES, RUN
from ._host import Host
from ._packages import Packages

COMPONENT = "nvidia_driver"
RECORD = "nvidia_driver"
PCI_VENDOR = "0x10de"
PCI_CLASS_DISPLAY = "0x03"
# NVSwitch shows itself as a bridge of NVIDIA's: DGX-2, A100 and H100/H200 baseboards. The switches
# of Blackwell baseboards are no PCI devices of the host and can't be seen this way.
PCI_CLASS_BRIDGE = "0x0680"
NVSWITCHES = ("0x1ac2", "0x1af1", "0x22a3")
# By PCI device id: the open module needs Turing, Blackwell needs the open module, and branches from
# 590 on drive nothing older than Turing.
FIRST_TURING, FIRST_BLACKWELL = 0x1E00, 0x2900
TURING_NEEDED_SINCE = (590,)
# The library directory of each family of systems; the first that exists on the host is its own.
LIBRARY_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
)
MODPROBE_FILE = "/etc/modprobe.d/flexai-xpu-nouveau.conf"
MODPROBE_TEXT = """\
# Written by flexai.xpu: nouveau and the NVIDIA driver can't share a card.
blacklist nouveau
options nouveau modeset=0
"""
PERSISTENCED_UNIT = "nvidia-persistenced.service"
UNINSTALLER = "/usr/bin/nvidia-uninstall"
INSTALLING, INSTALLED = "installing", "installed"
DEVICE = re.compile(r"^/dev/nvidia(\d+|ctl|-uvm)")
# What a change of the driver stops and starts itself.
OUR_HOLDERS = ("nvidia-persiste", "nv-fabricmanage")

# Document 000's command line, in its order.
BASE_FLAGS = (
    "--silent",
    "--accept-license",
    "--no-questions",
    "--disable-nouveau",
    "--install-libglvnd",
    "--no-x-check",
    "--no-nouveau-check",
)
# From 560 on the installer asks which kernel module to build unless it is told; 515 to 559 know
# the open one under another flag, and older ones have the proprietary one only.
KERNEL_MODULE_TYPE_SINCE = (560,)
KERNEL_OPEN_SINCE = (515,)

_NVRM = re.compile(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_LIBRARY = re.compile(r"libcuda\.so\.(\d+\.\d+(?:\.\d+)?)$")
_NSCQ = re.compile(r"libnvidia-nscq\.so\.(\d+\.\d+\.\d+)$")
# Debian's, Ubuntu's and NVIDIA's names for the driver itself, in deb and rpm.
DRIVER_PACKAGE = re.compile(
    r"(?:nvidia-(?:driver|open|headless|headless-no-dkms|dkms|utils|compute-utils|kernel-dkms|"
    r"kernel-open-dkms|kernel-source)"
    r"|libnvidia-compute|cuda-drivers|kmod-nvidia|akmod-nvidia|nvidia-kmod|libcuda1"
    r"|xorg-x11-drv-nvidia|nvidia-driver-cuda)"
    r"(?:-\d+)?(?:-server)?(?:-open)?(?:-dkms|-latest-dkms|-cuda|-cuda-libs|-libs)?"
)
_FABRIC_PACKAGE = re.compile(r"(?:cuda-drivers-fabricmanager|nvidia-fabric-?manager)(?:-\d+)?")
_NSCQ_PACKAGE = re.compile(r"libnvidia-nscq(?:-\d+)?")


class Wanted(t.NamedTuple):
    version: str
    kernel_module_type: str = ""
    persistenced: bool = True
    allow_downgrade: bool = False
    signing_key: str = ""
    signing_certificate: str = ""
    method: str = RUN
    # Instead of the table's names of the driver's packages; {branch} is filled in.
    packages: t.Sequence[str] = ()
    # What follows the driver where there are NVSwitches; none: the site sees to it.
    fabric_packages: t.Sequence[str] = ()


class Fabric(t.NamedTuple):
    """NVSwitches, and the versions of what must follow the driver on such a machine."""

    switches: int = 0
    manager: str = ""
    nscq: str = ""
    packages: t.Mapping[str, str] = {}


class Holder(t.NamedTuple):
    """A process that has the cards open."""

    pid: int
    name: str
    in_pod: bool

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class Facts(t.NamedTuple):
    cards: tuple[str, ...]
    devices: tuple[int, ...]
    library: str
    loaded: str
    loaded_open: bool
    packages: t.Mapping[str, str]
    manager: str
    uninstaller: bool
    record: t.Mapping[str, t.Any]
    nouveau_loaded: bool
    nouveau_barred: bool
    persistenced_enabled: bool
    fabric: Fabric
    system: str
    kernel: kernel.Facts
    signing: str
    holders: tuple[Holder, ...]
    # The text of our pin, and of our file that tells DKMS what to sign with.
    pin: str
    dkms_signing: str
    dkms_registered: str
    dkms_built: bool

    @property
    def recorded(self) -> str:
        """Version of the driver that we installed, or were about to install."""
        return str(self.record.get("version", ""))

    @property
    def ours(self) -> bool:
        """Whether what stands there was brought by this role, or by a run of it that died."""
        return bool(self.recorded)

    @property
    def method(self) -> str:
        """How the driver that is ours came; empty where none is."""
        return str(self.record.get("method", RUN)) if self.ours else ""

    @property
    def our_packages(self) -> frozenset[str]:
        """Packages that came with the driver, their dependencies too."""
        return frozenset(self.record.get("packages", ()))


# -- observation -----------------------------------------------------------------------------


def _pci(host: Host, vendor: str = PCI_VENDOR) -> list[tuple[str, str, str]]:
    """(address, class, device id) of every PCI device of a vendor."""
    found = []
    for path in host.glob("/sys/bus/pci/devices/*"):
        if (host.read(f"{path}/vendor") or "").strip() == vendor:
            kind, device = (
                (host.read(f"{path}/{name}") or "").strip() for name in ("class", "device")
            )
            found.append((path.rsplit("/", 1)[1], kind, device))
    return found


def cards(host: Host) -> tuple[str, ...]:
    """PCI addresses of NVIDIA's cards."""
    found = (entry for entry in _pci(host) if entry[1].startswith(PCI_CLASS_DISPLAY))
    return tuple(address for address, _kind, _device in found)


def library_version(host: Host) -> str:
    """Version of the driver library that ``libcuda.so.1`` leads to; empty where there is none."""
    for directory in LIBRARY_DIRECTORIES:
        found = _LIBRARY.search(host.resolve(f"{directory}/libcuda.so.1"))
        if found:
            return found.group(1)
    return ""


def loaded_version(host: Host) -> str:
    """Version of the kernel module that is running; empty where none is."""
    found = _NVRM.search(host.read("/proc/driver/nvidia/version") or "")
    return found.group(1) if found else ""


def barred(host: Host) -> bool:
    """Whether our file keeps nouveau from the cards."""
    return host.read(MODPROBE_FILE) == MODPROBE_TEXT


def holders(host: Host) -> tuple[Holder, ...]:
    """Processes with a card open, but for the daemons that a change of the driver stops itself."""
    found: dict[int, Holder] = {}
    for link in host.glob("/proc/[0-9]*/fd/*"):
        pid = int(link.split("/")[2])
        if pid in found or not DEVICE.match(host.link(link)):
            continue
        name = (host.read(f"/proc/{pid}/comm") or "?").strip()
        if not name.startswith(OUR_HOLDERS):
            in_pod = "kubepods" in (host.read(f"/proc/{pid}/cgroup") or "")
            found[pid] = Holder(pid, name, in_pod)
    return tuple(found[pid] for pid in sorted(found))


def _fabric(host: Host, switches: int, packages: Packages) -> Fabric:
    if not switches:
        return Fabric()
    libraries = [
        found.group(1)
        for directory in LIBRARY_DIRECTORIES
        for path in host.glob(f"{directory}/libnvidia-nscq.so.*")
        for found in [_NSCQ.search(path)]
        if found
    ]
    managers, nscq_packages = packages.named(_FABRIC_PACKAGE), packages.named(_NSCQ_PACKAGE)
    nscq = list(nscq_packages.values()) or libraries
    return Fabric(
        switches,
        next(iter(managers.values()), ""),
        nscq[0] if nscq else "",
        {**managers, **nscq_packages},
    )


def observe(host: Host, packages: Packages, wanted: Wanted, system: str = "debian") -> Facts:
    devices = _pci(host)
    cards = [entry for entry in devices if entry[1].startswith(PCI_CLASS_DISPLAY)]
    switches = [
        entry
        for entry in devices
        if entry[1].startswith(PCI_CLASS_BRIDGE) and entry[2] in NVSWITCHES
    ]
    library, loaded = library_version(host), loaded_version(host)
    built_for = kernel.observe(host)
    facts = Facts(
        cards=tuple(address for address, _kind, _device in cards),
        devices=tuple(int(device or "0", 16) for _address, _kind, device in cards),
        library=library,
        loaded=loaded,
        loaded_open="Open Kernel Module" in (host.read("/proc/driver/nvidia/version") or ""),
        packages=packages.named(DRIVER_PACKAGE),
        manager=packages.manager,
        uninstaller=bool(host.program(UNINSTALLER)),
        record=records.read(host, RECORD),
        nouveau_loaded=host.exists("/sys/module/nouveau"),
        nouveau_barred=barred(host),
        persistenced_enabled=bool(host.glob(f"/etc/systemd/system/*.wants/{PERSISTENCED_UNIT}")),
        fabric=_fabric(host, len(switches), packages),
        system=system,
        kernel=built_for,
        signing="",
        holders=(),
        pin=host.read(by_packages.PIN_FILE) or "",
        dkms_signing=host.read(by_packages.SIGNING_FILE) or "",
        dkms_registered=by_packages.registered(host, library) if library else "",
        dkms_built=bool(library) and by_packages.built(host, library, built_for.release),
    )
    if not needs_installer(facts, wanted):
        return facts
    # These two cost a look around that only a change needs.
    signing = (
        kernel.signing_obstacle(host, wanted.signing_key, wanted.signing_certificate)
        if built_for.secure_boot
        else ""
    )
    return facts._replace(signing=signing, holders=holders(host) if loaded else ())


# -- whose it is -----------------------------------------------------------------------------


def _twice(facts: Facts) -> Claim:
    names = ", ".join(sorted(facts.packages))
    return Claim(
        REFUSE,
        f"packages of {facts.manager} and a .run file",
        f"the driver was installed twice, by packages ({names}) and by a .run file, which "
        f"overwrite each other's files; remove these packages, then run `{UNINSTALLER}`, then "
        "run this again",
    )


def _other_method(facts: Facts, wanted: Wanted) -> Claim:
    """Ours, and come the other way: both on one host would overwrite each other's files."""
    names = ", ".join(sorted(facts.packages))
    came = "a .run file" if facts.method == RUN else f"packages ({names})"
    return Claim(
        REFUSE,
        "flexai.xpu",
        f"driver {facts.recorded} came as {came} (nvidia_driver_method: {facts.method}), and "
        f"{wanted.method} is wanted; a host has one or the other: set nvidia_driver_method: "
        f"{facts.method}, or remove the driver first (role nvidia_driver, tasks_from: uninstall)",
    )


def claim(facts: Facts, wanted: Wanted, trace: Claim | None = None) -> Claim | None:
    """Somebody else's driver: used where it is what is wanted, never changed."""
    if trace is not None:
        return trace
    by_file = facts.uninstaller or facts.method == RUN
    if facts.packages and facts.library and by_file:
        return _twice(facts)
    if facts.ours and (facts.library or facts.packages) and facts.method != wanted.method:
        return _other_method(facts, wanted)
    if facts.packages and facts.method != PACKAGES:
        return owners.plan_packages(
            "driver",
            facts.manager,
            facts.packages,
            facts.library,
            wanted.version,
            "nvidia_driver_version",
        )
    if not facts.library or facts.ours:
        return None
    if facts.library == wanted.version:
        reason = f"driver {facts.library} was not installed by flexai.xpu and is used as it is"
        return Claim(ADOPT, "a .run file", reason)
    return Claim(
        REFUSE,
        "a .run file",
        f"driver {facts.library} was not installed by flexai.xpu, {wanted.version} is wanted; set "
        f"nvidia_driver_version: {facts.library} to use it as it is, or remove it with "
        f"`{UNINSTALLER}`",
    )


# -- plan ------------------------------------------------------------------------------------


def module_type(facts: Facts, wanted: Wanted) -> str:
    """The flavour of kernel module to build; where the site leaves it open, what the cards need."""
    if wanted.kernel_module_type:
        return wanted.kernel_module_type
    if any(device < FIRST_TURING for device in facts.devices):
        return "proprietary"
    return "open" if version_key(wanted.version) >= KERNEL_MODULE_TYPE_SINCE else ""


def flavour(facts: Facts, wanted: Wanted) -> str:
    """Likewise where the choice must be made: packages have no default of their own."""
    return module_type(facts, wanted) or "proprietary"


def fabric_names(facts: Facts, wanted: Wanted) -> list[str]:
    """Packages that must follow the driver here. Who has brought Fabric Manager, or the driver
    itself, sees to the rest too; NSCQ alone of somebody else's stays his."""
    if not facts.fabric.switches or (facts.library and not facts.ours):
        return []
    theirs = facts.fabric.packages.keys() - facts.our_packages
    if any(map(_FABRIC_PACKAGE.fullmatch, theirs)):
        return []
    return [
        name
        for name in by_packages.in_branch(wanted.fabric_packages, wanted.version)
        if not (theirs and _NSCQ_PACKAGE.fullmatch(name))
    ]


def driver_names(facts: Facts, wanted: Wanted) -> list[str]:
    """The packages of the driver itself that are asked for by name."""
    if wanted.method != PACKAGES:
        return []
    if wanted.packages:
        return by_packages.in_branch(wanted.packages, wanted.version)
    return by_packages.names(facts.system, flavour(facts, wanted), wanted.version)


def asked_names(facts: Facts, wanted: Wanted) -> list[str]:
    return [*driver_names(facts, wanted), *fabric_names(facts, wanted)]


def wanted_pin(facts: Facts, wanted: Wanted) -> str:
    """One version for all packages of the driver; empty where none are ours to ask for."""
    return by_packages.pin(facts.manager, wanted.version) if asked_names(facts, wanted) else ""


def wanted_signing(facts: Facts, wanted: Wanted) -> str:
    if wanted.method != PACKAGES or not facts.kernel.secure_boot or not wanted.signing_key:
        return ""
    return by_packages.SIGNING_TEXT.format(
        key=wanted.signing_key, certificate=wanted.signing_certificate
    )


def dkms_due(facts: Facts, wanted: Wanted) -> bool:
    """Whether a kernel runs that DKMS has not built the driver's module for."""
    return (
        facts.method == PACKAGES == wanted.method
        and bool(facts.dkms_registered)
        and facts.loaded != facts.library
        and not facts.dkms_built
    )


def _module_obstacle(facts: Facts, wanted: Wanted) -> str:
    old = [device for device in facts.devices if device < FIRST_TURING]
    new = [device for device in facts.devices if device >= FIRST_BLACKWELL]
    flavour = module_type(facts, wanted)
    if old and version_key(wanted.version) >= TURING_NEEDED_SINCE:
        return (
            f"driver {wanted.version} drives no card older than Turing, and {len(old)} of this "
            "host's are; take a 580 driver (nvidia_driver_version)"
        )
    if old and flavour == "open":
        return (
            f"the open kernel module drives no card older than Turing, and {len(old)} of this "
            "host's are; set nvidia_driver_kernel_module_type: proprietary"
        )
    if new and flavour != "open":
        return (
            f"cards from Blackwell on ({len(new)} of this host's) have the open kernel module only"
            + (
                "; they can't share a host with cards older than Turing"
                if old
                else "; set nvidia_driver_kernel_module_type: open"
            )
        )
    return ""


def _fabric_obstacle(facts: Facts, wanted: Wanted) -> str:
    """On a machine with NVSwitches CUDA starts only when all three are of one version."""
    fabric, version = facts.fabric, wanted.version
    if not fabric.switches:
        return ""
    branch = by_packages.branch(version)
    ours = fabric_names(facts, wanted)
    wrong = [
        f"{what} {found or 'absent'} (`{package}`)"
        for what, found, package, pattern in (
            ("Fabric Manager", fabric.manager, f"nvidia-fabricmanager-{branch}", _FABRIC_PACKAGE),
            ("NSCQ", fabric.nscq, f"libnvidia-nscq-{branch}", _NSCQ_PACKAGE),
        )
        if found != version
        and (found or what == "Fabric Manager")
        and not any(pattern.fullmatch(name) for name in ours)
    ]
    if not wrong:
        return ""
    return (
        f"{fabric.switches} NVSwitches need Fabric Manager and NSCQ of the driver's version, "
        f"{version}; found {', '.join(wrong)}; install that version of the packages first, or set "
        "nvidia_driver_version to theirs"
    )


def _downgrade(facts: Facts, wanted: Wanted) -> str:
    older = facts.library and version_key(wanted.version) < version_key(facts.library)
    if older and not wanted.allow_downgrade:
        return (
            f"driver {facts.library} is newer than {wanted.version}; raise "
            "nvidia_driver_version, or set nvidia_driver_allow_downgrade: true"
        )
    return ""


def _held(facts: Facts) -> str:
    """Programs that no drain takes away."""
    names = [str(holder) for holder in facts.holders if not holder.in_pod]
    if not names:
        return ""
    return f"programs outside pods use the cards: {', '.join(names)}; stop them first"


def _kernel_obstacle(facts: Facts, wanted: Wanted) -> str:
    """Compiler and make are dependencies of DKMS; headers of this very kernel aren't."""
    brought = facts.kernel._replace(tools_missing=()) if wanted.method == PACKAGES else facts.kernel
    return kernel.obstacle(brought, facts.system)


def _obstacle(facts: Facts, wanted: Wanted) -> str:
    if not facts.cards:
        return (
            "no NVIDIA card under /sys/bus/pci/devices; seat or pass through the card, "
            "or take the host out of flexai_nodes"
        )
    fabric = _fabric_obstacle(facts, wanted)
    if facts.library == wanted.version and not (
        other_packages(facts, wanted) or dkms_due(facts, wanted)
    ):
        return fabric
    return (
        _downgrade(facts, wanted)
        or _module_obstacle(facts, wanted)
        or fabric
        or _kernel_obstacle(facts, wanted)
        or facts.signing
        or _held(facts)
    )


def waits_for_nouveau(facts: Facts) -> bool:
    """nouveau holds the cards until the next boot, which will find it barred."""
    return facts.nouveau_loaded and not facts.library


def _initramfs(facts: Facts) -> str:
    tool = facts.kernel.initramfs_tool
    return f"{tool} makes the initramfs anew" if tool else ""


def other_packages(facts: Facts, wanted: Wanted) -> bool:
    """Whether what is asked for by name differs from what was: another flavour, or NVSwitches'."""
    asked: t.Sequence[str] = facts.record.get("asked", ())
    return facts.ours and sorted(asked) != sorted(asked_names(facts, wanted))


def _package_differences(facts: Facts, wanted: Wanted) -> list[str]:
    differences = []
    asked = asked_names(facts, wanted)
    if asked and (not facts.ours or other_packages(facts, wanted)):
        differences.append(f"packages {', '.join(asked)} of version {wanted.version}")
    elif other_packages(facts, wanted):
        differences.append(f"packages {', '.join(facts.record['asked'])} are wanted no more")
    if facts.pin != wanted_pin(facts, wanted):
        differences.append(f"{by_packages.PIN_FILE} is missing or altered")
    if facts.dkms_signing != wanted_signing(facts, wanted):
        differences.append(f"{by_packages.SIGNING_FILE} is missing or altered")
    if dkms_due(facts, wanted):
        differences.append(
            f"DKMS has not built {facts.dkms_registered} {facts.library} for the running kernel "
            f"{facts.kernel.release}"
        )
    return differences


def _differences(facts: Facts, wanted: Wanted) -> list[str]:
    differences = []
    if facts.library != wanted.version:
        differences.append(f"driver {facts.library or 'absent'} → {wanted.version}")
    elif facts.record.get("state") == INSTALLING:
        differences.append(f"the installation of {wanted.version} was broken off")
    differences += _package_differences(facts, wanted)
    if not facts.nouveau_barred:
        differences.append(f"{MODPROBE_FILE} is missing or altered")
    if not facts.nouveau_barred or facts.record.get("initramfs_due"):
        differences += filter(None, [_initramfs(facts)])
    if waits_for_nouveau(facts):
        differences.append("nouveau drives the card: a reboot is due before the driver goes in")
    in_pods = [str(holder) for holder in facts.holders if holder.in_pod]
    if in_pods:
        differences.append(f"pods use the cards ({', '.join(in_pods)}) and are drained first")
    if wanted.persistenced and not facts.persistenced_enabled:
        differences.append(f"{PERSISTENCED_UNIT} is not enabled")
    return differences


def _reboot_note(facts: Facts, wanted: Wanted) -> str:
    if facts.loaded == wanted.version:
        return ""
    return f"kernel module {facts.loaded or 'not loaded'}; a reboot loads {wanted.version}"


def plan(facts: Facts, wanted: Wanted, trace: Claim | None = None) -> Decision:
    """What to do about the driver. A module of another version needs a reboot, no change."""
    claimed = claim(facts, wanted, trace)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, wanted.version, facts.library)
    obstacle = _obstacle(facts, wanted)
    if obstacle:
        return Decision(COMPONENT, BLOCKED, wanted.version, facts.library, obstacle)
    settled = Decision(COMPONENT, OK, wanted.version, facts.library, _reboot_note(facts, wanted))
    if claimed:
        return claimed.on(settled)
    differences = _differences(facts, wanted)
    if not differences:
        return settled
    action = CHANGE if facts.library else INSTALL
    return Decision(COMPONENT, action, wanted.version, facts.library, "; ".join(differences))


def needs_driver(facts: Facts, wanted: Wanted) -> bool:
    """Whether the driver itself is to be put in, and not only what follows it."""
    return facts.library != wanted.version or facts.record.get("state") == INSTALLING


def needs_installer(facts: Facts, wanted: Wanted) -> bool:
    return needs_driver(facts, wanted) or other_packages(facts, wanted) or dkms_due(facts, wanted)


def needs_quiet_node(facts: Facts, wanted: Wanted) -> bool:
    """Whether pods must be away: a running driver is replaced, or a reboot is part of it."""
    replacing = bool(facts.loaded) and needs_installer(facts, wanted)
    return replacing or waits_for_nouveau(facts)


def plan_removal(facts: Facts) -> Decision:
    """Only a driver that we installed is ours to remove."""
    if facts.ours or facts.nouveau_barred or facts.pin or facts.dkms_signing:
        return Decision(COMPONENT, REMOVE, "", facts.library)
    left = f"driver {facts.library}: not installed by flexai.xpu" if facts.library else ""
    return Decision(COMPONENT, OK, "", facts.library, left)


def installer_flags(wanted: Wanted, flavour: str, secure_boot: bool = False) -> list[str]:
    """The flags that this version of the installer knows."""
    flags = list(BASE_FLAGS)
    version = version_key(wanted.version)
    if version >= KERNEL_MODULE_TYPE_SINCE:
        flags.append(f"--kernel-module-type={flavour or 'open'}")
    elif flavour == "open" and version >= KERNEL_OPEN_SINCE:
        flags.append("-m=kernel-open")
    if secure_boot:
        flags.append(f"--module-signing-secret-key={wanted.signing_key}")
        flags.append(f"--module-signing-public-key={wanted.signing_certificate}")
    return flags
