# SPDX-License-Identifier: GPL-3.0-or-later
"""containerd 2, which neither Debian 12 nor Ubuntu 24.04 has: built from its Go module, or its
release (``TESTBED_SOURCE=download``)."""

from __future__ import annotations

import tarfile
from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go_build, go_inputs

from .. import download

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


RELEASED = download.Released(
    "https://github.com",
    f"/containerd/containerd/releases/download/v{VERSION}/containerd-{VERSION}-linux-amd64.tar.gz",
    ".sha256sum",
)


def _unpack(out: Path) -> None:
    archive = out / RELEASED.name
    with tarfile.open(archive) as members:
        for name in PROGRAMS:
            source = members.extractfile(f"bin/{name}")
            assert source is not None, name  # the digest is of a release, which has them
            (out / name).write_bytes(source.read())
            (out / name).chmod(0o755)
    archive.unlink()


def build(cache: Cache) -> Path:
    """``containerd``, ``containerd-shim-runc-v2``, ``ctr``."""
    if download.source() == "download":
        return download.get(cache, "containerd-released", (RELEASED,), _unpack)
    return cache.get(Recipe("containerd", go_inputs(MODULE, Path(__file__)), _build))
