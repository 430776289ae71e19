# SPDX-License-Identifier: GPL-3.0-or-later
"""Other routers of ``bench-conductor``: which can be started, from what, and their column."""

from __future__ import annotations

import pytest
from bench import conductor, routers


@pytest.mark.parametrize("name", routers.PROGRAMS)
def test_every_router_is_pinned_to_one_version_with_digests(name: str) -> None:
    text = (routers.PINS / f"{name}.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    assert any(line.startswith(f"{name}==") for line in pins)
    assert text.count("--hash=sha256:") >= len(pins)
    assert "--worker-urls=http://e" in routers.words(name, 1, 2, "http://e")


def test_an_unknown_router_is_refused_with_the_known_ones_and_the_other_way() -> None:
    with pytest.raises(SystemExit, match=r"nginx.*sglang-router, vllm-router.*BASELINE_URL"):
        routers.chosen("nginx")


def test_another_contestant_is_reported_and_never_judged() -> None:
    slow = conductor.Series([900.0], [90.0], [], [9.0], [99.0], [80.0], [40.0])
    column = conductor.beside(slow, direct=[1.0])
    assert {name: figure.value for name, figure in column.items()} == {
        "one leg, CPU": 900.0,
        "SSE chunk, CPU": 90.0,
        "p99 added": 98.0,
        "128 paced streams": 80.0,
        "paced token, CPU": 40.0,
    }
    assert all(figure.target is None for figure in column.values())
