# SPDX-License-Identifier: GPL-3.0-or-later
"""A second version of the simulated driver, so that there is something to change to and back."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import yaml
from simulators.installers import cudarpm, driverdeb, driverrpm, enginerpm, rpm, runfile
from simulators.installers import toolkit as release
from testbed.recipes import containerd, openeuler, simulators, toolkit, vendor
from xpubuild.cache import Cache, Recipe, digest_file

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


def rpm_repository(cache: Cache) -> Path:
    """A repository of rpms: both versions of the driver, CUDA, the container toolkit, containerd,
    and what stands for the base system."""
    newer, programs = simulators.build(cache), toolkit.build(cache)
    engine = containerd.build(cache)

    def pack(out: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
            drivers = (older_driver(Path(scratch)), newer)
            made = [package for driver in drivers for package in driverrpm.packages(driver)]
            made += [openeuler.base(), enginerpm.package(engine, containerd.VERSION)]
            for package in (*made, *cudarpm.packages()):
                rpm.build(package, out)
        release.build(programs, toolkit.VERSION, out, "rpm")
        rpm.index(out)

    inputs = {
        **{path.parent.name: path.name for path in (newer, programs, engine)},
        "sources": vendor.sources(),
        "list": digest_file(Path(__file__)),
        "base": digest_file(Path(openeuler.__file__)),
    }
    return cache.get(Recipe("vendor-rpms", inputs, pack))


def _entry(like: dict[str, str], version: str, file: Path) -> dict[str, str]:
    """An entry of a manifest for another version of the same artefact."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    more = {"version": version, "file": file.name, "source": str(file), "sha256": digest}
    return {**like, **more}


def with_toolkit_of_document_000(manifest: Path, directory: Path) -> Path:
    """*manifest* with the toolkit of that document beside the one it has, in *directory*."""
    built = vendor.documents(Cache())
    (tarball,) = built.glob("*.tar.gz")
    document = yaml.safe_load(manifest.read_text())
    for entry in document["artefacts"]:
        if "://" not in entry["source"]:
            entry["source"] = str((manifest.parent / entry["source"]).resolve())
    like = next(e for e in document["artefacts"] if e["name"] == "nvidia-container-toolkit")
    document["artefacts"].append(_entry(like, toolkit.DOCUMENTS, tarball))
    made = directory / "documents.yml"
    made.write_text(yaml.safe_dump(document))
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
    entries.append(_entry(newer, OLDER, older))
    made = directory / "manifest.yml"
    made.write_text(yaml.safe_dump(document))
    return made
