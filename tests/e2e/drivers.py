# SPDX-License-Identifier: GPL-3.0-or-later
"""A second version of the simulated driver, so that there is something to change to and back."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import yaml
from simulators.installers import driverdeb, runfile
from testbed.recipes import simulators
from xpubuild.cache import Cache

OLDER, NEWER = "575.64.03", "580.95.05"


def older_driver(directory: Path) -> Path:
    """The simulated driver of an older version, unpacked, in *directory*."""
    driver = directory / "driver"
    shutil.copytree(simulators.build(Cache()), driver)
    for file in (driver / "lib").glob(f"*.so.{NEWER}"):
        file.rename(file.with_name(file.name.replace(NEWER, OLDER)))
    version = driver / "share/nvidia-sim/version"
    version.write_text(version.read_text().replace(NEWER, OLDER))
    return driver


def repository(directory: Path) -> Path:
    """A flat repository of Debian packages that has both versions."""
    made = directory / "repository"
    for driver in (older_driver(directory), simulators.build(Cache())):
        driverdeb.pack(driver, made)
    return made


def with_older_driver(manifest: Path, directory: Path) -> Path:
    """*manifest* with an older driver beside the one it has, in *directory*."""
    older = runfile.pack(older_driver(directory), directory)
    document = yaml.safe_load(manifest.read_text())
    entries = document["artefacts"]
    for entry in entries:
        if "://" not in entry["source"]:
            entry["source"] = str((manifest.parent / entry["source"]).resolve())
    newer = next(entry for entry in entries if entry["name"] == "nvidia-driver")
    entries.append(
        {
            **newer,
            "version": OLDER,
            "file": older.name,
            "source": str(older),
            "sha256": hashlib.sha256(older.read_bytes()).hexdigest(),
        }
    )
    made = directory / "manifest.yml"
    made.write_text(yaml.safe_dump(document))
    return made
