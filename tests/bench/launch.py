# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-launch``: what the interception library adds to a kernel launch.

Batches of 64 launches are timed by the same program in several places: the bare driver, our library
without limits, our library with a limit that is not reached, a small foreign interposer, and the
one named by ``BASELINE``. They take turns, a few batches each, so that whatever else the machine
does meets all of them; a round's added time is its median minus the bare driver's of that round.

Environment: ``ROUNDS`` (default 60), ``BASELINE`` (path of another interposer, preloaded),
``DEVICE`` (``simulated`` or ``real``).
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import benchlib, figures, rig
from bench.benchlib import Figure, Report
from bench.rig import Place, Rig, Tenant

BATCHES = 50
LAUNCHES_PER_BATCH = 64  # as bench-load has it
KERNEL_NS = 200
THREADS = 2
LIMIT_PERCENT = 80
MAX_UNLIMITED_NS = 25
MAX_LIMITED_NS = 150
BARE = "bare driver"
UNLIMITED = "unlimited"
LIMITED = "limited"


def take_turns(tenants: Mapping[str, Tenant], rounds: int) -> dict[str, list[float]]:
    """Median ns per launch of each round, by place; the first round warms up and is dropped.

    Who begins changes from round to round: whoever comes first meets a processor that has slept.
    """
    found: dict[str, list[float]] = {name: [] for name in tenants}
    order = list(tenants)
    for _ in range(rounds + 1):
        for name in order:
            found[name].append(statistics.median(tenants[name].ask(BATCHES)))
        order.append(order.pop(0))
    return {name: medians[1:] for name, medians in found.items()}


def added(found: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """What *name* adds to the bare driver, round by round."""
    return [mine - bare for mine, bare in zip(found[name], found[BARE], strict=True)]


def against(ours_ns: float, theirs_ns: float) -> float | None:
    """How many times theirs ours costs; none where theirs can't be told from the bare driver."""
    return round(ours_ns / theirs_ns, 3) if theirs_ns > 0 else None


def two_figures(values: Sequence[float], what: str, target: float | None) -> dict[str, Figure]:
    """Median and spread of a series of nanoseconds."""
    return {
        what: Figure(round(statistics.median(values), 1), "ns", target),
        f"{what}, spread of rounds": Figure(round(figures.quartile_spread(values), 1), "ns"),
    }


def measure_threads(
    on: Rig, places: Mapping[str, Place], threads: int, rounds: int
) -> dict[str, list[float]]:
    """All places, one program each, launching from *threads* threads at once."""
    with ExitStack() as ends:
        tenants = {}
        for name, place in places.items():
            tenants[name] = on.start(place, "launch", rig.PTX, KERNEL_NS, threads)
            ends.callback(tenants[name].end)
        return take_turns(tenants, rounds)


def measure() -> int:
    """Measure, print and write the report; 1 when a figure is not met."""
    rounds = int(os.environ.get("ROUNDS", "60"))
    baseline = os.environ.get("BASELINE")
    with rig.up() as on:
        limited = on.slice(cores_percent=LIMIT_PERCENT)
        places = {
            BARE: on.bare(),
            UNLIMITED: on.slice(mode="none").place,
            LIMITED: limited.place,
            "small foreign interposer": on.behind(on.programs / "interposer.so"),
        }
        if baseline:
            if not Path(baseline).is_file():
                raise rig.RigError(f"BASELINE={baseline}: no such file")
            places[Path(baseline).name] = on.behind(Path(baseline).resolve())
        single = measure_threads(on, places, 1, rounds)
        throttled_ns = limited.ledger().throttled_ns
        unseen = (rounds + 1) * BATCHES * LAUNCHES_PER_BATCH - limited.ledger().launches
        several = measure_threads(on, places, THREADS, max(rounds // 4, 3))
        method = rig.described(on)
        device = on.device
    judged = {
        **two_figures(added(single, UNLIMITED), "added per launch, unlimited", MAX_UNLIMITED_NS),
        **two_figures(added(single, LIMITED), "added per launch, limited", MAX_LIMITED_NS),
        # A wait inside the limited batches would be the limit itself, not its price.
        "time throttled in the limited batches": Figure(throttled_ns / 1e6, "ms", 0),
        "limited launches the slice's ledger lacks": Figure(unseen, "launches", 0),
    }
    for name in (UNLIMITED, LIMITED):
        judged |= two_figures(
            added(several, name), f"added per launch, {name}, {THREADS} threads", None
        )
    ours = statistics.median(added(single, LIMITED))
    baselines = {BARE: two_figures(single[BARE], "per launch", None)}
    for name in set(places) - {BARE, UNLIMITED, LIMITED}:
        baselines[name] = two_figures(added(single, name), "added per launch", None)
        ratio = against(ours, baselines[name]["added per launch"].value)
        if baseline and name == Path(baseline).name and ratio is not None:
            judged[f"limited, against {name}"] = Figure(ratio, "times", 0.5)
    return benchlib.publish(
        Report(
            name="launch",
            method=(
                f"{rounds} rounds, in each {BATCHES} batches of {LAUNCHES_PER_BATCH} launches of a "
                f"{KERNEL_NS}-ns kernel per place, taking turns; a round's median minus the bare "
                f"driver's of the same round, median over rounds; limit {LIMIT_PERCENT} %, not "
                f"reached; {method}"
            ),
            device=device,
            figures=judged,
            baselines=baselines,
        )
    )


if __name__ == "__main__":
    sys.exit(rig.main_of(measure))
