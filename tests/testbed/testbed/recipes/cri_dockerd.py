# SPDX-License-Identifier: GPL-3.0-or-later
"""cri-dockerd, which lets a kubelet use Docker, built from its Go module."""

from __future__ import annotations

from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

VERSION = "0.3.17"
UPSTREAM = "github.com/Mirantis/cri-dockerd"
MODULE = REPOSITORY / "tests/testbed/modules/cri-dockerd"
PROGRAM = "cri-dockerd"


def _build(out: Path) -> None:
    ldflags = f"-s -w -X {UPSTREAM}/cmd/version.Version={VERSION}"
    go_build(MODULE, {out / PROGRAM: UPSTREAM}, ldflags=ldflags)


def build(cache: Cache) -> Path:
    """``cri-dockerd``."""
    return cache.get(Recipe("cri-dockerd", go_inputs(MODULE, Path(__file__)), _build))
