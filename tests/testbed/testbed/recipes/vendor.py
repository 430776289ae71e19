# SPDX-License-Identifier: GPL-3.0-or-later
"""What a site downloads from NVIDIA, made here: installers of driver and CUDA, toolkit release."""

from __future__ import annotations

from pathlib import Path

from simulators.installers import cudarun, runfile
from simulators.installers import toolkit as release
from xpubuild import artefacts
from xpubuild.cache import Cache, Recipe, digest_file, digest_tree
from xpubuild.toolchain import REPOSITORY

from . import simulators, toolkit

INSTALLERS = REPOSITORY / "tests/simulators/installers"


def sources() -> str:
    """Digest of everything that packs: tests are left out, or each edit there would rebuild."""
    packers = [*INSTALLERS.glob("*.py"), INSTALLERS / "payload"]
    return digest_tree(packers, INSTALLERS)


def build(cache: Cache) -> Path:
    """``NVIDIA-Linux-x86_64-<v>.run``, ``cuda_<v>_<driver>_linux.run`` and
    ``nvidia-container-toolkit_<v>_{deb_amd64,rpm_x86_64}.tar.gz``."""
    driver = simulators.build(cache)
    programs = toolkit.build(cache)

    def pack(out: Path) -> None:
        runfile.pack(driver, out)
        cudarun.pack(out)
        for form in release.FOLDERS:
            release.pack(programs, toolkit.VERSION, out, form)

    inputs = {
        "driver": digest_tree([driver], driver),
        "toolkit": digest_tree([programs], programs),
        "sources": sources(),
        "archiver": digest_file(Path(artefacts.__file__)),
    }
    return cache.get(Recipe("vendor", inputs, pack))


def documents(cache: Cache) -> Path:
    """``nvidia-container-toolkit_<v>_deb_amd64.tar.gz`` of document 000."""
    programs = toolkit.build(cache, toolkit.DOCUMENTS)
    inputs = {"toolkit": digest_tree([programs], programs), "sources": sources()}

    def pack(out: Path) -> None:
        release.pack(programs, toolkit.DOCUMENTS, out)

    return cache.get(Recipe("vendor-documents", inputs, pack))
