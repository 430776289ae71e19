# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at an Ascend host: the plan, and a verdict that the host's own tools give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_smi as smi
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed
from ansible_collections.flexai.xpu.plugins.modules import ascend_cann, ascend_driver, ascend_probe
from ansible_collections.flexai.xpu.plugins.plugin_utils._controller import ascend_state, role_specs

from . import hostroot
from .ascendmachine import Machine
from .test_ascend_smi import text

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the packages refuse others than root")
# What the fixture's npu-smi says.
DRIVER, FIRMWARE, CANN = "24.1.rc1.b030", "7.3.0.1.231", "8.1.RC1"


def desired() -> dict[str, Any]:
    """The roles' defaults, with the fixture's versions."""
    values = {name: option.get("default") for name, option in role_specs().items()}
    found = ascend_state(values)
    found["ascend_driver"].update(driver=DRIVER, firmware=FIRMWARE)
    return found


class Tools(Machine):
    """With an npu-smi that prints the fixture, whose host has two chips."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "910b", "910b")
        self.info = text("info-24.1-910b3").replace("Warning", "OK     ")
        self.firmware = FIRMWARE
        hostroot.put(root, "/usr/bin/bash", "#!/bin/sh\n", 0o755)

    def _run(self, argv: Sequence[str], timeout_s: float) -> Completed:
        program = argv[0].removeprefix(str(self.root))
        if program == smi.PROGRAM:
            firmware = f"\tFirmware Version               : {self.firmware}\n"
            return Completed(0, self.info if argv[1:] == ["info"] else firmware)
        if program == "/usr/bin/bash":
            return super()._run(["/bin/bash", *argv[1:]], timeout_s)
        return super()._run(argv, timeout_s)

    def install(self) -> None:
        params = {"user": "HwHiAiUser", "uid": 1000, "allow_downgrade": False, "chip": "910b"}
        versions = {"version": DRIVER, "firmware_version": FIRMWARE, "state": "present"}
        packages = self.driver(DRIVER, FIRMWARE)
        ascend_driver.converge(self.host, {**params, **versions, **packages}, False)
        params = {"parts": ["toolkit", "kernels", "nnal"], "chip": "", "path": "/usr/local/Ascend"}
        packages = self.cann(CANN)
        more = {"version": CANN, "packages": packages, "state": "present"}
        ascend_cann.converge(self.host, {**params, **more}, False)
        hostroot.put(self.root, smi.PROGRAM, "", 0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path / "host")


def probe(tools: Tools, **driver: Any) -> dict[str, Any]:
    wanted = desired()
    wanted["ascend_driver"].update(driver)
    return ascend_probe.probe(tools.host, wanted)


def test_a_bare_host_needs_both(tools: Tools) -> None:
    found = probe(tools)
    assert found["actions"] == {"ascend_driver": "install", "ascend_cann": "install"}
    assert (found["blocked"], found["reboot_required"]) == ([], False)
    assert "verdict" not in found
    assert tools.ran == []


def test_what_stands_in_the_way_is_told(tools: Tools) -> None:
    found = probe(tools, chip="310p")
    assert found["blocked"] == ["ascend_driver: ascend_driver_chip is 310p, and the host has 910b"]


@as_root
def test_after_the_boot_the_hosts_own_tools_judge(tools: Tools) -> None:
    tools.install()
    found = probe(tools)
    assert (found["reboot_required"], "verdict" in found) == (True, False)
    tools.boot("second")
    assert probe(tools)["verdict"] == {"ready": True, "problems": []}


@as_root
@pytest.mark.parametrize(
    ("attribute", "value", "problem"),
    [
        ("info", text("info-24.1-910b3"), "NPU 5 chip 0 has health Warning"),
        ("info", text("info-26-910b3"), f"npu-smi says driver 26.0.rc1, and {DRIVER} is wanted"),
        ("info", text("info-26-910b3"), "npu-smi shows 1 chips, and 2 are on PCI"),
        ("firmware", "7.1.0", f"the chips run firmware 7.1.0, not {FIRMWARE}"),
        ("info", "nothing", "`npu-smi info` printed no table that flexai.xpu knows"),
    ],
)
def test_what_the_driver_says_otherwise_is_a_problem(
    tools: Tools, attribute: str, value: str, problem: str
) -> None:
    tools.install()
    tools.boot("second")
    setattr(tools, attribute, value)
    verdict = probe(tools)["verdict"]
    assert not verdict["ready"]
    assert any(problem in told for told in verdict["problems"]), verdict


@as_root
def test_a_cann_that_its_environment_does_not_lead_to_is_a_problem(tools: Tools) -> None:
    tools.install()
    tools.boot("second")
    (tools.root / "usr/local/Ascend/nnal/atb/set_env.sh").unlink()
    assert probe(tools)["verdict"]["problems"] == [
        "CANN's nnal is absent by its own environment; 8.1.RC1 is wanted"
    ]
