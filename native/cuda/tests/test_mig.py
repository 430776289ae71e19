# SPDX-License-Identifier: Apache-2.0
"""A slice of a MIG instance: held to its share of the instance, and shown nothing beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulators import simnode
from xpu_referee import NO_BURST, TOLERANCE_POINTS, Window, await_work, busy_ns, load
from xpu_slice import GIB, HERE, LOAD, Slice, slice_of

WHOLE = "GPU-51000000-0000-4000-8000-000000000000"
INSTANCE = (
    "MIG-51000000-0d00-4000-8000-000000000000"  # GPU instance 13, 1g.5gb: capabilities 120, 121
)
NOT_FOUND = 6


@pytest.fixture
def node(tmp_path: Path) -> Iterator[simnode.Node]:
    """What a container sees that may open one of the card's three instances."""
    made = simnode.up(tmp_path / "node", ["a100-40g-mig"])
    for node_file in (made.directory / "dev/nvidia-caps").iterdir():
        if node_file.name not in ("nvidia-cap120", "nvidia-cap121"):
            node_file.unlink()
    yield made
    simnode.down(made.directory)


@pytest.fixture
def within(node: simnode.Node, tmp_path: Path) -> Slice:
    return replace(slice_of(node, tmp_path / "slice"), uuid=INSTANCE)


def said(within: Slice, *words: object) -> Any:
    """A program of these tests to its end: what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=within.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_a_share_is_of_the_instance(within: Slice, node: simnode.Node, free_port: int) -> None:
    """Held back, and to the share: that the rest of it is used is test_sim.py's to show."""
    within.grant(cores_percent=20, **NO_BURST)
    with load(within, free_port, 1_000) as pid:
        await_work(node, [pid], 5_000_000)
        with Window(node, [pid]) as window:
            await_work(node, [pid], busy_ns(node, [pid]) + 200_000_000)
        card = within.ledger().cards[0]
    assert window.share <= 20 + TOLERANCE_POINTS
    assert card.charged_ns > 0 and card.throttled_ns > 0


def test_memory_is_of_the_instance(within: Slice, free_port: int) -> None:
    within.grant(cores_percent=20, memory_bytes=2 * GIB)
    with load(within, free_port, 5_000):
        ask = (LOAD, "--port", free_port, "ask", "allocate")
        assert said(within, *ask, "3GiB")["name"] == "CUDA_ERROR_OUT_OF_MEMORY"
        assert said(within, *ask, "2GiB")["name"] == "CUDA_SUCCESS"


def test_nvml_shows_the_instance_as_the_only_card(within: Slice) -> None:
    within.grant(cores_percent=20, memory_bytes=2 * GIB)
    seen = said(within, HERE / "nvml_tenant.py", "cards", WHOLE, INSTANCE)
    assert seen["counts"] == [1, 1]
    assert seen["by_uuid"] == [NOT_FOUND, 0], (
        "the card it is part of, and others' instances, are hidden"
    )
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader"],
        env=within.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert listed == f"{INSTANCE}, 2048 MiB\n"
