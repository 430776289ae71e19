# SPDX-License-Identifier: Apache-2.0
"""Helm, from its Go module: the site's control-plane host needs it and may have no internet."""

from __future__ import annotations

from pathlib import Path

from ..cache import Cache, Recipe
from ..toolchain import REPOSITORY, go_build, go_inputs

VERSION = "3.18.6"
# The Kubernetes that Helm assumes where it can ask none (`helm template`); upstream stamps the
# minor version of the client-go it is built with.
KUBERNETES_MINOR = 33
UPSTREAM = "helm.sh/helm/v3"
MODULE = REPOSITORY / "native/build/modules/helm"


def _ldflags() -> str:
    stamps = {
        "internal/version.version": f"v{VERSION}",
        "internal/version.metadata": "",
        "pkg/lint/rules.k8sVersionMajor": "1",
        "pkg/lint/rules.k8sVersionMinor": str(KUBERNETES_MINOR),
        "pkg/chartutil.k8sVersionMajor": "1",
        "pkg/chartutil.k8sVersionMinor": str(KUBERNETES_MINOR),
    }
    return "-s -w " + " ".join(f"-X {UPSTREAM}/{name}={value}" for name, value in stamps.items())


def _build(out: Path) -> None:
    go_build(MODULE, {out / "helm": f"{UPSTREAM}/cmd/helm"}, ldflags=_ldflags())


def build(cache: Cache) -> Path:
    """``helm``, static."""
    return cache.get(Recipe("helm", go_inputs(MODULE, Path(__file__)), _build))
