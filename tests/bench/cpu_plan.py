# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-cpu-plan``: 1,000 NUMA plans of machines of every shape."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.cpu_plan import cpu_plan

from bench.benchlib import Figure, Report, publish

PLANS, ROUNDS, SEED = 1000, 5, 20261121
Number = Callable[[int, int, int], int]


def machine(
    nodes: int,
    cores: int | Sequence[int],
    smt: int = 1,
    offline: Collection[int] = (),
    number: Number | None = None,
) -> dict[str, Any]:
    """``lscpu -J`` of a machine. *number* gives CPU numbers from node, core and sibling; by default
    cores are numbered node by node, and all second siblings after all first ones."""
    sizes = [cores] * nodes if isinstance(cores, int) else list(cores)
    total = sum(sizes)

    def usual(node: int, core: int, sibling: int) -> int:
        return sibling * total + sum(sizes[:node]) + core

    rows = []
    for node, size in enumerate(sizes):
        for core in range(size):
            for sibling in range(smt):
                cpu = (number or usual)(node, core, sibling)
                online = "no" if cpu in offline else "yes"
                rows.append(
                    {
                        "cpu": cpu, "node": node, "socket": node,
                        "core": sum(sizes[:node]) + core, "online": online,
                    }
                )  # fmt: skip
    return {"cpus": rows}


def some_machine(chance: random.Random) -> dict[str, Any]:
    """One of the shapes that servers have; up to 512 CPUs."""
    nodes = chance.choice([1, 2, 4, 8])
    cores = chance.choice([8, 24, 32])
    step = chance.choice([None, nodes])
    number: Number | None = None
    if step is not None:
        stride = step

        def interleaved(node: int, core: int, sibling: int) -> int:
            return (sibling * cores + core) * stride + node

        number = interleaved
    offline = {chance.randrange(nodes * cores) for _ in range(chance.randrange(4))}
    return machine(nodes, cores, chance.choice([1, 2]), offline, number)


def main() -> int:
    chance = random.Random(SEED)
    machines = [some_machine(chance) for _ in range(PLANS)]
    seconds, refused = [], 0
    for _ in range(ROUNDS):
        refused = 0
        began = time.perf_counter()
        for facts in machines:
            try:
                cpu_plan(facts, reserve_per_node=2)
            except AnsibleFilterError:
                refused += 1
        seconds.append(time.perf_counter() - began)
    figures = {
        f"{PLANS} plans": Figure(statistics.median(seconds), "s", 1.0),
        "spread": Figure(max(seconds) - min(seconds), "s"),
        "refused": Figure(refused, "plans"),
        "CPUs of a machine, mean": Figure(
            statistics.fmean(len(facts["cpus"]) for facts in machines), "CPUs"
        ),
    }
    method = f"median of {ROUNDS} rounds over {PLANS} machines of 8 to 512 CPUs, seed {SEED}"
    return publish(Report("cpu_plan", method, "none", figures))


if __name__ == "__main__":
    sys.exit(main())
