# SPDX-License-Identifier: Apache-2.0
"""The native tenants of native/cuda/tests/rough: built, and run inside a slice."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from xpu_slice import HERE, Slice
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.recipes import cuda
from xpubuild.toolchain import REPOSITORY, run, zig_cxx

ROUGH = HERE / "rough"
SPIN = REPOSITORY / "tests" / "simulators" / "kernels" / "spin.ptx"
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
HANGS_SECONDS = 120  # ends a hang, judges nothing


def programs(compile_with: Sequence[str] = (*zig_cxx(), *FLAGS)) -> Path:
    """A directory with one program for each source of native/cuda/tests/rough."""

    def build(target: Path) -> None:
        for source in sorted(ROUGH.glob("*.cc")):
            out = target / source.stem
            run([*compile_with, *cuda.INCLUDES, source, "-o", out, "-ldl", "-lpthread"])

    inputs = {
        "sources": digest_tree([ROUGH, cuda.CUDA / "include"], REPOSITORY),
        "compiler": run([*compile_with, "--version"]),
        "flags": " ".join(compile_with[1:]),
    }
    return Cache().get(Recipe("cuda-rough", inputs, build))


def start(within: Slice, program: str, *words: object, **more: str) -> subprocess.Popen[str]:
    """Start a native tenant in a slice; its complaints go to our stderr."""
    argv = [str(programs() / program), *map(str, words)]
    return within.start(argv, ROUGH_PTX=str(SPIN), **more)


def finish(process: subprocess.Popen[str], said: str = "") -> str:
    """The rest of what a tenant prints; it must end well."""
    rest, _ = process.communicate(said, timeout=HANGS_SECONDS)
    assert process.returncode == 0, f"{process.args!r} ended with {process.returncode}"
    return rest
