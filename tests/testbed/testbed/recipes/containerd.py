# SPDX-License-Identifier: GPL-3.0-or-later
"""containerd 2, which neither Debian 12 nor Ubuntu 24.04 has, built from its Go module."""

from __future__ import annotations

from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

VERSION = "2.1.4"
UPSTREAM = "github.com/containerd/containerd/v2"
MODULE = REPOSITORY / "tests/testbed/modules/containerd"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")


def _build(out: Path) -> None:
    go_build(
        MODULE,
        {out / name: f"{UPSTREAM}/cmd/{name}" for name in PROGRAMS},
        # Without the stamp it calls itself 2.1.4+unknown, as no released one does.
        ldflags=f"-s -w -X {UPSTREAM}/version.Version=v{VERSION}",
    )


def build(cache: Cache) -> Path:
    """``containerd``, ``containerd-shim-runc-v2``, ``ctr``."""
    return cache.get(Recipe("containerd", go_inputs(MODULE, Path(__file__)), _build))
