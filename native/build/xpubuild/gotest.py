# SPDX-License-Identifier: Apache-2.0
"""``go vet`` and ``go test`` over the project's Go modules, one after another."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .toolchain import go


def run_all(modules: Sequence[Path]) -> int:
    """Vet and test each module; return 0 when all passed. Output goes straight to the terminal."""
    env = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
    failed = 0
    for module in modules:
        for verb in (["vet", "./..."], ["test", "./..."]):
            print(f"go {' '.join(verb)} in {module.name}", flush=True)
            failed += (
                subprocess.run([go(), *verb], cwd=module, env=env, check=False).returncode != 0
            )
    return 1 if failed else 0
