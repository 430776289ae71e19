# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's own Kubernetes: built from its Go modules, or its released programs.

``TESTBED_SOURCE=download`` takes the latter, which is quicker where there is internet.
"""

from __future__ import annotations

import os
from pathlib import Path

from xpubuild.cache import Cache, Recipe

from .. import download
from . import kubernetes_build

VERSION = kubernetes_build.VERSION
PROGRAMS = kubernetes_build.PROGRAMS
RELEASES = "https://dl.k8s.io"


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
    return kubernetes_build.build(cache)
