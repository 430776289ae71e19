# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-share``: does every tenant get its share of a card, all of it, and no more?

Cells (see ``cells.py``) run on simulated cards of their own, some at a time. Every second the
card's ledger is read; means, windows and throughput follow from these readings. What a cell found
is kept under ``build/bench/share-parts``, and the report is made of all parts that were measured
with the same library, load, device and seconds, so it can be put together over several runs.

Environment: ``SHAPES`` (names, or ``tenants`` for the cells with several; default all), ``SHARES``
(default "10 30 50 80"), ``SECONDS`` (default 60), ``CARDS`` (cells at a time, default 4),
``DEVICE`` (``simulated`` or ``real``; real: one cell at a time, those with one tenant only),
``AGENT=none`` (without the node agent; the default is the shipped one).
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import benchlib, cells, figures, rig, svg
from bench.benchlib import REPOSITORY, Report
from bench.cells import Cell, Result, TenantPlan, TenantResult
from bench.rig import Rig, Slice, Tenant

REPORTS = REPOSITORY / "build" / "bench"
PARTS = REPORTS / "share-parts"
READ_EVERY_S = 1.0
RESIZE_SETTLES_S = 3.0
TENANTS = "tenants"


def start(on: Rig, plan: TenantPlan, card: int) -> tuple[Tenant, Slice | None]:
    """Start a tenant as planned; without a share it gets the bare driver."""
    words = (rig.PTX, plan.shape, plan.seed)
    if plan.percent is None:
        return on.start(on.bare(), "shape", *words, card=card), None
    made = on.slice(card, cores_percent=plan.percent, tau_ns=cells.TAU_NS)
    return on.start(made.place, "shape", *words, card=card), made


def watch(on: Rig, tenants: Sequence[Tenant], seconds: float) -> list[list[figures.Reading]]:
    """Readings of all tenants, one a second; by tenant."""
    begin = time.monotonic()
    rows = [on.readings(tenants)]
    for number in range(1, round(seconds / READ_EVERY_S) + 1):
        time.sleep(max(0.0, begin + number * READ_EVERY_S - time.monotonic()))
        rows.append(on.readings(tenants))
    return [list(column) for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Account:
    """What a slice's own ledger says: how long it was held back, what it was charged."""

    held_back_ns: int = 0
    charged_ns: int = 0

    def since(self, earlier: Account) -> Account:
        """What was added since."""
        return Account(
            self.held_back_ns - earlier.held_back_ns, self.charged_ns - earlier.charged_ns
        )


def own_account(made: Slice | None) -> Account:
    """The account of a slice so far; without a slice nothing is kept."""
    if made is None:
        return Account()
    ledger = made.ledger()
    return Account(ledger.throttled_ns, ledger.charged_ns)


def rate(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Items a second between two counts, from the last item before each: no item is cut.

    0 when nothing was completed before the first count: there is no instant to count from.
    """
    passed = after["last_item_ns"] - before["last_item_ns"]
    if before["items"] == 0 or passed <= 0:
        return 0.0
    return (after["items"] - before["items"]) / passed * 1e9


def watch_resizes(
    on: Rig, tenant: Tenant, made: Slice, cell: Cell
) -> tuple[tuple[int, int, int, int], ...]:
    """Change the share of a running tenant; (before, after, card ns used since, ns passed)."""
    found = []
    share = cell.tenants[0].percent
    assert share is not None
    for wanted in cell.resize:
        first = on.readings([tenant])[0]
        made.regrant(cores_percent=wanted, tau_ns=cells.TAU_NS)
        time.sleep(RESIZE_SETTLES_S)
        last = on.readings([tenant])[0]
        found.append((share, wanted, last.busy_ns - first.busy_ns, last.at_ns - first.at_ns))
        share = wanted
    return tuple(found)


def observe(
    on: Rig, cell: Cell, started: Sequence[tuple[Tenant, Slice | None]], seconds: float
) -> tuple[TenantResult, ...]:
    """Watch the tenants of a cell for a while."""
    tenants = [tenant for tenant, _ in started]
    before = [tenant.ask("count") for tenant in tenants]
    accounts = [own_account(made) for _, made in started]
    readings = watch(on, tenants, seconds)
    accounts = [
        own_account(made).since(was) for (_, made), was in zip(started, accounts, strict=True)
    ]
    after = [tenant.ask("count") for tenant in tenants]
    found = []
    for i, plan in enumerate(cell.tenants):
        items = tenants[i].ask("items") if plan.shape == "bursty" else []
        found.append(
            TenantResult(
                shape=plan.shape,
                percent=plan.percent,
                readings=tuple(readings[i]),
                items_per_s=rate(before[i], after[i]),
                items=tuple((begin, end) for begin, end in items),
                held_back_ns=accounts[i].held_back_ns,
                charged_ns=accounts[i].charged_ns,
            )
        )
    return tuple(found)


def run_cell(on: Rig, cell: Cell, card: int, seconds: float, key: str) -> Result:
    """Let the tenants of a cell run, and say what they got."""
    with ExitStack() as ends:
        started = []
        for plan in cell.tenants:
            started.append(start(on, plan, card))
            ends.callback(started[-1][0].end)
        time.sleep(cells.WARM_UP_S)
        first, made = started[0]
        if cell.resize and made is not None:
            return Result(cell.name, (), watch_resizes(on, first, made, cell), key, _now())
        return Result(cell.name, observe(on, cell, started, seconds), (), key, _now())


def told(result: Result) -> str:
    """One line on what a cell found."""
    each = [
        f"{cells.mean(tenant):.1f} %"
        + (f" (held back {tenant.held_back_ns / 1e9:.1f} s)" if tenant.percent else "")
        for tenant in result.tenants
    ]
    return f"{result.name}: {', '.join(each) or 'done'}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# -- parts ----------------------------------------------------------------------------------------


def part_file(name: str) -> Path:
    return PARTS / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def keep(result: Result) -> None:
    """Write what a cell found, at once: an interrupted run loses only what was running."""
    PARTS.mkdir(parents=True, exist_ok=True)
    part_file(result.name).write_text(json.dumps(result.document()) + "\n")


def kept(key: str) -> dict[str, Result]:
    """The parts that were measured under *key*, by cell name."""
    found = {}
    for path in sorted(PARTS.glob("*.json")):
        result = cells.result_of(json.loads(path.read_text()))
        if result.key == key:
            found[result.name] = result
    return found


def run_all(on: Rig, chosen: Sequence[Cell], seconds: float, key: str) -> None:
    """Run cells, as many at a time as there are cards."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for card in range(len(on.uuids)):
        free.put(card)

    def one(cell: Cell) -> None:
        card = free.get()
        try:
            result = run_cell(on, cell, card, seconds, key)
        finally:
            free.put(card)
        keep(result)
        print(f"  {told(result)}", flush=True)

    with ThreadPoolExecutor(max_workers=len(on.uuids)) as pool:
        list(pool.map(one, chosen))


# -- the report -----------------------------------------------------------------------------------


def _line(label: str, tenant: TenantResult) -> svg.Line:
    shares = figures.windows(tenant.readings, figures.WINDOW_S)
    points = [(number + 1.0, share) for number, share in enumerate(shares)]
    return svg.Line(label, points, tenant.percent)


def panels(results: Mapping[str, Result]) -> list[svg.Panel]:
    """A panel per shape with all its shares, then one per cell with several tenants."""
    shapes: dict[str, list[svg.Line]] = {}
    several = []
    for result in results.values():
        if len(result.tenants) == 1 and result.tenants[0].percent is not None:
            tenant = result.tenants[0]
            shapes.setdefault(tenant.shape, []).append(_line(f"{tenant.percent} %", tenant))
        elif len(result.tenants) > 1:
            lines = [_line(f"{one.shape} {one.percent or 'free'}", one) for one in result.tenants]
            several.append(svg.Panel(result.name, lines))
    return [svg.Panel(shape, lines) for shape, lines in shapes.items()] + several


def in_order(results: Mapping[str, Result], every: Sequence[Cell]) -> dict[str, Result]:
    """The results in the order of the cells, whenever they were measured."""
    return {cell.name: results[cell.name] for cell in every if cell.name in results}


# -- what to run ----------------------------------------------------------------------------------


def choose(shapes: Sequence[str], shares: Sequence[int], *, alone: bool) -> list[Cell]:
    """The cells of these shapes and shares, the native ones they are judged by included."""
    wanted = cells.single_cells([name for name in shapes if name != TENANTS], shares)
    if TENANTS in shapes:
        wanted += cells.tenant_cells()
    wanted = [cell for cell in wanted if not alone or len(cell.tenants) == 1]
    return [*cells.needed_natives(wanted), *wanted]


def asked_shapes() -> list[str]:
    """The names in SHAPES, checked."""
    known = [*cells.KERNEL_NS, TENANTS]
    names = os.environ.get("SHAPES", "").split() or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise rig.RigError(f"SHAPES: no shape {unknown[0]}; there are {', '.join(known)}")
    return names


def asked_shares() -> list[int]:
    """The numbers in SHARES, checked."""
    words = os.environ.get("SHARES", " ".join(map(str, cells.SHARES))).split()
    bad = [word for word in words if not word.isdigit() or not 1 <= int(word) <= 99]
    if bad:
        raise rig.RigError(f"SHARES: {bad[0]} is not a percentage from 1 to 99")
    return [int(word) for word in words]


def has_graphs(on: Rig) -> bool:
    """Whether the driver knows CUDA graphs."""
    tenant = on.start(on.bare(), "functions")
    try:
        return bool(tenant.ask()["cuGraphLaunch"])
    finally:
        tenant.end()


def measure() -> int:
    """Measure, print and write the report and its plots; 1 when a figure is not met."""
    shapes, shares = asked_shapes(), asked_shares()
    seconds = float(os.environ.get("SECONDS", "60"))
    with rig.up(int(os.environ.get("CARDS", "4")), agent=True) as on:
        lacking = ""
        if "graph" in shapes and not has_graphs(on):
            shapes = [name for name in shapes if name != "graph"]
            lacking = "; shape graph left out: the driver has no graphs"
        beside = on.agent.program.parent.name if on.agent else "no agent"
        key = f"{on.digest} {on.programs.name} {beside} {on.device} {seconds:g}"
        chosen = choose(shapes, shares, alone=on.node is None)
        run_all(on, chosen, seconds, key)
        device, described = on.device, rig.described(on)
    results = in_order(kept(key), choose([*cells.KERNEL_NS, TENANTS], range(1, 100), alone=False))
    dates = sorted(result.date for result in results.values())
    plot = svg.chart(f"shares of a card, 1-s windows ({device}, {dates[-1]})", panels(results))
    (REPORTS / "share.svg").write_text(plot)
    method = (
        f"{seconds:g} s per cell after a warm-up, a reading a second, cells on cards of their own, "
        f"{len(results)} cells measured {dates[0]} to {dates[-1]}; τ {cells.TAU_NS / 1e6:g} ms; "
        "throughput per card time against the same shape on the bare driver"
        f"{lacking}; {described}"
    )
    return benchlib.publish(Report("share", method, device, cells.judge(results, device)))


if __name__ == "__main__":
    sys.exit(rig.main_of(measure))
