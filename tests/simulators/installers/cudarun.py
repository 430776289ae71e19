# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated ``cuda_<version>_<driver>_linux.run``: a toolkit whose nvcc says its version.

The same inputs give the same bytes, so that its digest can be pinned like a vendor's.
"""

from __future__ import annotations

from pathlib import Path

from .runfile import SOURCES, fill_in

# Document 000's: the toolkit, the driver in its file's name, and what `nvcc -V` says.
VERSION, DRIVER, BUILD = "12.2.0", "535.54.03", "12.2.91"


def release(version: str) -> str:
    """``12.2.0`` is of release ``12.2``."""
    return ".".join(version.split(".")[:2])


def compiler(version: str, build: str) -> str:
    """An nvcc that says its version."""
    template = (SOURCES / "nvcc.sh").read_text(encoding="utf-8")
    return fill_in(template, {"RELEASE": release(version), "BUILD": build})


def pack(out: Path, version: str = VERSION, build: str = BUILD) -> Path:
    """Write the installer into *out*."""
    template = (SOURCES / "cuda-installer.sh").read_text(encoding="utf-8")
    nvcc = compiler(version, build).rstrip("\n")
    values = {"VERSION": version, "RELEASE": release(version), "COMPILER": nvcc}
    path = out / f"cuda_{version}_{DRIVER}_linux.run"
    path.write_text(fill_in(template, values), encoding="utf-8")
    path.chmod(0o755)
    return path
