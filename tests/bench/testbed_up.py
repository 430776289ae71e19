# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-testbed``: how long three nodes with their Kubernetes take once everything is built.

Each round removes the testbed and makes it again, then runs ``up`` once more on the running one.
The first ``up`` builds what is missing and is not counted. ``ROUNDS`` (default 3).
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from e2e.platform import ROOT, run

from bench import benchlib
from bench.benchlib import Figure, Report

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "cluster.yaml"
NAME = f"bench-{os.getpid()}"
MAX_UP_S = 60.0


def testbed(verb: str, *arguments: str) -> float:
    """Seconds that one verb of the testbed takes; an error when it fails."""
    started = time.monotonic()
    run([sys.executable, "-m", "testbed", verb, *arguments, "--name", NAME])
    return time.monotonic() - started


def measure(rounds: int) -> dict[str, Figure]:
    """Medians over the rounds."""
    fresh, again = [], []
    try:
        testbed("up", str(TOPOLOGY))
        for _ in range(rounds):
            testbed("down")
            fresh.append(testbed("up", str(TOPOLOGY)))
            again.append(testbed("up", str(TOPOLOGY)))
    finally:
        testbed("down")
    return {
        "up of three nodes, built before": Figure(
            round(statistics.median(fresh), 1), "s", MAX_UP_S
        ),
        "slowest of these": Figure(round(max(fresh), 1), "s"),
        "up of the running three": Figure(round(statistics.median(again), 1), "s"),
    }


def main() -> int:
    """Measure, print and write the report; 1 when the figure is not met."""
    rounds = int(os.environ.get("ROUNDS", "3"))
    return benchlib.publish(
        Report(
            name="testbed",
            method=f"python -m testbed up {TOPOLOGY.name}, wall time, median of {rounds}",
            device="none",
            figures=measure(rounds),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
