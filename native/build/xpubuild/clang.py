# SPDX-License-Identifier: Apache-2.0
"""The distribution's clang: it brings sanitizers and libFuzzer, which zig doesn't. For tests only."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

from . import system
from .toolchain import ToolchainError, run

PURPOSE = "a build watched by sanitizers"
_RUNTIMES = ("asan", "tsan", "fuzzer")


def _runtime(name: str) -> Path:
    """Where clang looks for a runtime; not absolute where it has none."""
    suffix = "so" if name == "asan" else "a"
    file = f"libclang_rt.{name}-{platform.machine()}.{suffix}"
    return Path(run(["clang++", f"-print-file-name={file}"]).strip())


@cache
def clangxx() -> str:
    """``clang++`` with its runtimes, installed first where we are root and apt is there."""
    if not system.have("clang++"):
        system.require({"clang++": "clang"}, PURPOSE)
    if all(_runtime(name).is_absolute() for name in _RUNTIMES):
        return "clang++"
    found = re.search(r"version (\d+)", run(["clang++", "--version"]))
    package = f"libclang-rt-{found[1]}-dev" if found else "libclang-rt-dev"
    if os.geteuid() != 0 or not system.have("apt-get"):
        raise ToolchainError(f"{PURPOSE} needs clang's runtimes\nremedy: install {package}")
    system.install([package])
    return "clang++"


def asan_runtime() -> Path:
    """AddressSanitizer as a library, to preload into programs that are not watched themselves."""
    clangxx()
    return _runtime("asan")


def available() -> bool:
    """Whether clangxx() can work here."""
    return system.have("clang++") or (os.geteuid() == 0 and system.have("apt-get"))
