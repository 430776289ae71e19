# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-scheduler``: what huawei-xpu costs Volcano, what its policies leave of cards.

``native/volcano/bench`` runs Volcano's own sessions in one process for each measurement; this
module lets the ways take turns and judges what they say. ``fake_nodes.py`` is the check against an
API server.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpubuild.toolchain import REPOSITORY, go_build

from bench import fake_nodes
from bench.benchlib import Figure, Report, publish
from bench.figures import quartile_spread

MODULE = REPOSITORY / "native/volcano"
SCALAR, OURS, DEVICESHARE = "scalar", "huawei-xpu", "deviceshare"
WAYS = (SCALAR, OURS, DEVICESHARE)
POLICIES = ("first-fit", "binpack", "spread", "topology")
WEEK_NODES, WEEK_SEEDS = 24, 5
FIT_AT = (0.1, 0.2, 0.4, 0.7, 1.0)  # of all nodes
FIT_PODS = 200
FAKE_NODES, FAKE_PODS = 200, 1000

MOST_ADDED_PERCENT = 5.0
MOST_OF_DEVICESHARE = 1.0
MOST_EXPONENT = 1.1  # 1 is linear
LEAST_LINKED_PERCENT = 90.0

Sample = Mapping[str, Any]


def ask(program: Path, *words: object) -> Sample:
    """One measurement in a process of its own."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {' '.join(map(str, words))}: {done.stderr[-2000:]}")
    found: Sample = json.loads(done.stdout)
    return found


def added_percent(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """What *other* costs over *base*, turn by turn."""
    return [100 * (b / a - 1) for a, b in zip(base, other, strict=True)]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """k of the best fit cost = c · size^k."""
    xs = [math.log(size) for size, _ in points]
    ys = [math.log(cost) for _, cost in points]
    return statistics.linear_regression(xs, ys).slope


def unbound(samples: Mapping[str, Sequence[Sample]], pods: int) -> int:
    """Pods that some way left behind: then the ways did not do the same work."""
    return sum(pods - sample["bound"] for found in samples.values() for sample in found)


def cost_figures(samples: Mapping[str, Sequence[Sample]], pods: int) -> dict[str, Figure]:
    """The judged figures of one decision."""
    cost = {way: [sample["decision_us"] for sample in found] for way, found in samples.items()}
    added = added_percent(cost[SCALAR], cost[OURS])
    ratio = [ours / theirs for ours, theirs in zip(cost[OURS], cost[DEVICESHARE], strict=True)]
    return {
        "CPU a decision, over Volcano by sums": Figure(
            statistics.median(added), "%", MOST_ADDED_PERCENT
        ),
        "its spread between quartiles": Figure(quartile_spread(added), "points"),
        "CPU a decision, of deviceshare's": Figure(
            statistics.median(ratio), "×", MOST_OF_DEVICESHARE
        ),
        "pods left behind": Figure(unbound(samples, pods), "pods", 0),
    }


def way_figures(found: Sequence[Sample]) -> dict[str, Figure]:
    """What one way took."""
    return {
        "CPU a decision": Figure(statistics.median(s["decision_us"] for s in found), "µs"),
        "spread between quartiles": Figure(
            quartile_spread([s["decision_us"] for s in found]), "µs"
        ),
        "CPU of an idle session": Figure(
            statistics.median(s["idle_session_us"] for s in found) / 1000, "ms"
        ),
    }


def week_figures(weeks: Sequence[Sample]) -> dict[str, Figure]:
    """Means over the seeds for one policy."""
    names = {
        "free cores on cards in use": "fragmented_percent",
        "the same at the week's end": "fragmented_at_end_percent",
        "pods refused": "refused_percent",
        "whole cards refused": "whole_refused_percent",
        "cores in use": "cores_used_percent",
        "pairs of cards that are linked": "linked_percent",
    }
    return {
        name: Figure(statistics.mean(week[key] for week in weeks), "%")
        for name, key in names.items()
    }


def judged_weeks(weeks: Mapping[str, Mapping[str, Figure]]) -> dict[str, Figure]:
    """binpack leaves less in pieces than first-fit, topology keeps pairs together."""
    stranded, linked = "free cores on cards in use", "pairs of cards that are linked"
    return {
        "binpack: free cores on cards in use": Figure(
            weeks["binpack"][stranded].value, "%", weeks["first-fit"][stranded].value
        ),
        "topology: pairs of cards that are linked": Figure(
            weeks["topology"][linked].value, "%", LEAST_LINKED_PERCENT, better="higher"
        ),
    }


def main() -> int:
    nodes = int(os.environ.get("NODES", "1000"))
    pods = int(os.environ.get("PODS", "5000"))
    rounds = int(os.environ.get("ROUNDS", "3"))
    fake_count = int(os.environ.get("FAKE_NODES", str(FAKE_NODES)))
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "bench"
        go_build(MODULE, {program: "./bench"})
        samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
        for turn in range(rounds):
            for place in range(len(WAYS)):
                way = WAYS[(turn + place) % len(WAYS)]
                found = ask(program, "-way", way, "-nodes", nodes, "-pods", pods)
                samples[way].append(found)
                print(f"  {way}: {found['decision_us']:.0f} µs a decision", file=sys.stderr)
        points = []
        for part in FIT_AT:
            size = round(nodes * part)
            costs = [
                ask(program, "-way", OURS, "-nodes", size, "-pods", FIT_PODS, "-idle", 0)
                for _ in range(rounds)
            ]
            points.append((float(size), statistics.median(c["decision_us"] for c in costs)))
        weeks = {
            policy: week_figures(
                [
                    ask(program, "-way", "week", "-policy", policy, "-nodes", WEEK_NODES,
                        "-seed", seed)
                    for seed in range(1, WEEK_SEEDS + 1)
                ]
            )
            for policy in POLICIES
        }  # fmt: skip
    fit = {
        "CPU grows with nodes to the power of": Figure(exponent(points), "", MOST_EXPONENT),
        **{f"CPU a decision at {size:.0f} nodes": Figure(cost, "µs") for size, cost in points},
    }
    checked = fake_nodes.check(fake_count, FAKE_PODS) if fake_count else {}
    report = Report(
        name="scheduler",
        method=f"{nodes} nodes × 8 cards, {pods} pods of five shapes in one session of Volcano's "
        f"own actions and plugins, {rounds} turns, each in its own process; CPU of the process, "
        f"user and system, medians. deviceshare's PATCH of each pod is left out. Fit with "
        f"{FIT_PODS} pods. Weeks: {WEEK_NODES} nodes, means of {WEEK_SEEDS} seeds, the same "
        f"arrivals for each policy. Against an API server: {fake_count} nodes of kwok, "
        f"{FAKE_PODS} pods that wait when the shipped vc-scheduler starts; each placement judged",
        device="no card: Volcano's scheduler cache without an API server, but for the check",
        figures={**cost_figures(samples, pods), **fit, **judged_weeks(weeks), **checked},
        baselines={
            **{way: way_figures(found) for way, found in samples.items()},
            **{f"a week of {policy}:": figures for policy, figures in weeks.items()},
        },
    )
    return publish(report)


if __name__ == "__main__":
    sys.exit(main())
