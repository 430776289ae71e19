# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What Huawei's packages leave on a host, read from their own state files: never guessed from logs
or directory names."""

from __future__ import annotations

import typing as t

from ._host import Host

PCI_VENDOR = "0x19e5"
PCI_CLASS_ACCELERATOR = "0x1200"
# By PCI device id: the family that packages are named after.
FAMILIES = {"0xd802": "910b", "0xd801": "910", "0xd500": "310p", "0xd100": "310"}

PREFIX = "/usr/local/Ascend"
INSTALL_INFO = "/etc/ascend_install.info"
CANN_INFO = "/etc/Ascend/ascend_cann_install.info"
LOG = "/var/log/ascend_seclog/ascend_install.log"


class Driver(t.NamedTuple):
    """Driver and firmware; an empty version says that there is none, or none that is whole."""

    driver: str = ""
    firmware: str = ""
    # The vendor's record: there also where an installation was broken off.
    recorded_driver: bool = False
    recorded_firmware: bool = False
    user: str = ""
    group: str = ""
    path: str = PREFIX


class Cann(t.NamedTuple):
    """CANN below ``path``; ``chips`` are those that kernels are there for."""

    path: str = ""
    toolkit: str = ""
    kernels: str = ""
    chips: tuple[str, ...] = ()
    nnal: str = ""


def pairs(text: str | None) -> dict[str, str]:
    """``key=value`` lines; anything else is left out."""
    lines = (line.partition("=") for line in (text or "").splitlines())
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def cards(host: Host) -> dict[str, str]:
    """PCI address → family of every Ascend accelerator; an unknown device id stands for itself."""
    found = {}
    for path in host.glob("/sys/bus/pci/devices/*"):
        read = {
            name: (host.read(f"{path}/{name}") or "").strip()
            for name in ("vendor", "class", "device")
        }
        if read["vendor"] == PCI_VENDOR and read["class"].startswith(PCI_CLASS_ACCELERATOR):
            found[path.rsplit("/", 1)[1]] = FAMILIES.get(read["device"], read["device"])
    return found


def read_driver(host: Host) -> Driver:
    info = pairs(host.read(INSTALL_INFO))
    path = info.get("Driver_Install_Path_Param", PREFIX)
    firmware_path = info.get("Firmware_Install_Path_Param", path)
    return Driver(
        driver=pairs(host.read(f"{path}/driver/version.info")).get("Version", ""),
        firmware=pairs(host.read(f"{firmware_path}/firmware/version.info")).get("Version", ""),
        recorded_driver="Driver_Install_Type" in info,
        recorded_firmware="Firmware_Install_Type" in info,
        user=info.get("UserName", ""),
        group=info.get("UserGroup", ""),
        path=path,
    )


def _atb_version(text: str | None) -> str:
    for line in (text or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == "Ascend-cann-atb":
            return value.strip()
    return ""


def read_cann(host: Host, architecture: str) -> Cann:
    path = pairs(host.read(CANN_INFO)).get("Install_Path", "")
    base = path or PREFIX
    latest = f"{base}/ascend-toolkit/latest"
    info = f"{latest}/{architecture}-linux/ascend_toolkit_install.info"
    kernel = f"{latest}/opp/built-in/op_impl/ai_core/tbe/kernel/config"
    chips = (found.rsplit("/ascend", 1)[1] for found in host.glob(f"{kernel}/ascend*"))
    return Cann(
        path=path,
        toolkit=pairs(host.read(info)).get("version", ""),
        kernels=pairs(host.read(f"{latest}/opp_kernel/version.info")).get("Version", ""),
        chips=tuple(chips),
        nnal=_atb_version(host.read(f"{base}/nnal/atb/latest/version.info")),
    )
