# SPDX-License-Identifier: Apache-2.0
"""What holds for the driver (tests/simulators/tests/properties*.py) holds behind the library too.

The slice is the whole card, but every hook is at work: memory is charged, launches are metered,
contexts, pools and graphs are kept book of. A property that fails here and not on the bare driver
is the library's fault.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest
from simulators import simnode
from xpu_slice import Slice
from xpubuild.toolchain import REPOSITORY

MIB = 1 << 20
MODULES = [
    f"simulators.tests.{file.stem}"
    for file in sorted((REPOSITORY / "tests/simulators/tests").glob("properties*.py"))
    if file.stem != "properties_pair"  # of two cards
]


def properties() -> list[tuple[str, str]]:
    return [(module, name) for module in MODULES for name in import_module(module).PROPERTIES]


@pytest.mark.parametrize(("module", "name"), properties())
def test_behind_the_library(sim: Slice, node: simnode.Node, module: str, name: str) -> None:
    sim.grant(context_bytes=414 * MIB, cores_percent=100)
    done = subprocess.run(
        [sys.executable, "-m", module, name],
        env={**sim.environment, "PYTHONPATH": str(REPOSITORY / "tests")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(node.run("simgpu", "ledger", "--json"))["processes"] == []
    assert sim.ledger().processes, "the library was not there"
