# SPDX-License-Identifier: Apache-2.0
"""``xpu-webhook``: the admission webhook of pods that ask for slices."""

from __future__ import annotations

from pathlib import Path

from ..cache import Cache, Recipe, digest_tree
from ..toolchain import REPOSITORY, go_build, go_inputs

MODULE = REPOSITORY / "native/cluster"
PACKAGES = ("cmd/xpu-webhook", "certs", "webhook")


def sources() -> list[Path]:
    """The program's own packages; it imports no other one of the module."""
    found = (path for package in PACKAGES for path in (MODULE / package).glob("*.go"))
    return [path for path in found if not path.name.endswith("_test.go")]


def _build(out: Path) -> None:
    go_build(MODULE, {out / "xpu-webhook": "./cmd/xpu-webhook"})


def build(cache: Cache) -> Path:
    """``xpu-webhook``, static: it runs without a system around it."""
    inputs = go_inputs(MODULE, Path(__file__), sources=digest_tree(sources(), MODULE))
    return cache.get(Recipe("webhook", inputs, _build))
