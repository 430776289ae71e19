# SPDX-License-Identifier: Apache-2.0
"""The Ansible collection as a user gets it: built from this checkout, installed as a tarball."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import yaml

from .toolchain import REPOSITORY, run

SCRIPTS = Path(sysconfig.get_path("scripts"))
KINDS = ("module", "filter", "inventory", "role")


def tarball(out: Path) -> Path:
    """Build ``flexai-xpu-<version>.tar.gz`` into *out* from what git knows of this checkout.

    Built from a copy of the tracked (and not ignored) files, so that nothing lying about in a
    working tree can get into a release.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        stage = Path(scratch) / "collection"
        _copy_checkout(stage)
        run(
            [
                SCRIPTS / "ansible-galaxy",
                "collection",
                "build",
                "--force",
                "--output-path",
                out,
                stage,
            ],
            env=_no_configuration(Path(scratch)),
        )
    meta = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text(encoding="utf-8"))
    return out / f"{meta['namespace']}-{meta['name']}-{meta['version']}.tar.gz"


def _no_configuration(scratch: Path) -> dict[str, str]:
    """An empty configuration, so that neither this checkout's nor the user's has a say."""
    empty = scratch / "empty.cfg"  # Ansible takes no /dev/null: it goes by the suffix
    empty.touch()
    return {"ANSIBLE_CONFIG": str(empty)}


def _copy_checkout(stage: Path) -> None:
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY)
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if not source.exists():
            continue
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def install(into: Path) -> Path:
    """Install the tarball under *into* and return the collection's directory."""
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        built = tarball(Path(scratch))
        # Its dependency kubernetes.core comes with the PyPI package `ansible`.
        run(
            [
                SCRIPTS / "ansible-galaxy", "collection", "install", "--force", "--no-deps",
                "--collections-path", into, built,
            ],
            env=_no_configuration(Path(scratch)),
        )  # fmt: skip
    return into / "ansible_collections" / "flexai" / "xpu"


def _documented(kind: str) -> dict[str, object]:
    done = subprocess.run(
        [str(SCRIPTS / "ansible-doc"), "--type", kind, "--json", "--list", "flexai.xpu"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def docs(out: Path) -> int:
    """One text page per plugin and role, as ``ansible-doc`` prints it; returns how many."""
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for kind in KINDS:
        for name in _documented(kind):
            page = run([SCRIPTS / "ansible-doc", "--type", kind, name], cwd=REPOSITORY)
            (out / f"{name}.{kind}.txt").write_text(page, encoding="utf-8")
            count += 1
    return count
