# SPDX-License-Identifier: Apache-2.0
"""The xpu runtime as one tarball: what role xpu_runtime and the chart's client-update install.

Both name the release by the tarball's digest, so they must be given the same bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .. import archive
from ..cache import Cache, Recipe, digest_file, digest_tree
from ..toolchain import collection_version
from . import cuda, tools


def build(cache: Cache, arch: str = "x86_64") -> Path:
    """``xpu-runtime-<version>-<arch>.tar.gz``: ``lib/``, ``bin/``, ``VERSION``."""
    parts, client_tool = cuda.build(cache, arch), tools.build(cache, tools.CLIENT_TOOL, arch)
    stamp = collection_version()
    name = f"xpu-runtime-{stamp}-{arch}.tar.gz"

    def pack(out: Path) -> None:
        stage = out / "stage"
        stage.mkdir()
        for part in ("lib", "bin"):
            shutil.copytree(parts / part, stage / part, symlinks=True)
        shutil.copy(client_tool, stage / "bin")
        (stage / "VERSION").write_text(stamp + "\n", encoding="utf-8")
        members = [str(p.relative_to(stage)) for p in stage.rglob("*") if not p.is_dir()]
        archive.write_tarball(out / name, stage, members)

    inputs = {
        "parts": digest_tree([parts], parts),
        "client tool": digest_file(client_tool),
        "version": stamp,
        "arch": arch,
        "pack": "1",
    }
    return cache.get(Recipe("xpu-runtime", inputs, pack)) / name
