# SPDX-License-Identifier: GPL-3.0-or-later
"""Kubernetes, built from its Go modules: the site's own cluster, which the collection finds."""

from __future__ import annotations

from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

VERSION = "1.33.13"
MODULE = REPOSITORY / "tests/testbed/modules/kubernetes"
PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)


def _ldflags() -> str:
    """Without these stamps every program calls itself v0.0.0, and version checks (Helm's) fail."""
    major, minor, _ = VERSION.split(".")
    stamps = {
        "gitVersion": f"v{VERSION}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = [
        f"-X {package}.{name}={value}" for package in packages for name, value in stamps.items()
    ]
    return " ".join(["-s -w", *flags])


def _build(out: Path) -> None:
    outputs = {out / name: f"k8s.io/kubernetes/cmd/{name}" for name in PROGRAMS}
    go_build(MODULE, outputs, ldflags=_ldflags())


def build(cache: Cache) -> Path:
    """kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl."""
    return cache.get(Recipe("kubernetes", go_inputs(MODULE, Path(__file__)), _build))
