# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host

from . import hostroot


@pytest.fixture
def bare_host(tmp_path: Path) -> Host:
    return Host(str(hostroot.bare(tmp_path / "host")))


@pytest.fixture
def ready_host(tmp_path: Path) -> tuple[Host, dict[str, object]]:
    root, desired = hostroot.ready(tmp_path / "host")
    return Host(str(root)), desired
