# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's container toolkit, the real programs, built from their Go modules.

They call libraries of the driver (NVML, CUDA, the sandbox utilities) that they load at run time
and never link. Upstream tells GNU ld to ignore what stays unresolved; zig's linker knows no such
flag, so here every such function is declared weak instead, which gives the same program: a PLT
entry bound at the first call, after ``dlopen``.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY, go, go_build, go_inputs, run, zig_cc, zig_version

VERSION = "1.17.8"
UPSTREAM = "github.com/NVIDIA/nvidia-container-toolkit"
MODULE = REPOSITORY / "tests/testbed/modules/nvidia-container-toolkit"
PROGRAMS = (
    "nvidia-cdi-hook",
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime-hook",
    "nvidia-ctk",
)
# Where upstream declares the functions it expects the driver to bring, by module.
DECLARATIONS = (
    ("github.com/NVIDIA/go-nvml", "pkg/nvml/nvml.h"),
    (UPSTREAM, "internal/nvsandboxutils/nvsandboxutils.h"),
    (UPSTREAM, "internal/cuda/cuda.go"),
)
_DRIVER_FUNCTION = re.compile(r"\b((?:nvml|nvSandboxUtils|cu)[A-Z]\w*)\s*\(")


def weak_header(declarations: Iterable[str]) -> str:
    """A C header that makes every driver function named in *declarations* a weak symbol."""
    names = {name for text in declarations for name in _DRIVER_FUNCTION.findall(text)}
    return "".join(f"#pragma weak {name}\n" for name in sorted(names))


def _declaration(module: str, path: str) -> str:
    where = run([go(), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module], cwd=MODULE)
    return (Path(where.strip()) / path).read_text(encoding="utf-8")


def _compiler(scratch: Path) -> dict[str, str]:
    """Go's environment for a C compiler that does without ``--unresolved-symbols``."""
    header = scratch / "weak.h"
    header.write_text(weak_header(_declaration(*where) for where in DECLARATIONS))
    wrapper = scratch / "cc"
    wrapper.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        "    shift\n"
        '    case $word in -Wl,--unresolved-symbols=*) ;; *) set -- "$@" "$word" ;; esac\n'
        "done\n"
        f'exec {shlex.join(zig_cc())} "$@"\n'
    )
    wrapper.chmod(0o755)
    # -w: a unit that uses none of the functions would be warned about each pragma, and
    # runtime/cgo makes warnings errors.
    return {"CC": str(wrapper), "CGO_CFLAGS": f"-O2 -w -include {header}"}


def _build(out: Path) -> None:
    ldflags = (
        f"-s -w -X {UPSTREAM}/internal/info.version={VERSION} "
        "'-extldflags=-Wl,--export-dynamic -Wl,-z,lazy'"
    )
    with tempfile.TemporaryDirectory(prefix="flexai-toolkit-") as scratch:
        go_build(
            MODULE,
            {out / name: f"{UPSTREAM}/cmd/{name}" for name in PROGRAMS},
            cgo=True,
            ldflags=ldflags,
            env=_compiler(Path(scratch)),
        )


def build(cache: Cache) -> Path:
    """nvidia-ctk, nvidia-cdi-hook, nvidia-container-runtime (also .cdi and -hook)."""
    inputs = go_inputs(MODULE, Path(__file__), zig=zig_version())
    return cache.get(Recipe("nvidia-container-toolkit", inputs, _build))
