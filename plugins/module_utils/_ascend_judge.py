# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The judgement of an Ascend host: its own tools are asked what is in force.

Shares no knowledge with the plan, so that an error in the plan can't hide itself here: driver,
firmware and chips as npu-smi tells them, CANN as its own environment leads to it.
"""

from __future__ import annotations

import typing as t

from ._ascend_smi import Smi, fields
from ._errors import XpuError
from ._host import Host

TOOL_LIMIT_S = 20
SET_ENV = {
    "toolkit": ("ascend-toolkit/set_env.sh", "ASCEND_TOOLKIT_HOME"),
    "nnal": ("nnal/atb/set_env.sh", "ATB_HOME_PATH"),
}


def _on_pci(host: Host) -> int:
    found = 0
    for path in host.glob("/sys/bus/pci/devices/*"):
        vendor, kind = ((host.read(f"{path}/{name}") or "").strip() for name in ("vendor", "class"))
        found += vendor == "0x19e5" and kind.startswith("0x12")
    return found


def driver(host: Host, version: str, firmware: str) -> list[str]:
    """What keeps the chips from working with this driver and firmware."""
    smi = Smi(host)
    if not smi.there:
        return ["there is no npu-smi"]
    try:
        info = smi.info()
        boards = {
            chip.npu: fields(smi.ask("info", "-t", "board", "-i", str(chip.npu)))
            for chip in info.chips
        }
    except XpuError as error:
        return [error.msg]
    problems = []
    if info.version != version:
        problems.append(f"npu-smi says driver {info.version}, and {version} is wanted")
    others = {board.get("firmware version", "none") for board in boards.values()} - {firmware}
    if others:
        problems.append(f"the chips run firmware {', '.join(sorted(others))}, not {firmware}")
    if len(info.chips) != _on_pci(host):
        problems.append(f"npu-smi shows {len(info.chips)} chips, and {_on_pci(host)} are on PCI")
    return problems + [
        f"NPU {chip.npu} chip {chip.chip} has health {chip.health}"
        for chip in info.chips
        if chip.health != "OK"
    ]


def _home(host: Host, path: str, part: str) -> str:
    """Where a part's own script leads a program; empty where there is none."""
    script, variable = SET_ENV[part]
    command = f'. "{host.path(path)}/{script}" && printf %s "${variable}"'
    done = host.run(["bash", "-c", command], timeout_s=TOOL_LIMIT_S)
    return done.out.strip() if done.rc == 0 else ""


def _toolkit(host: Host, home: str) -> str:
    for info in host.glob(f"{home}/*-linux/ascend_toolkit_install.info"):
        for line in (host.read(info) or "").splitlines():
            if line.startswith("version="):
                return line.partition("=")[2]
    return ""


def cann(host: Host, path: str, version: str, parts: t.Sequence[str]) -> list[str]:
    """What of CANN a program would not find."""
    home = _home(host, path, "toolkit")
    found = {"toolkit": _toolkit(host, home) if home else ""}
    if "kernels" in parts:
        said = fields((host.read(f"{home}/opp_kernel/version.info") or "").replace("=", ":"))
        found["kernels"] = said.get("version", "")
    if "nnal" in parts:
        atb = _home(host, path, "nnal")
        said = fields(host.read(f"{atb}/version.info") or "") if atb else {}
        found["nnal"] = said.get("ascend-cann-atb", "")
    return [
        f"CANN's {part} is {found[part] or 'absent'} by its own environment; {version} is wanted"
        for part in parts
        if found.get(part, "") != version
    ]
