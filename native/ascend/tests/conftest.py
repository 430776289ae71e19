# SPDX-License-Identifier: Apache-2.0
"""A simulated 910B3 for the session, and a flexnpud for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flexnpud_host import Host
from simulators import simnode
from simulators.ascend import simnpu
from xpubuild.cache import Cache
from xpubuild.recipes import ascend


@pytest.fixture(scope="session")
def built() -> Path:
    """Daemon and library as shipped, but that variables say where the library's pages lie."""
    return ascend.build(Cache(), for_tests=True)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[simnpu.Node]:
    directory = tmp_path_factory.mktemp("simnpu") / "node"
    node = simnpu.up(directory, ["ascend-910b3", "ascend-910b3"])
    yield node
    simnode.down(directory)


@pytest.fixture
def host(node: simnpu.Node, built: Path, tmp_path: Path) -> Iterator[Host]:
    """A host whose flexnpud is configured and not yet started."""
    host = Host(node, built, tmp_path)
    host.configure()
    yield host
    host.end()
