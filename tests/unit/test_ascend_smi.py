# SPDX-License-Identifier: GPL-3.0-or-later
"""npu-smi's tables of several releases are read alike; one that nobody knows is an error, and so
is a program that never answers. The fixtures have the form of public logs of the real program."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_smi as smi
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from hypothesis import given, settings
from hypothesis import strategies as st

FIXTURES = Path(__file__).parent / "fixtures/npu-smi"


def text(name: str) -> str:
    return (FIXTURES / f"{name}.txt").read_text()


def test_the_classic_table() -> None:
    found = smi.parse_info(text("info-24.1-910b3"))
    assert found == smi.Info(
        "24.1.rc1.b030",
        (
            smi.Chip(4, 0, "910B3", "OK", "0000:c1:00.0", 3318, 65536),
            smi.Chip(5, 0, "910B3", "Warning", "0000:c2:00.0", 59356, 65536),
        ),
        (smi.Process(5, 0, 3072791, "VLLMWorker_TP", 56038),),
    )


def test_the_wide_table_with_container_pids() -> None:
    found = smi.parse_info(text("info-26-910b3"))
    assert found.version == "26.0.rc1"
    assert found.chips == (smi.Chip(0, 0, "910B3", "OK", "0000:41:00.0", 3402, 65536),)
    assert found.processes == (smi.Process(0, 0, 485946, "pytest", 5175),)


def test_the_310p_table_without_hbm() -> None:
    found = smi.parse_info(text("info-22-310p3"))
    assert found.chips == (smi.Chip(7, 0, "310P3", "OK", "0000:00:07.0", 1805, 21527),)
    assert found.processes == ()


def test_maps_leave_controllers_out_and_know_a_physical_id() -> None:
    assert smi.parse_map(text("map-910b3")) == (
        smi.Mapped(0, 0, 0, "910B3"),
        smi.Mapped(1, 0, 1, "910B3"),
    )
    assert smi.parse_map(text("map-phyid")) == (
        smi.Mapped(0, 0, 0, "910"),
        smi.Mapped(0, 1, 1, "910"),
    )


def test_templates() -> None:
    assert smi.parse_templates(text("templates-910b")) == (
        smi.Template("vir10_3c_32g", 10, 32, 3),
        smi.Template("vir05_1c_16g", 5, 16, 1),
    )


def test_layouts() -> None:
    empty = smi.parse_layout(text("layout-910b-empty"))
    assert empty == smi.Layout((20, 20), (60, 64), (6, 6), ())
    used = smi.parse_layout(text("layout-310p"))
    assert [(one.id, one.template, one.used) for one in used.vnpus] == [
        (100, "vir01", False),
        (101, "vir02", True),  # by its status
        (102, "vir04", True),  # by its container
    ]
    assert used.aicore == (1, 8)


@pytest.mark.parametrize("parse", [smi.parse_info, smi.parse_map, smi.parse_templates])
@pytest.mark.parametrize("wrong", ["", "[npu-smi 30.0]\nid=0;model=910B3\n", "Error parameter"])
def test_an_unknown_table_is_one_clear_error(parse: object, wrong: str) -> None:
    with pytest.raises(XpuError, match=r"printed no table that flexai\.xpu knows") as caught:
        parse(wrong)  # type: ignore[operator]
    assert "send its whole output" in caught.value.remedy


@pytest.mark.parametrize(
    ("parse", "fixture"),
    [
        (smi.parse_info, "info-24.1-910b3"),
        (smi.parse_info, "info-26-910b3"),
        (smi.parse_info, "info-22-310p3"),
        (smi.parse_map, "map-phyid"),
        (smi.parse_templates, "templates-910b"),
        (smi.parse_layout, "layout-310p"),
    ],
)
@settings(max_examples=60)
@given(data=st.data())
def test_cut_or_garbled_it_is_read_or_refused_and_never_crashes(
    data: st.DataObject, parse: object, fixture: str
) -> None:
    whole = text(fixture)
    at = data.draw(st.integers(0, len(whole)))
    garbage = data.draw(st.text(max_size=3))
    garbled = whole[:at] + garbage + whole[at + data.draw(st.integers(0, 200)) :]
    with contextlib.suppress(XpuError):
        parse(garbled)  # type: ignore[operator]


def test_a_layout_with_a_lost_row_is_refused() -> None:
    lost = "".join(
        line for line in text("layout-310p").splitlines(keepends=True) if "vir02" not in line
    )
    with pytest.raises(XpuError, match="info-vnpu"):
        smi.parse_layout(lost)


def program(tmp_path: Path, *answers: Completed) -> smi.Smi:
    """npu-smi that gives these answers, one after another."""
    file = tmp_path / smi.PROGRAM.lstrip("/")
    file.parent.mkdir(parents=True)
    file.touch(mode=0o755)
    left = list(answers)

    def answer(argv: Sequence[str], limit: float) -> Completed:
        return left.pop(0)

    return smi.Smi(Host(str(tmp_path), answer))


def test_a_program_that_hangs_is_named_with_its_limit(tmp_path: Path) -> None:
    hanging = program(tmp_path, Completed(124, "", "no answer within 60 s"))
    with pytest.raises(XpuError, match="`npu-smi info` did not answer within 60 s"):
        hanging.info()


def test_a_driver_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    said = "dcmi module initialize failed. ret is -8005\n"
    with pytest.raises(XpuError, match=r"DCMI can't be initialised \(-8005\)"):
        program(tmp_path, Completed(255, said)).info()


def test_an_order_counts_only_with_its_status(tmp_path: Path) -> None:
    well = "\tStatus                         : OK\n\tMessage : Create vnpu success\n"
    bad = "\tStatus                         : Fail\n\tMessage : the vnpu is in use\n"
    asked = program(tmp_path, Completed(0, well), Completed(0, bad), Completed(1, well))
    asked.order("-t", "create-vnpu")
    for _round in range(2):
        with pytest.raises(XpuError, match="`npu-smi set -t create-vnpu` was refused"):
            asked.order("-t", "create-vnpu")
