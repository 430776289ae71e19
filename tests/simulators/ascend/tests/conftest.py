# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: simulated Ascend nodes, and processes that use their chips; all end with the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulators import simnode
from simulators.ascend import simnpu
from testbed.recipes import ascend, simulators
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.toolchain import zig_version

HERE = Path(__file__).resolve().parent


@pytest.fixture
def npus(tmp_path: Path) -> Iterator[Callable[..., simnpu.Node]]:
    """Starts a node with the profiles asked for."""
    started: list[Path] = []

    def start(*profiles: str, version: str = ascend.DRIVER_VERSION) -> simnpu.Node:
        directory = tmp_path / f"npu{len(started)}"
        node = simnpu.up(directory, profiles or ("ascend-910b3",), version)
        started.append(directory)
        return node

    yield start
    for directory in started:
        simnode.down(directory)


@pytest.fixture(scope="session")
def holder_program() -> Path:
    """holder.cc, built."""
    root = simulators.SOURCES
    rooms = [root / room for room in ("engine", "ascend/node")]
    product = simulators.Product("holder", (*ascend.VENDOR, "ascend/tests/holder.cc"))

    def build(out: Path) -> None:
        simulators.link_all([product], out, [f"-I{room}" for room in rooms])

    inputs = {
        "sources": digest_tree([*rooms, HERE / "holder.cc"], root),
        "zig": zig_version(),
    }
    return Cache().get(Recipe("simulators-ascend-tests", inputs, build)) / "holder"


@pytest.fixture
def hold(holder_program: Path) -> Iterator[Callable[..., int]]:
    """Starts a process that holds memory of a card and has kept it busy; returns its pid."""
    running: list[subprocess.Popen[str]] = []

    def start(node: simnpu.Node, card: int, mib: int, busy_ms: int = 1) -> int:
        process = subprocess.Popen(
            [holder_program, str(card), str(mib), str(busy_ms)],
            env={**os.environ, **node.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        return process.pid

    yield start
    for process in running:
        process.kill()
        process.wait(10)
