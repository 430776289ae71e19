# SPDX-License-Identifier: GPL-3.0-or-later
"""Driver, CUDA and image: document 003's trap, NVIDIA's floors, and that newer breaks nothing."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.cuda_compat import cuda_compat
from ansible_collections.flexai.xpu.plugins.module_utils import _cuda_compat
from ansible_collections.flexai.xpu.plugins.module_utils._decision import version_key
from hypothesis import given
from hypothesis import strategies as st

DRIVERS = sorted(
    {*_cuda_compat.SHIPPED_WITH.values(), *_cuda_compat.FLOOR.values()}, key=version_key
)
questions = st.fixed_dictionaries(
    {
        "cuda": st.sampled_from(sorted(_cuda_compat.SHIPPED_WITH)),
        "gpu_class": st.sampled_from(_cuda_compat.CLASSES),
        "compat": st.booleans(),
        "toolkit": st.sampled_from(["", "1.16.1", "1.17.4", "1.17.8"]),
    }
)


BIG = {"gpu_class": "datacenter"}
SHIPS = {"compat": True}
OLD, MENDED = {"toolkit": "1.16.1"}, {"toolkit": "1.17.4"}


@pytest.mark.parametrize(
    ("driver", "options", "verdict", "reason"),
    [
        ("580.95.05", {"cuda": "12.4"}, "full", "at least 550.54.14"),
        ("580.95.05", {"cuda": "13.0.1"}, "full", "at least 580.65.06"),
        ("535.183.06", {"cuda": "12.4.1"}, "minor", "the floor of CUDA 12"),
        ("535.183.06", {"cuda": "13.0"}, "fail", "CUDA 13.0 needs driver 580.65.06 or newer"),
        ("535.183.06", {"cuda": "13.0", **BIG}, "fail", "is older"),
        ("535.183.06", {"cuda": "13.0", **BIG, **SHIPS}, "forward", "cuda-compat"),
        ("535.183.06", {"cuda": "13.0", **SHIPS}, "fail", "no way on a consumer card"),
        # Document 003: host 535, image CUDA 12.4 with cuda-compat, GeForce, document 000's toolkit.
        ("535.183.06", {"cuda": "12.4", **SHIPS, **OLD}, "fail", "803 and 804"),
        ("535.183.06", {"cuda": "12.4", **SHIPS, **MENDED}, "minor", "floor of CUDA 12"),
        ("580.95.05", {"cuda": "12.4", **SHIPS, **OLD}, "full", "shipped with"),
        ("450.80.02", {"cuda": "11.8"}, "minor", "the floor of CUDA 11"),
    ],
)
def test_known_pairs(driver: str, options: dict[str, Any], verdict: str, reason: str) -> None:
    found = cuda_compat(driver, **options)
    assert (found["verdict"], found["runs"]) == (verdict, verdict != "fail")
    assert reason in found["reason"]
    assert bool(found["remedy"]) == (verdict == "fail")


def test_the_remedy_of_an_old_driver_names_driver_and_image() -> None:
    found = cuda_compat("535.183.06", cuda="13.1")
    assert (
        found["remedy"]
        == "install driver 590.44.01 or newer, or take an image of CUDA 12.9 or older"
    )


@pytest.mark.parametrize(
    ("driver", "options", "error"),
    [
        ("new", {"cuda": "12.4"}, "driver 'new' is not a version such as 580.95.05"),
        ("580.95.05", {"cuda": "12"}, "cuda '12' is not a toolkit in the table (11.0, "),
        ("580.95.05", {"cuda": "14.0"}, "cuda '14.0' is not a toolkit in the table (11.0, "),
        ("580.95.05", {"cuda": "12.4", "gpu_class": "big"}, "gpu_class 'big' is none of data"),
        ("580.95.05", {"cuda": "12.4", "toolkit": "v1"}, "toolkit 'v1' is not a version"),
        ("580.95.05", {"cuda": "12.4", "classs": "x"}, "unknown classs; known are cuda, gpu_"),
        ("580.95.05", {}, "cuda is missing"),
    ],
)  # fmt: skip
def test_bad_input_is_named(driver: str, options: dict[str, Any], error: str) -> None:
    with pytest.raises(AnsibleFilterError, match="cuda_compat: ") as caught:
        cuda_compat(driver, **options)
    assert error in str(caught.value)


@given(questions, st.sampled_from(DRIVERS), st.sampled_from(DRIVERS))
def test_what_runs_on_a_driver_runs_on_a_newer_one(
    options: dict[str, Any], one: str, other: str
) -> None:
    older, newer = sorted((one, other), key=version_key)
    if cuda_compat(older, **options)["runs"]:
        assert cuda_compat(newer, **options)["runs"]


@given(questions, st.sampled_from(DRIVERS))
def test_a_newer_container_toolkit_breaks_nothing(options: dict[str, Any], driver: str) -> None:
    old = cuda_compat(driver, **{**options, "toolkit": "1.16.1"})
    new = cuda_compat(driver, **{**options, "toolkit": "1.17.8"})
    assert new["runs"] or not old["runs"]


@given(questions, st.sampled_from(DRIVERS))
def test_the_remedy_is_one(options: dict[str, Any], driver: str) -> None:
    if not cuda_compat(driver, **options)["runs"]:
        shipped = _cuda_compat.SHIPPED_WITH[options["cuda"]]
        assert cuda_compat(shipped, **options)["runs"]
