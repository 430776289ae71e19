# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of bench-share: which tenants share a card, and how what they got is judged. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench import figures
from bench.benchlib import Figure
from bench.figures import Reading

# Length of the longest kernel of each shape, as tests/bench/load/shapes.cc has it.
KERNEL_NS: Mapping[str, int] = {
    "tiny": 20_000,
    "mid": 500_000,
    "small-grid": 2_000_000,
    "long": 300_000_000,
    "deep": 10_000_000,
    "graph": 500_000,
    "mixed": 5_000_000,
    "bursty": 5_000_000,
    "multi-stream": 1_000_000,
}
BURST_NS = 50_000_000
SHARES = (10, 30, 50, 80)
TAU_NS = 500_000_000
# Until the credit of a start is used up at every share up to 90 % (τ · P / (100 − P)) and the
# limiter knows what the kernels cost. The same for all cells, so random arrivals are the same too.
WARM_UP_S = 7.0
PAIRS = ((30, 70), (10, 90), (40, 40))
MANY = {3: 30, 4: 22, 5: 18, 6: 15, 7: 12, 8: 10}  # tenants: percent of each
MANY_SHAPES = ("mid", "tiny", "deep", "small-grid", "multi-stream", "mixed", "mid", "tiny")

MAX_MEAN_ERROR_POINTS = {"simulated": 1.0, "real": 2.0}
MAX_WINDOW_ERROR_POINTS = 5.0
MIN_THROUGHPUT_PERCENT = 97.0
MAX_BURST_DELAY_MS = 2.0
MAX_RESIZE_MS = 500.0


@dataclass(frozen=True)
class TenantPlan:
    """What one tenant of a cell does; ``percent`` None is the bare driver, no limiter at all."""

    shape: str
    percent: int | None
    seed: int = 1


@dataclass(frozen=True)
class Cell:
    """Tenants that share a card for a while."""

    name: str
    tenants: tuple[TenantPlan, ...]
    resize: tuple[int, ...] = ()  # shares the first tenant is given, one after another


@dataclass(frozen=True)
class TenantResult:
    """What one tenant got: the referee's readings, items a second, begin and end of each item.

    By the slice's own ledger, ``held_back_ns`` is how long the limiter made it wait, and
    ``charged_ns`` what it was charged. They tell why a share is missed: who was not held back did
    not ask for more (the machine was too busy to run it), who was charged another time than it used
    was measured wrongly.
    """

    shape: str
    percent: int | None
    readings: tuple[Reading, ...]
    items_per_s: float
    items: tuple[tuple[int, int], ...] = ()
    held_back_ns: int = 0
    charged_ns: int = 0


@dataclass(frozen=True)
class Result:
    """A cell that ran. ``resizes`` holds (share before, after, card ns used, ns passed)."""

    name: str
    tenants: tuple[TenantResult, ...]
    resizes: tuple[tuple[int, int, int, int], ...] = ()
    key: str = ""
    date: str = ""

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def result_of(data: Mapping[str, Any]) -> Result:
    """The result that ``document`` wrote."""
    tenants = tuple(
        TenantResult(
            shape=one["shape"],
            percent=one["percent"],
            readings=tuple(Reading(**reading) for reading in one["readings"]),
            items_per_s=one["items_per_s"],
            items=tuple((begin, end) for begin, end in one["items"]),
            held_back_ns=one["held_back_ns"],
            charged_ns=one["charged_ns"],
        )
        for one in data["tenants"]
    )
    resizes = tuple((a, b, c, d) for a, b, c, d in data["resizes"])
    return Result(data["name"], tenants, resizes, data["key"], data["date"])


# -- which cells there are ------------------------------------------------------------------------


def native_name(shape: str) -> str:
    return f"{shape} native"


def _native(shape: str) -> Cell:
    return Cell(native_name(shape), (TenantPlan(shape, None),))


def single_cells(shapes: Sequence[str], shares: Sequence[int]) -> list[Cell]:
    """Every shape alone: on the bare driver, and at every share."""
    return [
        cell
        for shape in shapes
        for cell in (
            _native(shape),
            *(Cell(f"{shape} at {share} %", (TenantPlan(shape, share),)) for share in shares),
        )
    ]


def tenant_cells() -> list[Cell]:
    """Pairs, three to eight tenants, training beside inference, bursts, and the live resize."""
    pairs = [Cell(f"pair {a}/{b}", (TenantPlan("mid", a), TenantPlan("mid", b))) for a, b in PAIRS]
    many = [
        Cell(f"{count} tenants", tuple(TenantPlan(MANY_SHAPES[i], share) for i in range(count)))
        for count, share in MANY.items()
    ]
    neighbours = TenantPlan("mid", 40)
    return [
        *pairs,
        *many,
        Cell("training beside inference", (TenantPlan("mixed", 60), TenantPlan("bursty", 30))),
        # Two cells with the same arrivals and the same neighbour, run at the same time.
        Cell("bursts limited", (TenantPlan("bursty", 30), neighbours)),
        Cell("bursts without limiter", (TenantPlan("bursty", None), neighbours)),
        Cell("resize", (TenantPlan("mid", 10),), resize=(60, 20, 80, 10)),
    ]


def needed_natives(cells: Sequence[Cell]) -> list[Cell]:
    """The native cells without which some of *cells* can't be judged."""
    there = {cell.name for cell in cells}
    shapes = dict.fromkeys(plan.shape for cell in cells for plan in cell.tenants)
    return [_native(shape) for shape in shapes if native_name(shape) not in there]


# -- judgement ------------------------------------------------------------------------------------


def mean(tenant: TenantResult) -> float:
    """The tenant's share over the whole cell, in percent."""
    return figures.share(tenant.readings[0], tenant.readings[-1])


def _judge_tenant(
    label: str, tenant: TenantResult, native: TenantResult, device: str
) -> dict[str, Figure]:
    assert tenant.percent is not None
    kind = "simulated" if device.startswith("simulated") else "real"
    demand = mean(native)
    got = mean(tenant)
    wanted = min(float(tenant.percent), demand)
    found = {
        f"{label}: mean": Figure(round(got, 2), "%"),
        f"{label}: mean off {wanted:.1f} %": Figure(
            round(abs(got - wanted), 2), "points", MAX_MEAN_ERROR_POINTS[kind]
        ),
    }
    used_ns = tenant.readings[-1].busy_ns - tenant.readings[0].busy_ns
    if used_ns > 0:
        found[f"{label}: charged of what the card was used"] = Figure(
            round(100 * tenant.charged_ns / used_ns, 1), "%"
        )
    if demand < tenant.percent:
        return found
    length = figures.window_s(KERNEL_NS[tenant.shape], tenant.percent)
    shares = figures.windows(tenant.readings, length)
    if shares:
        off = figures.percentile([abs(one - tenant.percent) for one in shares], 95)
        found[f"{label}: p95 of {length:g}-s windows off"] = Figure(
            round(off, 2), "points", MAX_WINDOW_ERROR_POINTS
        )
    # Of a whole card: a shape that leaves it idle now and then natively must not profit from that.
    ideal = native.items_per_s * tenant.percent / demand
    found[f"{label}: throughput of P × native"] = Figure(
        round(100 * tenant.items_per_s / ideal, 1), "%", MIN_THROUGHPUT_PERCENT, "higher"
    )
    return found


def _judge_resizes(result: Result) -> dict[str, Figure]:
    return {
        f"resize {before} → {after} %: effective after": Figure(
            round(abs(figures.resize_lag_ms(before, after, busy, passed)), 1), "ms", MAX_RESIZE_MS
        )
        for before, after, busy, passed in result.resizes
    }


def burst_latencies_ms(tenant: TenantResult, percent: float) -> list[float]:
    """Latencies of the bursts that fit the credit of *percent*."""
    fits = figures.in_credit([begin for begin, _ in tenant.items], BURST_NS, percent, TAU_NS)
    return [
        (end - begin) / 1e6 for (begin, end), fit in zip(tenant.items, fits, strict=True) if fit
    ]


def _judge_bursts(limited: Result, free: Result) -> dict[str, Figure]:
    percent = limited.tenants[0].percent
    assert percent is not None
    ours = burst_latencies_ms(limited.tenants[0], percent)
    theirs = burst_latencies_ms(free.tenants[0], percent)
    if not ours or not theirs:
        return {}
    with_limit, without = (figures.percentile(one, 99) for one in (ours, theirs))
    return {
        "in-credit bursts: p99 over no limiter": Figure(
            round(with_limit - without, 2), "ms", MAX_BURST_DELAY_MS
        ),
        "in-credit bursts: p99": Figure(round(with_limit, 2), "ms"),
        "in-credit bursts: p99 without limiter": Figure(round(without, 2), "ms"),
        "in-credit bursts": Figure(len(ours), "bursts"),
    }


def judge(results: Mapping[str, Result], device: str) -> dict[str, Figure]:
    """The figures of all cells that can be judged by what ran; *results* by cell name."""
    found: dict[str, Figure] = {}
    for result in results.values():
        if result.resizes:
            found |= _judge_resizes(result)
            continue
        for number, tenant in enumerate(result.tenants, start=1):
            native = results.get(native_name(tenant.shape))
            if tenant.percent is None or native is None:
                continue
            label = result.name
            if len(result.tenants) > 1:
                label += f", {number} ({tenant.shape} {tenant.percent} %)"
            found |= _judge_tenant(label, tenant, native.tenants[0], device)
    if {"bursts limited", "bursts without limiter"} <= set(results):
        found |= _judge_bursts(results["bursts limited"], results["bursts without limiter"])
    return found
