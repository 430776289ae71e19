# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of the CUDA benchmarks, built from ``tests/bench/load``.

- ``bench-load`` what is timed and counted; see the head of its ``main.cc``
- ``interposer.so`` a foreign interposer in miniature, to be preloaded
"""

from __future__ import annotations

from pathlib import Path

from xpubuild.cache import Cache, Recipe, digest_file, digest_tree
from xpubuild.toolchain import REPOSITORY, run, zig_cc, zig_cxx, zig_version

from . import simulators

SOURCES = REPOSITORY / "tests" / "bench" / "load"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
DLSYM_VERSION = {"x86_64": "GLIBC_2.2.5", "aarch64": "GLIBC_2.17"}


def _build(out: Path, include: Path, arch: str) -> None:
    # Optimised as an application is, and without the compiler's own undefined-behaviour traps.
    flags = ["-std=c++17", "-O2", "-fno-sanitize=undefined", *WARNINGS, "-isystem", str(include)]
    sources = sorted(SOURCES.glob("*.cc"))
    run([*zig_cxx(arch), *flags, *sources, "-s", "-o", out / "bench-load", "-lpthread", "-ldl"])
    version = f'-DDLSYM_VERSION="{DLSYM_VERSION[arch]}"'
    shared = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", *WARNINGS, version]
    run([*zig_cc(arch), *shared, SOURCES / "interposer.c", "-o", out / "interposer.so", "-ldl"])


def build(cache: Cache, arch: str = "x86_64") -> Path:
    """The directory with both programs."""
    include = simulators.headers(cache)
    inputs = {
        "sources": digest_tree([SOURCES], REPOSITORY),
        "recipe": digest_file(Path(__file__)),
        "headers": digest_file(simulators.HEADERS),
        "zig": zig_version(),
        "arch": arch,
    }
    return cache.get(Recipe("bench", inputs, lambda out: _build(out, include, arch)))
