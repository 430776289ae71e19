# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-recovery``: how long does a serving group answer nobody after a process was killed?

Three members with a stub engine that loads in no time: what is measured is the supervisor. From the
SIGKILL to the first answer to a client in another epoch than before. Every process of an engine is
killed in turn, in every member; then a container's first process, which a kubelet starts again
after RESTART_S (its look at the runtime and the start itself; the first time it does not wait).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from group.members import Group, Network

from bench.benchlib import Figure, Report, publish
from bench.figures import percentile

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MEMBERS = 3
FAILURE_TIMEOUT_S = 5
RESTART_S = 2.0
TARGET_S = 10.0
# Of no answer at all: then the figure is this, and not met.
PATIENCE_S = 120.0
KINDS = ("shell", "main", "core", "rank")


@contextmanager
def serving_group(directory: Path) -> Iterator[Group]:
    settings = {
        "FLEXAI_GROUP_FAILURE_TIMEOUT": str(FAILURE_TIMEOUT_S),
        "FLEXAI_MAX_GROUP_RESTARTS": "1000000",
    }
    with Network(MEMBERS) as network:
        group = Group(directory, network, settings)
        try:
            group.start()
            group.wait_serving()
            yield group
        finally:
            group.stop()


def answered_after(group: Group, epoch: str, killed: float) -> float:
    """Seconds from *killed* to the first answer in another epoch than *epoch*."""
    while time.monotonic() - killed < PATIENCE_S:
        if group.epoch() not in ("", epoch) and group.complete(patience_s=PATIENCE_S)[0] == 200:
            return time.monotonic() - killed
        time.sleep(0.05)
    print(group.logs(), file=sys.stderr)
    return PATIENCE_S


def victim(group: Group, index: int, kind: str) -> int:
    if kind == "shell":
        return next(p.pid for p in group.members[index].engine() if p.name == "bash")
    return group.members[index].engine_process(kind)


def engines(directory: Path) -> list[float]:
    """After the death of one process of an engine."""
    found = []
    with serving_group(directory) as group:
        for _ in range(ROUNDS):
            for index in range(MEMBERS):
                for kind in KINDS:
                    epoch = group.wait_serving()
                    pid = victim(group, index, kind)
                    killed = time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    found.append(answered_after(group, epoch, killed))
                    print(f"  member {index}, {kind}: {found[-1]:.1f} s", file=sys.stderr)
    return found


def containers(directory: Path) -> list[float]:
    """After the first death of a container's first process; each in a group of its own."""
    found = []
    for turn in range(ROUNDS):
        for index in range(MEMBERS):
            with serving_group(directory / f"{turn}-{index}") as group:
                epoch = group.wait_serving()
                dead = group.members[index]
                killed = time.monotonic()
                dead.kill()
                dead.wait_end()
                time.sleep(RESTART_S)
                dead.start()
                found.append(answered_after(group, epoch, killed))
                print(f"  container of member {index}: {found[-1]:.1f} s", file=sys.stderr)
    return found


def run(directory: Path) -> Report:
    of_engines = engines(directory / "engines")
    of_containers = containers(directory / "containers")
    figures = {
        "engine process killed, p95": Figure(percentile(of_engines, 95), "s", TARGET_S),
        "engine process killed, median": Figure(percentile(of_engines, 50), "s"),
        "engine process killed, worst": Figure(max(of_engines), "s"),
        "container killed, p95": Figure(percentile(of_containers, 95), "s", TARGET_S),
        "container killed, median": Figure(percentile(of_containers, 50), "s"),
        "container killed, worst": Figure(max(of_containers), "s"),
        "kills": Figure(len(of_engines) + len(of_containers), "times"),
    }
    method = (
        f"{MEMBERS} members in namespaces, run.sh their PID 1, group_failure_timeout "
        f"{FAILURE_TIMEOUT_S} s; SIGKILL of each of {', '.join(KINDS)} in each member, and of each "
        f"container's PID 1 (started again {RESTART_S:g} s later), {ROUNDS} times; until the first "
        "answer in another epoch"
    )
    return Report("recovery", method, "stub engine", figures)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-recovery-") as directory:
        return publish(run(Path(directory)))


if __name__ == "__main__":
    sys.exit(main())
