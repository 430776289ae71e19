# SPDX-License-Identifier: GPL-3.0-or-later
"""kwok, from its Go module: nodes and pods that exist for the API server only."""

from __future__ import annotations

from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

UPSTREAM = "sigs.k8s.io/kwok"
MODULE = REPOSITORY / "tests/testbed/modules/kwok"


def _build(out: Path) -> None:
    go_build(MODULE, {out / "kwok": f"{UPSTREAM}/cmd/kwok"})


def build(cache: Cache) -> Path:
    """``kwok``, static."""
    return cache.get(Recipe("kwok", go_inputs(MODULE, Path(__file__)), _build))
