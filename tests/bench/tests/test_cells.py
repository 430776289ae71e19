# SPDX-License-Identifier: GPL-3.0-or-later
"""bench-share's judgement of readings made up for the purpose, and what it keeps and draws."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench import cells, rig, share, svg
from bench.benchlib import REPOSITORY, Figure
from bench.cells import Cell, Result, TenantResult
from bench.figures import Reading

SECOND = 1_000_000_000
DEVICE = "simulated:a100-40g"
ALL = range(1, 100)


def tenant(shape: str, percent: int | None, shares: list[float], rate: float) -> TenantResult:
    readings = [Reading(0, 0)]
    for one in shares:
        last = readings[-1]
        readings.append(Reading(last.at_ns + SECOND, last.busy_ns + round(one / 100 * SECOND)))
    return TenantResult(shape, percent, tuple(readings), rate)


def judged(name: str, *tenants: TenantResult, native: TenantResult) -> dict[str, Figure]:
    results = {
        cells.native_name(native.shape): Result(cells.native_name(native.shape), (native,)),
        name: Result(name, tenants),
    }
    return cells.judge(results, DEVICE)


FULL = tenant("mid", None, [100.0] * 20, 100.0)


def test_an_exact_share_meets_all_its_figures() -> None:
    found = judged("mid at 30 %", tenant("mid", 30, [30.0] * 20, 30.0), native=FULL)
    judged_ones = [figure.met for figure in found.values() if figure.target is not None]
    assert judged_ones == [True, True, True]


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        (tenant("mid", 30, [31.2] * 20, 31.2), "mean off"),
        (tenant("mid", 30, [28.8] * 20, 30.0), "mean off"),
        (tenant("mid", 30, [20.0, 40.0] * 10, 30.0), "windows off"),
        (tenant("mid", 30, [30.0] * 20, 28.0), "throughput"),
    ],
)
def test_each_way_to_miss_is_its_own_figure(result: TenantResult, missed: str) -> None:
    found = judged("mid at 30 %", result, native=FULL)
    assert [name for name, figure in found.items() if figure.met is False] == [
        name for name in found if missed in name
    ]


def test_a_tenant_that_asks_for_less_is_held_against_its_demand() -> None:
    native = tenant("bursty", None, [20.0, 22.0] * 10, 4.0)
    found = judged("bursty at 50 %", tenant("bursty", 50, [21.0] * 20, 4.0), native=native)
    assert found["bursty at 50 %: mean off 21.0 %"].met is True
    assert not any("window" in name or "throughput" in name for name in found)


def test_windows_of_long_kernels_are_longer() -> None:
    native = tenant("long", None, [100.0] * 60, 3.3)
    pulses = tenant("long", 10, [30.0, 0.0, 0.0] * 20, 0.34)
    found = judged("long at 10 %", pulses, native=native)
    assert found["long at 10 %: p95 of 30-s windows off"].value == pytest.approx(0, abs=0.01)


def test_bursts_are_compared_with_the_same_bursts_without_limiter() -> None:
    def bursts(percent: int | None, latency_ms: int) -> TenantResult:
        begins = [index * SECOND for index in range(10)]
        items = tuple((begin, begin + latency_ms * 1_000_000) for begin in begins)
        return replace(tenant("bursty", percent, [5.0] * 10, 1.0), items=items)

    results = {
        "bursts limited": Result("bursts limited", (bursts(30, 57),)),
        "bursts without limiter": Result("bursts without limiter", (bursts(None, 52),)),
    }
    found = cells.judge(results, DEVICE)
    assert found["in-credit bursts: p99 over no limiter"].value == 5.0
    assert found["in-credit bursts: p99 over no limiter"].met is False


def test_a_resize_is_judged_by_its_lag() -> None:
    slow = Result("resize", (), ((10, 60, round((0.1 * 0.7 + 0.6 * 2.3) * SECOND), 3 * SECOND),))
    found = cells.judge({"resize": slow}, DEVICE)
    assert found["resize 10 → 60 %: effective after"].value == pytest.approx(700)
    assert found["resize 10 → 60 %: effective after"].met is False


def test_results_survive_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "PARTS", tmp_path)
    mine = replace(Result("mid at 30 %", (replace(FULL, items=((1, 2),)),)), key="now")
    share.keep(mine)
    share.keep(replace(mine, name="mid at 10 %", key="another library"))
    assert share.kept("now") == {"mid at 30 %": mine}


def test_every_cell_has_a_file_of_its_own() -> None:
    every = share.choose([*cells.KERNEL_NS, share.TENANTS], ALL, alone=False)
    assert len({share.part_file(cell.name) for cell in every}) == len(every)


def test_every_cell_can_be_judged_by_what_runs_with_it() -> None:
    for shapes in (["mid"], [share.TENANTS]):
        chosen = share.choose(shapes, [30], alone=False)
        names = {cell.name for cell in chosen}
        needed = {cells.native_name(plan.shape) for cell in chosen for plan in cell.tenants}
        assert needed <= names


def test_no_cell_grants_more_than_a_card() -> None:
    for cell in cells.tenant_cells():
        assert sum(plan.percent or 0 for plan in cell.tenants) <= 100, cell.name


def test_the_shapes_are_those_of_the_load() -> None:
    source = (REPOSITORY / "tests/bench/load/shapes.cc").read_text()
    table = source[source.index("kShapes[]") :]
    assert set(re.findall(r'\{"([a-z-]+)", \w+\}', table)) == set(cells.KERNEL_NS)


def test_an_unknown_shape_or_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPES", "mid huge")
    with pytest.raises(rig.RigError, match="no shape huge; there are tiny, mid"):
        share.asked_shapes()
    monkeypatch.setenv("SHARES", "10 120")
    with pytest.raises(rig.RigError, match="120 is not a percentage"):
        share.asked_shares()


def test_throughput_counts_whole_items() -> None:
    before = {"items": 10, "last_item_ns": 1 * SECOND}
    after = {"items": 14, "last_item_ns": 3 * SECOND}
    assert share.rate(before, after) == pytest.approx(2.0)
    assert share.rate(before, before) == 0.0
    assert share.rate({"items": 0, "last_item_ns": 0}, after) == 0.0


def test_the_plot_is_sound_and_shows_every_tenant() -> None:
    two = (tenant("mid", 30, [30.0] * 5, 30.0), tenant("deep", 70, [170.0] * 5, 70.0))
    results = {
        "mid at 30 %": Result("mid at 30 %", two[:1]),
        "pair <30/70>": Result("pair <30/70>", two),
    }
    text = svg.chart("shares & more", share.panels(results))
    root = ElementTree.fromstring(text)
    lines = [one for one in root.iter() if one.tag.endswith("polyline")]
    assert len(lines) == 3
    assert "pair &lt;30/70&gt;" in text
    heights = [
        float(point.split(",")[1]) for line in lines for point in line.get("points", "").split()
    ]
    assert min(heights) >= svg.HEAD, "a share above 100 % stays in its panel"


def test_documents_are_json() -> None:
    document = Result("mid", (FULL,)).document()
    assert cells.result_of(json.loads(json.dumps(document))) == Result("mid", (FULL,))


def test_a_card_of_ones_own_has_no_cells_with_several_tenants() -> None:
    chosen: list[Cell] = share.choose([*cells.KERNEL_NS, share.TENANTS], [30], alone=True)
    assert all(len(cell.tenants) == 1 for cell in chosen)


def test_throughput_is_that_of_a_whole_card() -> None:
    native = tenant("mixed", None, [80.0] * 20, 8.0)  # ten items per second of card time
    found = judged("mixed at 40 %", tenant("mixed", 40, [40.0] * 20, 4.0), native=native)
    assert found["mixed at 40 %: throughput of P × native"].value == 100.0
