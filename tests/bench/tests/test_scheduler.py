# SPDX-License-Identifier: GPL-3.0-or-later
"""How bench-scheduler turns what was measured into figures, and that its program runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import scheduler
from bench.scheduler import DEVICESHARE, OURS, SCALAR
from xpubuild.toolchain import go_build


def sample(us: float, bound: int = 10) -> dict[str, float]:
    return {"decision_us": us, "idle_session_us": 1000.0, "bound": bound}


def test_what_the_plugin_adds_is_taken_turn_by_turn() -> None:
    # A machine that slows down by half between turns adds nothing to what the plugin costs.
    assert scheduler.added_percent([100.0, 200.0], [104.0, 208.0]) == pytest.approx([4.0, 4.0])


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [(104.0, 150.0, True), (106.0, 150.0, False), (104.0, 103.0, False)],
    ids=["as wanted", "more than 5 % over sums", "more than deviceshare"],
)
def test_decision_costs_are_judged(ours: float, theirs: float, met: bool) -> None:
    samples = {SCALAR: [sample(100.0)], OURS: [sample(ours)], DEVICESHARE: [sample(theirs)]}
    figures = scheduler.cost_figures(samples, 10)
    assert all(figure.met is not False for figure in figures.values()) is met


def test_a_way_that_leaves_pods_behind_did_less_work() -> None:
    samples = {SCALAR: [sample(100.0)], OURS: [sample(50.0, 9)], DEVICESHARE: [sample(150.0)]}
    assert scheduler.cost_figures(samples, 10)["pods left behind"].met is False


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_found(power: float) -> None:
    points = [(size, 3 * size**power) for size in (100.0, 300.0, 1000.0)]
    assert scheduler.exponent(points) == pytest.approx(power)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("bench") / "bench"
    go_build(scheduler.MODULE, {built: "./bench"})
    return built


@pytest.mark.parametrize("way", scheduler.WAYS)
def test_each_way_binds_the_same_pods(program: Path, way: str) -> None:
    found = scheduler.ask(program, "-way", way, "-nodes", 3, "-pods", 20, "-idle", 1)
    assert found["bound"] == 20
    assert found["decision_us"] > 0


def test_each_policy_plays_the_same_week(program: Path) -> None:
    weeks = {
        policy: scheduler.ask(program, "-way", "week", "-policy", policy, "-nodes", 2)
        for policy in scheduler.POLICIES
    }
    assert len({week["asked"] for week in weeks.values()}) == 1
    judged = scheduler.judged_weeks({p: scheduler.week_figures([w]) for p, w in weeks.items()})
    assert judged["topology: pairs of cards that are linked"].met


def test_a_way_there_is_not_is_named(program: Path) -> None:
    with pytest.raises(RuntimeError, match=r'way "best" is unknown; use scalar, huawei-xpu'):
        scheduler.ask(program, "-way", "best")
