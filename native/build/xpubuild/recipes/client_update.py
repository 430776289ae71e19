# SPDX-License-Identifier: Apache-2.0
"""``cuda-client-update``: keeps /opt/xpu on nodes that role xpu_runtime does not look after."""

from __future__ import annotations

from pathlib import Path

from ..cache import Cache, Recipe, digest_tree
from ..toolchain import REPOSITORY, go_build, go_inputs

MODULE = REPOSITORY / "native/cluster"
PACKAGES = ("cmd/cuda-client-update", "release")


def sources() -> list[Path]:
    """The program's own packages; it imports no other one of the module."""
    found = (path for package in PACKAGES for path in (MODULE / package).glob("*.go"))
    return [path for path in found if not path.name.endswith("_test.go")]


def _build(out: Path) -> None:
    go_build(MODULE, {out / "cuda-client-update": "./cmd/cuda-client-update"})


def build(cache: Cache) -> Path:
    """``cuda-client-update``, static."""
    inputs = go_inputs(MODULE, Path(__file__), sources=digest_tree(sources(), MODULE))
    return cache.get(Recipe("client-update", inputs, _build))
