# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The NVIDIA driver: what is there, what to do, the installer's command line."""

from __future__ import annotations

import re
import typing as t

from ._decision import BLOCKED, CHANGE, INSTALL, OK, REMOVE, Decision, version_key
from ._host import Host

COMPONENT = "nvidia_driver"
PCI_VENDOR = "0x10de"
PCI_CLASS_DISPLAY = "0x03"
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
_DRIVER_PACKAGE = re.compile(
    r"^Package: (nvidia-driver(?:-\d+)?(?:-server)?(?:-open)?|nvidia-open|cuda-drivers)\n"
    r"Status: install ok installed$",
    re.MULTILINE,
)


class Wanted(t.NamedTuple):
    version: str
    kernel_module_type: str = ""
    persistenced: bool = True
    allow_downgrade: bool = False


class Facts(t.NamedTuple):
    cards: tuple[str, ...]
    library: str
    loaded: str
    packages: tuple[str, ...]
    nouveau_loaded: bool
    nouveau_barred: bool
    persistenced_enabled: bool


def _cards(host: Host) -> tuple[str, ...]:
    found = []
    for device in host.glob("/sys/bus/pci/devices/*"):
        if (host.read(f"{device}/vendor") or "").strip() != PCI_VENDOR:
            continue
        if (host.read(f"{device}/class") or "").startswith(PCI_CLASS_DISPLAY):
            found.append(device.rsplit("/", 1)[1])
    return tuple(found)


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


def observe(host: Host, dpkg_status: str) -> Facts:
    return Facts(
        cards=_cards(host),
        library=library_version(host),
        loaded=loaded_version(host),
        packages=tuple(found.group(1) for found in _DRIVER_PACKAGE.finditer(dpkg_status)),
        nouveau_loaded=host.exists("/sys/module/nouveau"),
        nouveau_barred=host.read(MODPROBE_FILE) == MODPROBE_TEXT,
        persistenced_enabled=bool(host.glob(f"/etc/systemd/system/*.wants/{PERSISTENCED_UNIT}")),
    )


def _obstacle(facts: Facts, wanted: Wanted) -> str:
    if not facts.cards:
        return (
            "no NVIDIA card under /sys/bus/pci/devices; seat or pass through the card, "
            "or take the host out of flexai_nodes"
        )
    if facts.packages:
        names = ", ".join(facts.packages)
        return (
            f"the driver belongs to the package manager ({names}); remove these packages, "
            "since a .run file and packages overwrite each other's files"
        )
    if facts.nouveau_loaded and not facts.library:
        return (
            "nouveau drives the card; blacklist it (a file in /etc/modprobe.d and a new "
            "initramfs) and reboot"
        )
    older = facts.library and version_key(wanted.version) < version_key(facts.library)
    if older and not wanted.allow_downgrade:
        return (
            f"driver {facts.library} is newer than {wanted.version}; raise "
            "nvidia_driver_version, or set nvidia_driver_allow_downgrade: true"
        )
    return ""


def _differences(facts: Facts, wanted: Wanted) -> list[str]:
    differences = []
    if facts.library != wanted.version:
        differences.append(f"driver {facts.library or 'absent'} → {wanted.version}")
    if not facts.nouveau_barred:
        differences.append(f"{MODPROBE_FILE} is missing or altered")
    if wanted.persistenced and not facts.persistenced_enabled:
        differences.append(f"{PERSISTENCED_UNIT} is not enabled")
    return differences


def plan(facts: Facts, wanted: Wanted) -> Decision:
    """What to do about the driver. A module of another version needs a reboot, no change."""
    obstacle = _obstacle(facts, wanted)
    if obstacle:
        return Decision(COMPONENT, BLOCKED, wanted.version, facts.library, obstacle)
    differences = _differences(facts, wanted)
    if differences:
        action = CHANGE if facts.library else INSTALL
        return Decision(COMPONENT, action, wanted.version, facts.library, "; ".join(differences))
    reason = ""
    if facts.loaded != wanted.version:
        reason = f"kernel module {facts.loaded or 'not loaded'}; a reboot loads {wanted.version}"
    return Decision(COMPONENT, OK, wanted.version, facts.library, reason)


def plan_removal(facts: Facts, uninstaller_there: bool) -> Decision:
    """Only a driver that a .run file brought is ours to remove."""
    if facts.packages or not uninstaller_there:
        action = REMOVE if facts.nouveau_barred else OK
    else:
        action = REMOVE
    return Decision(COMPONENT, action, "", facts.library)


def installer_flags(wanted: Wanted) -> list[str]:
    """The flags that this version of the installer knows."""
    flags = list(BASE_FLAGS)
    version = version_key(wanted.version)
    if version >= KERNEL_MODULE_TYPE_SINCE:
        flags.append(f"--kernel-module-type={wanted.kernel_module_type or 'open'}")
    elif wanted.kernel_module_type == "open" and version >= KERNEL_OPEN_SINCE:
        flags.append("-m=kernel-open")
    return flags
