# SPDX-License-Identifier: Apache-2.0
"""Slices on the one-page driver and on a simulated node."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators import simnode
from xpu_slice import (
    ASAN,
    STUB_UUID,
    Slice,
    make_slice,
    sanitized,
    slice_of,
    stub_driver,
    stub_nvml,
)
from xpubuild import clang


@pytest.fixture(params=["as shipped", pytest.param("sanitized", marks=pytest.mark.soak)])
def stub(request: pytest.FixtureRequest, tmp_path: Path) -> Slice:
    """A slice on the one-page driver; in the long form also with ASan and UBSan watching."""
    if request.param == "as shipped":
        return make_slice(tmp_path, stub_driver(), STUB_UUID, {}, nvml=stub_nvml())
    if not clang.available():
        pytest.skip("no clang on this machine; apt-get install clang")
    watched = {
        "LD_PRELOAD": str(clang.asan_runtime()),
        # Python's own leaks are none of ours.
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return make_slice(tmp_path, stub_driver(), STUB_UUID, watched, sanitized(ASAN), stub_nvml())


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[simnode.Node]:
    """A simulated node with one A100, for the whole session."""
    directory = tmp_path_factory.mktemp("simnode") / "node"
    node = simnode.up(directory, ["a100-40g"])
    yield node
    simnode.down(directory)


@pytest.fixture
def sim(tmp_path: Path, node: simnode.Node) -> Slice:
    """A slice on the simulated card."""
    return slice_of(node, tmp_path)


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on; the one after it is most likely free too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
