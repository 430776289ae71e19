# SPDX-License-Identifier: Apache-2.0
"""aarch64 programs on another machine, for tests: by qemu, with Debian's aarch64 C library."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import run

PACKAGES = ("qemu-user-static", "libc6-arm64-cross")


def emulator() -> list[str]:
    """The command that runs an aarch64 program; both packages are unpacked into the cache."""
    if shutil.which("apt-get") is None:
        pytest.skip(f"needs Debian's packages {', '.join(PACKAGES)}")

    def fetch(target: Path) -> None:
        run(["apt-get", "download", *PACKAGES], cwd=target)
        for package in target.glob("*.deb"):
            run(["dpkg-deb", "-x", package, target])
            package.unlink()

    versions = run(["apt-cache", "show", "--no-all-versions", *PACKAGES])
    unpacked = Cache().get(Recipe("aarch64-emulator", {"packages": versions}, fetch))
    root = unpacked / "usr" / "aarch64-linux-gnu"
    return [str(unpacked / "usr" / "bin" / "qemu-aarch64-static"), "-L", str(root)]
