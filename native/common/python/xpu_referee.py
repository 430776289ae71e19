# SPDX-License-Identifier: Apache-2.0
"""What a simulated card says about its tenants, for the tests of a slice.

The referee is the card's own ledger, never the slice's figures. Tolerance: 2 points of the card
over windows of 1 or 2 s. No window may be above the share by more. One may be below, because a
tenant that gets no processor launches nothing and unused time is not saved up; but of WINDOWS in a
row one must reach it.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from simulators import simnode
from xpu_slice import LOAD, Slice
from xpubuild.toolchain import REPOSITORY

SPIN = REPOSITORY / "tests" / "simulators" / "kernels" / "spin.ptx"
TOLERANCE_POINTS = 2.0
WINDOWS = 5
HANGS_SECONDS = 60
NO_BURST = {"tau_ns": 20_000_000}  # the mean is the share from the start on


def referee(node: simnode.Node, pids: Sequence[int]) -> tuple[int, int]:
    """(card time these processes used, up to when), by the simulated card's own ledger."""
    ledger = json.loads(node.run("simgpu", "ledger", "--json", "--dead"))
    used = [entry["busy_ns"] for entry in ledger["processes"] if entry["pid"] in pids]
    return sum(used), ledger["monotonic_ns"]


def busy_ns(node: simnode.Node, pids: Sequence[int]) -> int:
    return referee(node, pids)[0]


@dataclass
class Window:
    """A stretch of the referee's time; `share` is in percent of the card once it is over."""

    node: simnode.Node
    pids: Sequence[int]
    share: float = 0.0
    seconds: float = 0.0
    busy_seconds: float = 0.0

    def __enter__(self) -> Window:
        self._busy, self._begin = referee(self.node, self.pids)
        return self

    def __exit__(self, *_: object) -> None:
        busy, end = referee(self.node, self.pids)
        self.seconds, self.busy_seconds = (end - self._begin) / 1e9, (busy - self._busy) / 1e9
        self.share = 100 * self.busy_seconds / self.seconds


def assert_share(
    node: simnode.Node, pids: Sequence[int], percent: float, seconds: float = 2.0
) -> None:
    """Never above *percent*, and in one of WINDOWS windows as much (see the top of this file)."""
    seen = []
    for _ in range(WINDOWS):
        with Window(node, pids) as window:
            time.sleep(seconds)
        seen.append(round(window.share, 2))
        if window.share > percent + TOLERANCE_POINTS:
            break
        if window.share >= percent - TOLERANCE_POINTS:
            return
    pytest.fail(f"the card says {seen} % over {seconds} s each, granted were {percent} %")


def await_work(node: simnode.Node, pids: Sequence[int], at_least_ns: int = 1) -> None:
    """Wait until each of them has run on the card; only a hang ends it otherwise."""
    deadline = time.monotonic() + HANGS_SECONDS
    while any(busy_ns(node, [pid]) < at_least_ns for pid in pids):
        assert time.monotonic() < deadline, "the load does not run"
        time.sleep(0.02)


@contextmanager
def load(within: Slice, port: int, kernel_us: int, depth: int = 4) -> Iterator[int]:
    """The demo's tenant as a process of the slice; yields its pid."""
    options = ["--kernel-us", kernel_us, "--depth", depth]
    argv = [sys.executable, LOAD, "--port", port, "serve", *options]
    process = within.start([str(word) for word in argv])
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("gpu_load:"), f"the load did not start: {line!r}"
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
