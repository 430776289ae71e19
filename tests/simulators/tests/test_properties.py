# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties of the driver (properties.py): on a simulated card and, where there is one, a real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators import simnode
from simulators.simnode import Node
from simulators.tests import properties, properties_objects, properties_pair
from simulators.tests.harness import HERE, environment, ledger
from testbed.recipes import simulators

REAL = Path("/dev/nvidiactl")
SECOND = Path("/dev/nvidia1")


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all properties: each leaves the card as it found it, which is checked, too."""
    directory = tmp_path_factory.mktemp("properties") / "node"
    yield simnode.up(directory, ["a100-40g"])
    simnode.down(directory)


@pytest.fixture(scope="module")
def node_with_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("properties") / "two"
    yield simnode.up(directory, ["h100", "h100"])
    simnode.down(directory)


def check(module: str, name: str, environment: dict[str, str]) -> None:
    argv = [sys.executable, "-m", f"simulators.tests.{module}", name]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


ALONE = [
    *(("properties", name) for name in properties.PROPERTIES),
    *(("properties_objects", name) for name in properties_objects.PROPERTIES),
]


@pytest.mark.parametrize(("module", "name"), ALONE)
def test_simulated(module: str, name: str, shared_node: Node) -> None:
    check(module, name, environment(shared_node))
    assert ledger(shared_node) == []


@pytest.mark.parametrize("name", properties_pair.PROPERTIES)
def test_simulated_pair(name: str, node_with_two: Node) -> None:
    check("properties_pair", name, environment(node_with_two))
    assert ledger(node_with_two) == []


@pytest.mark.gpu
@pytest.mark.skipif(not REAL.exists(), reason=f"no real card ({REAL})")
@pytest.mark.parametrize(("module", "name"), ALONE)
def test_real(module: str, name: str) -> None:
    check(module, name, {**os.environ, "PYTHONPATH": str(HERE.parents[1])})


@pytest.mark.gpu
@pytest.mark.skipif(not SECOND.exists(), reason=f"no second real card ({SECOND})")
@pytest.mark.parametrize("name", properties_pair.PROPERTIES)
def test_real_pair(name: str) -> None:
    check("properties_pair", name, {**os.environ, "PYTHONPATH": str(HERE.parents[1])})


def test_every_name_the_driver_can_be_asked_for_is_exported() -> None:
    from xpubuild.cache import Cache

    row = re.compile(r"^SYMBOL\((\w+), \d+, (\w+), (\w+)\)", re.MULTILINE)
    table = row.findall((simulators.SOURCES / "cuda/symbols.def").read_text())
    wanted = {name.removesuffix("_v1") for line in table for name in line[1:]}
    library = simulators.build(Cache()) / "lib/libcuda.so.1"
    listed = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True)
    exported = set(re.findall(r" T (cu\w+)", listed.stdout))
    assert table and wanted - exported == set()
    # First versions of what has a second one: linked by name only, since nobody may ask for them.
    unknown = {name for name in exported - wanted if f"{name}_v2" not in exported}
    assert unknown == set(), "exported, but cuGetProcAddress does not know it"
