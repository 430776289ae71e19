# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-init``: CPU that the interception library adds to the start of a process.

1, 16, 64 and 300 processes wait at a line and then start CUDA at once: open the driver, initialise
it, take a context and a first allocation. Each reports its own CPU time for that. Bare driver and
slice take turns; what counts is the median of a slice's processes minus that of the bare ones.

Environment: ``STARTS`` (default "1 16 64 300"), ``REPEAT`` (default 5), ``DEVICE``.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from bench import benchlib, figures, rig
from bench.benchlib import Figure, Report
from bench.rig import Place, Rig

PROFILE = "h100"
CARDS = 4
PER_SLICE = 75  # a ledger page has room for 256 processes, a card's memory for that many contexts
GIB = 1 << 30
MAX_ADDED_MS = 5.0


def start_together(on: Rig, places: Sequence[Place], count: int) -> list[tuple[float, float]]:
    """(CPU ms, wall ms) of each of *count* processes, spread over *places*, one card each."""
    with ExitStack() as ends:
        tenants = []
        for number in range(count):
            card = number // PER_SLICE if on.node else 0
            tenants.append(on.start(places[card], "init", card=card))
            ends.callback(tenants[-1].end)
        for tenant in tenants:
            tenant.tell()
        answers = [tenant.hear() for tenant in tenants]
    return [(answer["cpu_ns"] / 1e6, answer["wall_ns"] / 1e6) for answer in answers]


def measure_count(on: Rig, count: int, repeat: int) -> tuple[list[float], list[float], float]:
    """(CPU ms added, bare CPU ms), one per repetition, and the slowest start in a slice."""
    added, bare = [], []
    slowest = 0.0
    cards = len(on.uuids)
    for _ in range(repeat):
        without = start_together(on, [on.bare()] * cards, count)
        slices = [on.slice(card, memory_bytes=60 * GIB, cores_percent=50) for card in range(cards)]
        within = start_together(on, [made.place for made in slices], count)
        bare.append(statistics.median(cpu for cpu, _ in without))
        added.append(statistics.median(cpu for cpu, _ in within) - bare[-1])
        slowest = max(slowest, *(wall for _, wall in within))
    return added, bare, slowest


def beyond_noise(grown: float, error: float) -> float:
    """How much of a growth is left when twice its standard error is taken off; never below zero."""
    return max(0.0, grown - 2 * error)


def measure() -> int:
    """Measure, print and write the report; 1 when a figure is not met."""
    counts = [int(word) for word in os.environ.get("STARTS", "1 16 64 300").split()]
    repeat = int(os.environ.get("REPEAT", "5"))
    if len(set(counts)) < 2 or max(counts) > CARDS * PER_SLICE:
        raise rig.RigError(f"STARTS must be two or more counts up to {CARDS * PER_SLICE}")
    found: dict[str, Figure] = {}
    bare_figures: dict[str, Figure] = {}
    series = []
    with rig.up(CARDS, PROFILE) as on:
        for count in counts:
            added, bare, slowest = measure_count(on, count, repeat)
            series.append(added)
            found[f"CPU added, {count} starts"] = Figure(
                round(statistics.median(added), 3), "ms", MAX_ADDED_MS
            )
            found[f"slowest start, {count} starts"] = Figure(round(slowest, 1), "ms")
            bare_figures[f"CPU, {count} starts"] = Figure(round(statistics.median(bare), 3), "ms")
            print(f"  {count} starts: added {[f'{value:.2f} ms' for value in added]}", flush=True)
        device, described = on.device, rig.described(on)
    grown, error = figures.growth(counts, series)
    span = f"{min(counts)} → {max(counts)} starts"
    found[f"growth of CPU added, {span}"] = Figure(round(grown, 3), "ms")
    found[f"growth of CPU added, {span}, standard error"] = Figure(round(error, 3), "ms")
    found["growth beyond twice its standard error"] = Figure(
        round(beyond_noise(grown, error), 3), "ms", 0
    )
    method = (
        "own CPU time of a process from dlopen to its first allocation, all released at once, at "
        f"most {PER_SLICE} of them in a slice and card; median of the slice's processes minus that "
        f"of the bare driver's, {repeat} repetitions in turns; growth by least squares over all; "
        f"{described}"
    )
    baselines = {"bare driver": bare_figures}
    return benchlib.publish(Report("init", method, device, found, baselines))


if __name__ == "__main__":
    sys.exit(rig.main_of(measure))
