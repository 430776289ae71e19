# SPDX-License-Identifier: GPL-3.0-or-later
"""npu-smi: tables as public logs of the real one show them, and vNPUs that keep to the chip."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from simulators.ascend import simnpu

CLASSIC = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:3B:00.0  | 0           0    / 0          3161 / 65536         |
"""
WIDE = """\
| NPU   Name                | Health        | Power(W)             Temp(C)                 \
Hugepages-Usage(page)   |
| Chip                      | Bus-Id        | AICore(%)            Memory-Usage(MB)        \
HBM-Usage(MB)           |
"""
SMALL = """\
| NPU     Name                  | Health          | Power(W)     Temp(C)           \
Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)"""


@pytest.mark.parametrize(
    ("profile", "version", "wanted"),
    [
        ("ascend-910b3", "25.0.rc1.1", CLASSIC),
        ("ascend-910b3", "26.0.rc1", WIDE),
        ("ascend-310p3", "25.0.rc1.1", SMALL),
    ],
)
def test_tables_follow_chip_and_release(
    npus: Callable[..., simnpu.Node], profile: str, version: str, wanted: str
) -> None:
    table = npus(profile, version=version).run("npu-smi", "info")
    assert wanted in table
    assert f"| npu-smi {version} " in table
    assert "| No running processes found in NPU 0 " in table
    assert len({len(line) for line in table.splitlines()}) == 1, "a table is straight"


def test_processes_stand_in_the_table(
    npus: Callable[..., simnpu.Node], hold: Callable[..., int]
) -> None:
    node = npus("ascend-910b3", "ascend-910b3")
    pid = hold(node, 1, 4096)
    table = node.run("npu-smi", "info")
    assert f"| 1       0                 | {pid:<13} | holder                   | 4096    " in table
    assert "No running processes found in NPU 0" in table
    assert "No running processes found in NPU 1" not in table


def test_maps(npus: Callable[..., simnpu.Node]) -> None:
    node = npus("ascend-910b3", "ascend-910b3")
    rows = [line.split() for line in node.run("npu-smi", "info", "-m").splitlines()]
    assert rows[1:] == [
        ["0", "0", "0", "Ascend", "910B3"],
        ["0", "1", "-", "Mcu"],
        ["1", "0", "1", "Ascend", "910B3"],
        ["1", "1", "-", "Mcu"],
    ]
    assert "Total Count                    : 2" in node.run("npu-smi", "info", "-l")


def vnpu(node: simnpu.Node, verb: str, *words: str, rc: int = 0) -> str:
    return node.run("npu-smi", "set", "-t", f"{verb}-vnpu", "-i", "0", "-c", "0", *words, rc=rc)


def layout(node: simnpu.Node) -> str:
    return node.run("npu-smi", "info", "-t", "info-vnpu", "-i", "0", "-c", "0")


def test_vnpus_come_and_go_and_keep_to_the_chip(npus: Callable[..., simnpu.Node]) -> None:
    node = npus()
    assert "Total number of vnpu: 0" in layout(node)
    assert "20/20     64/64" in layout(node)
    for _round in range(2):
        assert "Create vnpu success" in vnpu(node, "create", "-f", "vir10_3c_32g")
    assert "0/20      0/64" in layout(node)
    assert "Status                         : Fail" in vnpu(
        node, "create", "-f", "vir05_1c_16g", rc=1
    )
    vnpu(node, "destroy", "-v", "101")
    assert "|  100      |" in layout(node)
    assert "|  101      |" not in layout(node)


def test_what_vnpus_are_refused(npus: Callable[..., simnpu.Node], hold: Callable[..., int]) -> None:
    node = npus()
    assert "ret is -8001" in vnpu(node, "create", "-f", "vir99", rc=1)
    assert "ret is -8001" in vnpu(node, "create", "-f", "vir05_1c_16g", "-v", "200", rc=1)
    vnpu(node, "create", "-f", "vir05_1c_16g", "-v", "105")
    (node.directory / "faults").write_text("busy_vnpu 105\n")
    assert "it is in use" in vnpu(node, "destroy", "-v", "105", rc=1)
    assert "|  105      |  0             |  0123456789ab  |  1       |" in layout(node)
    hold(node, 0, 1)
    assert "used by a process" in vnpu(node, "create", "-f", "vir05_1c_16g", rc=1)


def test_modes_are_kept(npus: Callable[..., simnpu.Node]) -> None:
    node = npus()
    assert ": docker" in node.run("npu-smi", "info", "-t", "vnpu-mode")
    node.run("npu-smi", "set", "-t", "vnpu-mode", "-d", "1")
    assert ": vm" in node.run("npu-smi", "info", "-t", "vnpu-mode")
    node.run("npu-smi", "set", "-t", "vnpu-cfg-recover", "-d", "0")
    assert ": Disable" in node.run("npu-smi", "info", "-t", "vnpu-cfg-recover")


def test_unknown_tables_and_hanging_are_faults_of_ours(npus: Callable[..., simnpu.Node]) -> None:
    node = npus()
    (node.directory / "faults").write_text("unknown_table 1\n")
    assert "| NPU" not in node.run("npu-smi", "info")
    (node.directory / "faults").write_text("npu_smi_hangs 1\n")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["npu-smi", "info"], env=node.environment, timeout=0.5, check=False)
