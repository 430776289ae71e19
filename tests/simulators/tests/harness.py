# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests share: tenants, the ledger, the compiled tests of the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulators import simnode
from testbed.recipes import simulators
from xpubuild.cache import Cache, Recipe, digest_file, digest_tree
from xpubuild.toolchain import run, zig_cxx, zig_version

HERE = Path(__file__).resolve().parent
TENANT = (sys.executable, "-m", "simulators.tests.tenant")
HANGS_SECONDS = 60
ENGINE_TEST = (
    "tests/engine_test.cc",
    "engine/card.cc",
    "engine/schedule.cc",
    "engine/hardware.cc",
    "kernels/kernels.cc",
    "kernels/image.cc",
)


def engine_test() -> Path:
    """The engine's own tests, compiled; see check.h for how the program is driven."""
    root = simulators.SOURCES

    def build(out: Path) -> None:
        rooms = [f"-I{root / room}" for room in ("engine", "kernels", "tests")]
        sources = [root / source for source in ENGINE_TEST]
        run(
            [
                *zig_cxx(),
                "-std=c++17",
                "-O1",
                *rooms,
                *sources,
                "-lpthread",
                "-o",
                out / "engine_test",
            ]
        )

    inputs = {
        "rooms": digest_tree([root / "engine", root / "kernels", HERE / "engine_test.cc"], root),
        "harness": digest_file(HERE / "check.h"),
        "zig": zig_version(),
    }
    return Cache().get(Recipe("simulators-tests", inputs, build)) / "engine_test"


def environment(node: simnode.Node) -> dict[str, str]:
    """A tenant's environment on *node*."""
    return {**os.environ, **node.environment, "PYTHONPATH": str(HERE.parents[1])}


class Tenant:
    """A process that uses a card: tenant.py with one verb, which prints JSON lines."""

    def __init__(self, node: simnode.Node, *words: object, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, *TENANT, *map(str, words)],
            env=environment(node),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> dict[str, Any]:
        """The next line, which must come: a tenant that dies ends the test with its exit code."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the tenant ended with {self.process.wait(10)} and said nothing"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def go(self) -> None:
        """Let a tenant that waits for its start begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)


def ledger(node: simnode.Node, *options: str) -> list[dict[str, Any]]:
    """What the cards really did: the referee."""
    processes: list[dict[str, Any]] = reading(node, *options)["processes"]
    return processes


def reading(node: simnode.Node, *options: str) -> dict[str, Any]:
    """The ledger with the instant to which it was settled (``monotonic_ns``)."""
    answer: dict[str, Any] = json.loads(node.run("simgpu", "ledger", "--json", *options))
    return answer


def await_ledger(node: simnode.Node, wanted: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Wait until the ledger is as wanted: the daemon hears of a death after it has happened.

    The limit only ends a test that would never end; nothing is judged by it.
    """
    deadline = time.monotonic() + HANGS_SECONDS
    while not wanted(found := ledger(node)):
        assert time.monotonic() < deadline, f"the ledger stays at {found}"
        time.sleep(0.01)


def queue_up(tenants: list[Tenant]) -> list[int]:
    """Let tenants with verb ``backlog`` queue their work; their pids."""
    pids = [one.says()["pid"] for one in tenants]
    for one in tenants:
        one.go()
    for one in tenants:
        one.says()
    return pids
