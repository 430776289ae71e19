# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups for the tests: made in a network of their own, stopped whatever became of the test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from group.members import Group, Network

MakeGroup = Callable[..., Group]
rooted = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="members live in namespaces, which root makes",
)


@pytest.fixture
def make_group(tmp_path: Path) -> Iterator[MakeGroup]:
    with ExitStack() as stack:

        def make(
            size: int = 2,
            environment: Mapping[str, str] | None = None,
            fragments: Mapping[str, str] | None = None,
        ) -> Group:
            network = stack.enter_context(Network(size))
            group = Group(tmp_path, network, environment, fragments)
            stack.callback(group.stop)
            return group

        yield make
