# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's own Kubernetes: built from its Go modules, or its released programs.

``TESTBED_SOURCE=download`` takes the latter, which is quicker where there is internet.
"""

from __future__ import annotations

from pathlib import Path

from xpubuild.cache import Cache

from .. import download
from . import kubernetes_build

VERSION = kubernetes_build.VERSION
PROGRAMS = kubernetes_build.PROGRAMS
RELEASES = "https://dl.k8s.io"


def _downloaded(cache: Cache) -> Path:
    base = f"/v{VERSION}/bin/linux/amd64"
    files = tuple(download.Released(RELEASES, f"{base}/{name}") for name in PROGRAMS)
    return download.get(cache, "kubernetes-released", files, None)


def build(cache: Cache) -> Path:
    """kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl."""
    if download.source() == "download":
        return _downloaded(cache)
    return kubernetes_build.build(cache)
