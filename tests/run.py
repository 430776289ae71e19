# SPDX-License-Identifier: GPL-3.0-or-later
"""``make test``: runs the areas, some at the same time, and ends with the minutes of each.

A failed area does not hide the others. A test that was skipped although it is on the must-run list
(``tests/must_run.txt``) fails its area; see ``tests/conftest.py``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-rs", "--durations=5"]


@dataclass(frozen=True)
class Area:
    """One part of the test suite: commands that run in order, all of them."""

    name: str
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """What became of one area. ``seconds`` is wall time."""

    area: str
    seconds: float
    failed: tuple[str, ...]


def pytest(*paths: str) -> tuple[str, ...]:
    return (*PYTEST, *paths)


PREPARE = Area("build", ((sys.executable, "-m", "testbed.artefacts", "--out", "build/artefacts"),))
SANITY = Area("sanity", ((sys.executable, "tests/sanity/run.py"),))
UNIT = Area(
    "unit",
    (pytest("tests/unit", "native/build/tests", "tests/testbed/tests/unit"),),
)
NATIVE = Area(
    "native",
    (
        (sys.executable, "-m", "xpubuild", "go-test", "native/cluster", "native/volcano"),
        pytest(
            "native/common/tests",
            "native/cuda/tests",
            "native/ascend/tests",
            "tests/simulators/tests",
            "tests/simulators/ascend",
            "tests/bench/tests",
        ),
    ),
)
# A process of its own: the conductor brings its own packages (native/syshax/requirements.txt).
SYSHAX = Area("syshax", (pytest("native/syshax/tests"),))
# Its groups wait for beats and time limits, not for the processor: six at a time.
GROUP = Area("group", (pytest("-n", "6", "--dist", "loadgroup", "tests/group"),))
INTEGRATION = Area(
    "integration",
    (pytest("tests/testbed/tests/live", "tests/simulators/installers", "tests/integration"),),
)
E2E = Area("e2e", (pytest("tests/e2e"),))
SOAK = Area(
    "soak",
    (
        (sys.executable, "-m", "xpubuild", "go-test", "--soak", "native/volcano"),
        pytest("-m", "soak", "tests", "native"),
    ),
)

# The areas of a group run at the same time: integration mostly waits for hosts to boot. What
# measures time, if only by the simulated card's ledger, has the machine for itself.
Group = tuple[Area, ...]
AREAS: dict[str, tuple[Group, ...]] = {
    "all": ((PREPARE,), (SANITY,), (UNIT, INTEGRATION), (NATIVE,), (SYSHAX,), (GROUP,), (E2E,)),
    "sanity": ((SANITY,),),
    "unit": ((UNIT,),),
    "native": ((NATIVE,),),
    "syshax": ((SYSHAX,),),
    "group": ((GROUP,),),
    "integration": ((PREPARE,), (INTEGRATION,)),
    "e2e": ((PREPARE,), (E2E,)),
    "soak": ((PREPARE,), (SOAK,)),
}


def run_area(
    area: Area, execute: Callable[[tuple[str, ...]], int], clock: Callable[[], float]
) -> Result:
    """Run every command of *area*, also after one failed; remember the ones that did."""
    started = clock()
    failed = tuple(" ".join(command) for command in area.commands if execute(command) != 0)
    return Result(area.name, clock() - started, failed)


def run_group(
    group: Group,
    aloud: Callable[[tuple[str, ...]], int],
    quietly: Callable[[tuple[str, ...]], int],
    clock: Callable[[], float],
) -> list[Result]:
    """Run areas at the same time; of several each speaks when one of its commands has ended."""
    execute = aloud if len(group) == 1 else quietly
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(lambda area: run_area(area, execute, clock), group))


def report(results: list[Result], seconds: float) -> str:
    """The closing table, and one line that a CI can read. *seconds* is what all took together."""
    lines = ["", "minutes per area"]
    for result in results:
        verdict = "failed" if result.failed else "passed"
        lines.append(f"  {result.area:<12} {result.seconds / 60:6.1f}  {verdict}")
        lines.extend(f"      failed: {command}" for command in result.failed)
    lines.append(f"  {'all':<12} {seconds / 60:6.1f}")
    bad = sum(1 for result in results if result.failed)
    lines.append(f"areas: {len(results) - bad} passed, {bad} failed")
    return "\n".join(lines)


def execute(command: tuple[str, ...]) -> int:
    print(f"\n=== {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def execute_quietly(command: tuple[str, ...]) -> int:
    done = subprocess.run(
        command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(f"\n=== {' '.join(command)}\n{done.stdout}", flush=True)
    return done.returncode


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[1] not in AREAS:
        print(f"usage: run.py {'|'.join(AREAS)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    results = [
        result
        for group in AREAS[argv[1]]
        for result in run_group(group, execute, execute_quietly, time.monotonic)
    ]
    print(report(results, time.monotonic() - began))
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
