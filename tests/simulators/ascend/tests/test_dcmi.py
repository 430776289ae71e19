# SPDX-License-Identifier: GPL-3.0-or-later
"""libdcmi: a program that knows the public header sees the node's chips and what runs on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulators.ascend import simnpu

MIB = 1 << 20
LOOK = Path(__file__).with_name("dcmi.py")
OK, NOT_EXIST, INVALID_DEVICE, INVALID, NOT_READY = 0, -8008, -8007, -8001, -8012
NOT_SUPPORTED, INNER = -8255, -8005


def look(node: simnpu.Node, card: int = 0) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(node.run(sys.executable, str(LOOK), str(card)))
    return seen


def test_910b3_is_told_as_its_profile_says(npus: Callable[..., simnpu.Node]) -> None:
    node = npus("ascend-910b3", "ascend-910b3")
    seen = look(node, 1)
    assert seen["cards"] == [0, 1]
    assert seen["chip"] == {"type": "Ascend", "name": "910B3", "aicore": 20}
    assert seen["die"] == node.dies[1] == "51000000-00004000-80000000-00000000-00000001"
    assert seen["hbm"] == {"size": 65536, "usage": 3161}
    assert seen["memory"] == {"size": 0, "available": 0}, "it has no memory but HBM"
    assert seen["version"] == "25.0.rc1.1"


def test_310p_has_memory_and_no_hbm(npus: Callable[..., simnpu.Node]) -> None:
    seen = look(npus("ascend-310p3"))
    assert seen["chip"] == {"type": "Ascend", "name": "310P3", "aicore": 8}
    assert seen["memory"] == {"size": 21527, "available": 21527 - 1805}
    assert seen["codes"]["hbm"] == NOT_SUPPORTED


def test_return_codes_are_dcmis(npus: Callable[..., simnpu.Node]) -> None:
    node = npus()
    codes = look(node)["codes"]
    assert codes["before_init"] == NOT_READY
    assert codes["no_such_device"] == INVALID_DEVICE
    assert codes["no_pointer"] == INVALID
    well = set(codes) - {"before_init", "no_such_device", "no_pointer"}
    assert {codes[name] for name in well} == {OK}
    assert look(node, 5)["codes"]["chip"] == NOT_EXIST


def test_memory_time_and_processes_are_the_cards_own(
    npus: Callable[..., simnpu.Node], hold: Callable[..., int]
) -> None:
    node = npus("ascend-910b3", "ascend-910b3")
    pid = hold(node, 1, 4096, 600)
    seen = look(node, 1)
    assert seen["processes"] == {str(pid): 4096 * MIB}
    assert seen["hbm"]["usage"] == 3161 + 4096
    assert look(node, 0)["processes"] == {}


def test_a_card_without_its_device_node_is_not_seen(npus: Callable[..., simnpu.Node]) -> None:
    node = npus("ascend-910b3", "ascend-910b3")
    (node.directory / "dev/davinci0").unlink()
    seen = look(node, 1)
    assert seen["cards"] == [1], "it keeps its number"


def test_without_the_driver_it_can_not_start(npus: Callable[..., simnpu.Node]) -> None:
    node = npus()
    (node.directory / "socket").rename(node.directory / "elsewhere")
    assert look(node)["codes"]["init"] == INNER
    assert node.run("npu-smi", "info", rc=255) == "dcmi module initialize failed. ret is -8005\n"
    (node.directory / "elsewhere").rename(node.directory / "socket")


def test_faults_are_told_and_a_misspelt_one_is_no_health(npus: Callable[..., simnpu.Node]) -> None:
    node = npus()
    faults = node.directory / "faults"
    faults.write_text("health 3\n")
    assert look(node)["health"] == 3
    faults.write_text("heath 3\n")
    assert look(node)["codes"]["health"] == INNER
