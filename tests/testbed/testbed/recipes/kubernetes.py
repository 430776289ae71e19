# SPDX-License-Identifier: GPL-3.0-or-later
"""Kubernetes, built from its Go modules: the site's own cluster, which the collection finds.

With ``TESTBED_SOURCE=download`` its released programs are taken instead, which is quicker.
"""

from __future__ import annotations

import os
from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

from .. import download

VERSION = "1.33.13"
RELEASES = "https://dl.k8s.io"
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


def _downloaded(cache: Cache) -> Path:
    # A site's mirror has the same paths.
    server = os.environ.get("TESTBED_DOWNLOAD_URL") or RELEASES
    base = f"{server}/v{VERSION}/bin/linux/amd64"
    digests = {name: download.published_digest(f"{base}/{name}") for name in PROGRAMS}

    def fetch(out: Path) -> None:
        for name, digest in digests.items():
            download.fetch(f"{base}/{name}", digest, out / name)

    return cache.get(Recipe("kubernetes-released", digests, fetch))


def build(cache: Cache) -> Path:
    """kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl."""
    if download.source() == "download":
        return _downloaded(cache)
    return cache.get(Recipe("kubernetes", go_inputs(MODULE, Path(__file__)), _build))
