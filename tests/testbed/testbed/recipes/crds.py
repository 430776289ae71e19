# SPDX-License-Identifier: GPL-3.0-or-later
"""Custom resources that services are made of, as their own Go modules define them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import go


@dataclass(frozen=True)
class Module:
    """A module at a version, by its checksum (as go.sum has it), and the files to take."""

    path: str
    version: str
    sum: str
    files: tuple[str, ...]


# Volcano 1.10 is the documents' own; what its PodGroup takes, later ones take too.
MODULES = (
    Module(
        "github.com/kedacore/keda/v2",
        "v2.20.2",
        "h1:SR60v8uIcelbveS8n/1jcl8tLdBBIbHMxmdOHw8tKqA=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    ),
    Module(
        "sigs.k8s.io/lws",
        "v0.8.0",
        "h1:DdhJ8QabwTfWgbgaHH2gdf8twliioHaoSfmDXRYEVU0=",
        ("config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",),
    ),
    Module(
        "volcano.sh/volcano",
        "v1.10.0",
        "h1:+GzQinGgeV0j58WpWpxByOXgF+YfUPW55zghM8GqjF0=",
        (
            "config/crd/volcano/bases/scheduling.volcano.sh_podgroups.yaml",
            "config/crd/volcano/bases/scheduling.volcano.sh_queues.yaml",
        ),
    ),
)


def _build(out: Path) -> None:
    for module in MODULES:
        command = [go(), "mod", "download", "-json", f"{module.path}@{module.version}"]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout or "{}")
        if found.get("Sum") != module.sum:
            raise RuntimeError(
                f"{module.path} {module.version} has sum {found.get('Sum')}, not {module.sum}: "
                f"{found.get('Error') or done.stderr}"
            )
        for name in module.files:
            shutil.copyfile(Path(found["Dir"]) / name, out / Path(name).name)


def build(cache: Cache) -> Path:
    """One file for each kind."""
    inputs = {f"{m.path}@{m.version} {name}": m.sum for m in MODULES for name in m.files}
    return cache.get(Recipe("crds", inputs, _build))
