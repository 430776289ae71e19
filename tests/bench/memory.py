# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-memory``: is the memory quota exact on every path, and what does it cost?

- On each way to allocate, processes of one slice take all they are granted, racing each other.
  What they then own with their contexts, by the card's ledger or by their own count, whichever is
  more, may not exceed the quota by a byte.
- A refusal is timed alone; an allocation and a free are timed in turns with the bare driver's.

Environment: ``ROUNDS`` (default 60), ``DEVICE`` (``simulated`` or ``real``).
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench import benchlib, figures, rig
from bench.benchlib import Figure, Report
from bench.rig import Place, Rig

PATHS = (
    "cuMemAlloc",
    "cuMemAllocPitch",
    "cuMemAllocManaged",
    "cuMemAllocAsync",
    "cuMemAllocFromPoolAsync",
    "cuMemPoolCreate",
    "cuGraphLaunch",
    "cuCtxCreate",
    "cuMemCreate",
    "cuArrayCreate",
    "cuArray3DCreate",
    "cuMipmappedArrayCreate",
)
MIB = 1 << 20
QUOTA = 3072 * MIB
PIECE = 37 * MIB + 4096  # fits neither the quota nor a granule evenly
RACERS = 4
BATCHES = 20
REFUSALS = 200
SMALL = 4 * MIB
MAX_REFUSAL_US = 10
MAX_ADDED_NS = 300


@dataclass(frozen=True)
class Filled:
    """What racing processes of one slice own when nothing more is granted."""

    by_their_count: int
    by_the_card: int

    @property
    def over_quota(self) -> int:
        """Bytes beyond the quota, by whichever count is higher."""
        return max(0, max(self.by_their_count, self.by_the_card) - QUOTA)

    @property
    def unused(self) -> int:
        """Bytes of the quota that nobody was given."""
        return max(0, QUOTA - max(self.by_their_count, self.by_the_card))


def context_bytes(on: Rig) -> int:
    """What a context takes of the card, by the referee; 0 where it keeps no ledger."""
    tenant = on.start(on.bare(), "allocate", SMALL)
    try:
        return on.memory([tenant])[0]
    finally:
        tenant.end()


def fill(on: Rig, path: str, racers: int) -> Filled | None:
    """Let *racers* processes fill one slice by *path*; None where the driver has no such path."""
    context = context_bytes(on)
    place = on.slice(memory_bytes=QUOTA, context_bytes=context).place
    with ExitStack() as ends:
        tenants = []
        for _ in range(racers):
            tenants.append(on.start(place, "fill", path, PIECE))
            ends.callback(tenants[-1].end)
        for tenant in tenants:
            tenant.tell()
        answers = [tenant.hear() for tenant in tenants]
        if any("missing" in answer for answer in answers):
            return None
        held = on.memory(tenants)
    granted = sum(answer["granted"] for answer in answers)
    return Filled(granted + context * racers, sum(held))


def quota_figures(on: Rig) -> tuple[dict[str, Figure], list[str]]:
    """(a figure per path, the paths this driver does not have)."""
    found: dict[str, Figure] = {}
    missing = []
    for path in PATHS:
        for racers, who in ((1, "1 process"), (RACERS, f"{RACERS} racing")):
            filled = fill(on, path, racers)
            if filled is None:
                missing.append(path)
                break
            found[f"over quota, {path}, {who}"] = Figure(filled.over_quota, "bytes", 0)
            found[f"left unused, {path}, {who}"] = Figure(filled.unused / MIB, "MiB")
    return found, missing


def time_refusals(on: Rig) -> dict[str, Figure]:
    """How long a refusal takes: ours by quota, beside the driver's own by what the card has."""
    with ExitStack() as ends:

        def median_us(
            place: Place, held: int, size: int, path: str = "cuMemAlloc"
        ) -> tuple[float, float]:
            tenant = on.start(place, "refuse", held, size, path)
            ends.callback(tenant.end)
            tenant.ask(REFUSALS)
            each = [nanoseconds / 1000 for nanoseconds in tenant.ask(REFUSALS)]
            return statistics.median(each), figures.percentile(each, 99)

        # Nearly full, so that the answer needs what all processes of the slice hold.
        place = on.slice(memory_bytes=QUOTA).place
        ours, ours_p99 = median_us(place, QUOTA - SMALL, 2 * SMALL)
        pooled, _ = median_us(
            on.slice(memory_bytes=QUOTA).place, QUOTA - SMALL, 2 * SMALL, "cuMemAllocAsync"
        )
        bare, _ = median_us(on.bare(), 0, 1 << 40)
    return {
        "a refusal": Figure(round(ours, 3), "µs", MAX_REFUSAL_US),
        "a refusal, p99": Figure(round(ours_p99, 3), "µs"),
        "a refusal by cuMemAllocAsync": Figure(round(pooled, 3), "µs", MAX_REFUSAL_US),
        "a refusal by the bare driver": Figure(round(bare, 3), "µs"),
    }


def added(ours: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Median and spread of what we add, round by round."""
    differences = [mine - theirs for mine, theirs in zip(ours, bare, strict=True)]
    return {
        "median": round(statistics.median(differences), 1),
        "spread": round(figures.quartile_spread(differences), 1),
    }


def time_allocations(on: Rig, rounds: int) -> dict[str, Figure]:
    """What we add to an allocation and to a free, in turns with the bare driver."""
    places: Mapping[str, Place] = {
        "bare": on.bare(),
        "slice": on.slice(memory_bytes=QUOTA).place,
    }
    medians: dict[str, dict[str, list[float]]] = {
        name: {"allocate": [], "free": []} for name in places
    }
    with ExitStack() as ends:
        tenants = {name: on.start(place, "allocate", SMALL) for name, place in places.items()}
        for tenant in tenants.values():
            ends.callback(tenant.end)
            tenant.ask(BATCHES)
        for _ in range(rounds):
            for name, tenant in tenants.items():
                for what, values in tenant.ask(BATCHES).items():
                    medians[name][what].append(statistics.median(values))
    found = {}
    for what, target in (("allocate", MAX_ADDED_NS), ("free", None)):
        more = added(medians["slice"][what], medians["bare"][what])
        found[f"added to {what}"] = Figure(more["median"], "ns", target)
        found[f"added to {what}, spread of rounds"] = Figure(more["spread"], "ns")
        bare = statistics.median(medians["bare"][what])
        found[f"{what} by the bare driver"] = Figure(round(bare, 1), "ns")
    return found


def measure() -> int:
    """Measure, print and write the report; 1 when a figure is not met."""
    rounds = int(os.environ.get("ROUNDS", "60"))
    with rig.up() as on:
        over, missing = quota_figures(on)
        found = {**over, **time_refusals(on), **time_allocations(on, rounds)}
        lacking = f"; the driver has no {', '.join(missing)}" if missing else ""
        method = (
            f"quota {QUOTA // MIB} MiB, pieces of {PIECE} bytes, halved when refused, to 64 KiB; "
            f"medians of {REFUSALS} refusals and of {rounds} rounds of {BATCHES} batches of 64 "
            f"allocations of {SMALL // MIB} MiB in turns with the bare driver{lacking}; "
            f"{rig.described(on)}"
        )
        device = on.device
    return benchlib.publish(Report("memory", method, device, found))


if __name__ == "__main__":
    sys.exit(rig.main_of(measure))
