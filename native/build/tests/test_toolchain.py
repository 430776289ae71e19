# SPDX-License-Identifier: Apache-2.0
"""What recipes ask the Go command for."""

from __future__ import annotations

from pathlib import Path

import pytest
from xpubuild.recipes import cluster
from xpubuild.toolchain import module_directory


def test_sources_of_a_module_are_found_though_nothing_was_fetched_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that builds for the first time."""
    monkeypatch.setenv("GOMODCACHE", str(tmp_path))
    # pytest can't remove a module cache that is read-only.
    monkeypatch.setenv("GOFLAGS", "-modcacherw")
    dependency, header = cluster.NVML_HEADER
    assert (module_directory(cluster.MODULE, dependency) / header).is_file()
