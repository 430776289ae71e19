# SPDX-License-Identifier: Apache-2.0
"""``go vet`` and ``go test`` over the project's Go modules, watched for races."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import clang
from .toolchain import go

ALL = "./..."
# What is watched where watching all would compile a whole scheduler a second time.
WATCHED = {"volcano": "./place/..."}
# What of the rest is watched in the soak, where minutes of compiling are no matter.
WATCHED_LONG = {"volcano": "./bridge/..."}


def commands(module: str, *, soak: bool = False) -> list[list[str]]:
    """What is run in one module; races are looked for in every package or in those of WATCHED.

    The soak adds only what the other run leaves out.
    """
    if soak:
        return [["test", "-race", WATCHED_LONG[module]]] if module in WATCHED_LONG else []
    watched = WATCHED.get(module, ALL)
    plain = [] if watched == ALL else [["test", ALL]]
    return [["vet", ALL], *plain, ["test", "-race", watched]]


def run_all(modules: Sequence[Path], *, soak: bool = False) -> int:
    """Vet and test each module; return 0 when all passed. Output goes straight to the terminal."""
    env = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
    # The race detector links with a C compiler; the sanitizers of C++ bring this one already.
    racing = {**env, "CGO_ENABLED": "1", "CC": clang.clangxx().removesuffix("++")}
    failed = 0
    for module in modules:
        for command in commands(module.name, soak=soak):
            print(f"go {' '.join(command)} in {module.name}", flush=True)
            watched = "-race" in command
            prefix = clang.unshuffled() if watched else []
            done = subprocess.run(
                [*prefix, go(), *command], cwd=module, env=racing if watched else env, check=False
            )
            failed += done.returncode != 0
    return 1 if failed else 0
