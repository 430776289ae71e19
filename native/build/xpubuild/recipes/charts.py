# SPDX-License-Identifier: Apache-2.0
"""The Helm charts of native/charts, packed: the same files give the same bytes."""

from __future__ import annotations

from pathlib import Path

import yaml

from .. import archive
from ..cache import Cache, Recipe, digest_file, digest_tree
from ..toolchain import REPOSITORY

CHARTS = REPOSITORY / "native/charts"
NAME = "gpupool"
# What stands in place of Volcano's own chart where a foreign Volcano runs.
SECOND = "volcano-second"


def version(name: str = NAME) -> str:
    """The chart's own version, from its Chart.yaml."""
    text = (CHARTS / name / "Chart.yaml").read_text(encoding="utf-8")
    return str(yaml.safe_load(text)["version"])


def _build(out: Path) -> None:
    for name in (NAME, SECOND):
        members = [
            str(path.relative_to(CHARTS))
            for path in (CHARTS / name).rglob("*")
            if path.is_file() and path.name != ".helmignore"
        ]
        archive.write_tarball(out / f"{name}-{version(name)}.tgz", CHARTS, members)


def build(cache: Cache) -> Path:
    """``<chart>-<version>.tgz`` of each, as ``helm package`` lays it out."""
    inputs = {
        "files": digest_tree([CHARTS / NAME, CHARTS / SECOND], CHARTS),
        "recipe": digest_file(Path(__file__)),
        "packer": digest_file(Path(archive.__file__)),
    }
    return cache.get(Recipe("charts", inputs, _build))
