# SPDX-License-Identifier: Apache-2.0
"""A slice of a MIG instance: held to its share of the instance, and shown nothing beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from simulators import simnode
from test_nvml import nvml
from test_sim import ask
from xpu_referee import NO_BURST, assert_share, await_work, load
from xpu_slice import GIB, Slice, slice_of

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


def test_a_share_is_of_the_instance(within: Slice, node: simnode.Node, free_port: int) -> None:
    within.grant(cores_percent=20, **NO_BURST)
    with load(within, free_port, 1_000) as pid:
        await_work(node, [pid], 5_000_000)
        assert_share(node, [pid], 20, 2.0)
        assert within.ledger().cards[0].charged_ns > 0


def test_memory_is_of_the_instance(within: Slice, free_port: int) -> None:
    within.grant(cores_percent=20, memory_bytes=2 * GIB)
    with load(within, free_port, 5_000):
        assert ask(free_port, "allocate", "3GiB")[0] == 1
        assert ask(free_port, "allocate", "2GiB")[0] == 0


def test_nvml_shows_the_instance_as_the_only_card(within: Slice) -> None:
    within.grant(cores_percent=20, memory_bytes=2 * GIB)
    seen = nvml(within, "cards", WHOLE, INSTANCE)
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
