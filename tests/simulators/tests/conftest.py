# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: nodes and tenants that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulators import simnode
from simulators.tests.harness import Tenant


@pytest.fixture
def node_of(tmp_path: Path) -> Iterator[Callable[..., simnode.Node]]:
    """Starts nodes with the profiles asked for; they end with the test."""
    started: list[Path] = []

    def start(*profiles: str) -> simnode.Node:
        directory = tmp_path / f"node{len(started)}"
        node = simnode.up(directory, profiles or ("a100-40g",))
        started.append(directory)
        return node

    yield start
    for directory in started:
        simnode.down(directory)


@pytest.fixture
def node(node_of: Callable[..., simnode.Node]) -> simnode.Node:
    return node_of()


@pytest.fixture
def tenant() -> Iterator[Callable[..., Tenant]]:
    """Starts tenants; whichever still runs at the end of the test is killed."""
    running: list[Tenant] = []

    def start(node: simnode.Node, *words: object, prefix: tuple[str, ...] = ()) -> Tenant:
        running.append(Tenant(node, *words, prefix=prefix))
        return running[-1]

    yield start
    for one in running:
        one.end()
