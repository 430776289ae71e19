# SPDX-License-Identifier: GPL-3.0-or-later
"""Driver, CANN, torch-npu and vllm-ascend: document 001's set runs, and what does not says why."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.ascend_compat import ascend_compat
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_compat as compat
from hypothesis import given
from hypothesis import strategies as st

# As a 25.0.rc1.1 says it in its version.info.
LIST_25_0 = "[V100R001C17],[V100R001C18],[V100R001C19],[V100R001C20],[V100R001C21]"


@pytest.mark.parametrize(
    ("driver", "options", "verdict", "reason"),
    [
        ("25.0.rc1.1", {"cann": "8.1.RC1"}, "known", "at least 25.0.rc1"),
        (
            "25.0.rc1.1",
            {"cann": "8.1.RC1", "vllm_ascend": "0.8.5rc1", "torch_npu": "2.5.1", "python": "3.10"},
            "known",
            "the first for CANN 8.1.RC1",
        ),
        ("25.0.rc1.1", {"cann": "8.1.RC1", "compatible": LIST_25_0}, "listed", "C21"),
        (
            "25.9.0",
            {"cann": "8.3.RC1", "compatible": LIST_25_0},
            "fail",
            "the newest it lists is C21",
        ),
        ("24.1.0", {"cann": "8.1.RC1"}, "fail", "needs driver 25.0.rc1; 24.1.0 is older"),
        (
            "25.0.rc1.1",
            {"cann": "8.1.RC1", "vllm_ascend": "0.9.1"},
            "fail",
            "known for it: 0.8.5rc1",
        ),
        ("25.0.rc1.1", {"cann": "8.1.RC1", "torch_npu": "2.6.0"}, "fail", "torch-npu 2.6.0 is not"),
        ("25.0.rc1.1", {"cann": "8.1.RC1", "python": "3.12"}, "fail", "3.9, 3.10, 3.11"),
    ],
)
def test_answers(driver: str, options: dict[str, Any], verdict: str, reason: str) -> None:
    found = ascend_compat(driver, **options)
    assert (found["verdict"], found["runs"]) == (verdict, verdict != "fail")
    assert reason in found["reason"]
    assert bool(found["remedy"]) == (verdict == "fail")


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("newest", {"cann": "8.1.RC1"}, "driver 'newest' is not a version such as 25.0.rc1.1"),
        ("25.0.rc1.1", {"cann": "8.1"}, "cann '8.1' is in no row of the table; there are 8.0.0"),
        ("25.0.rc1.1", {}, "cann is missing"),
        ("25.0.rc1.1", {"cann": "8.1.RC1", "torch": "2"}, "unknown torch; known are cann"),
        ("25.0.rc1.1", {"cann": "8.1.RC1", "python": "three"}, "python 'three' is not a version"),
    ],
)
def test_what_is_no_question(driver: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(AnsibleFilterError, match="ascend_compat: ") as caught:
        ascend_compat(driver, **options)
    assert text in str(caught.value)


def test_candidates_come_before_their_release() -> None:
    ordered = ["24.1.rc1", "24.1.0", "25.0.rc1", "25.0.rc1.1", "25.0.rc2", "25.0.0", "25.2.0"]
    assert sorted(ordered, key=compat.version_key) == ordered


@given(
    st.sampled_from(sorted(compat.MATRIX)),
    st.lists(
        st.sampled_from([row.driver for row in compat.MATRIX.values()]), min_size=2, max_size=2
    ),
)
def test_a_newer_driver_breaks_nothing(cann: str, drivers: list[str]) -> None:
    older, newer = sorted(drivers, key=compat.version_key)
    if ascend_compat(older, cann=cann)["runs"]:
        assert ascend_compat(newer, cann=cann)["runs"]
