# SPDX-License-Identifier: Apache-2.0
"""The distribution's clang, for tests: it brings sanitizers and libFuzzer, which zig doesn't."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

from . import system
from .toolchain import ToolchainError, run

PURPOSE = "a build watched by sanitizers"
# Without the symbolizer a sanitizer knows no function's name, so suppressions by name don't hold.
TOOLS = {"clang++": "clang", "llvm-symbolizer": "llvm"}
_RUNTIMES = ("asan", "tsan", "fuzzer")


def _runtime(name: str) -> Path:
    """Where clang has a runtime, else a relative path. Newer ones leave the machine out."""
    suffix = "so" if name == "asan" else "a"
    for file in (f"{name}-{platform.machine()}.{suffix}", f"{name}.{suffix}"):
        found = Path(run(["clang++", f"-print-file-name=libclang_rt.{file}"]).strip())
        if found.is_absolute():
            break
    return found


@cache
def clangxx() -> str:
    """``clang++`` with its runtimes, installed first where we are root and apt is there."""
    if not all(map(system.have, TOOLS)):
        system.require(TOOLS, PURPOSE)
    if all(_runtime(name).is_absolute() for name in _RUNTIMES):
        return "clang++"
    found = re.search(r"version (\d+)", run(["clang++", "--version"]))
    package = f"libclang-rt-{found[1]}-dev" if found else "libclang-rt-dev"
    if os.geteuid() != 0 or not system.have("apt-get"):
        raise ToolchainError(f"{PURPOSE} needs clang's runtimes\nremedy: install {package}")
    system.install([package])
    return "clang++"


def unshuffled() -> list[str]:
    """A prefix for watched programs: the sanitizers of clang before 18 need addresses where they
    expect them, and kernels that shuffle by more than 28 bits put them elsewhere."""
    try:
        bits = int(Path("/proc/sys/vm/mmap_rnd_bits").read_text())
    except OSError:
        return []
    return ["setarch", "--addr-no-randomize"] if bits > 28 else []


def asan_runtime() -> Path:
    """AddressSanitizer as a library, to preload into programs that are not watched themselves."""
    clangxx()
    return _runtime("asan")


def available() -> bool:
    """Whether clangxx() can work here."""
    return system.have("clang++") or (os.geteuid() == 0 and system.have("apt-get"))
