# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts for one test suite: new ones, and gone with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xpubuild.cache import Cache

from . import down, machine, up
from .hosts import Testbed
from .topology import read_topology


@contextmanager
def fresh_hosts(topology: Path, name: str) -> Iterator[Testbed]:
    """Running hosts of the file *topology* as testbed *name*, without Kubernetes."""
    machine.prepare()
    down.remove(name)  # what a killed earlier run may have left
    with machine.locked(name):
        made = up.hosts_up(read_topology(topology), name, None, Cache(), lambda _: None)
    yield made
    down.remove(name)
