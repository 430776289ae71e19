# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages and a repository of them, packed so that the same inputs give the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xpubuild.toolchain import ToolchainError, run

# A fixed time for everything packed.
EPOCH = "0"
# Path on the system → (content, mode).
Files = Mapping[str, tuple[str | bytes, int]]
MAINTAINER = "flexai.xpu contributors <flexai-xpu@example.invalid>"


@dataclass(frozen=True)
class Package:
    """One package. ``files`` maps a path on the system to (content, mode), ``links`` one to where
    it leads; ``relations`` are fields of the control file such as Depends."""

    name: str
    summary: str
    version: str
    relations: Mapping[str, str] = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.name}_{self.version}_amd64.deb"

    def control(self) -> str:
        lines = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": "amd64",
            "Section": "utils",
            "Priority": "optional",
            "Maintainer": MAINTAINER,
            **self.relations,
            "Description": self.summary,
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items() if value)


def put(stage: Path, path: str, content: str | bytes, mode: int) -> None:
    """A file of the system in the directory *stage*."""
    target = stage / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())
    target.chmod(mode)


def _fill(package: Package, stage: Path) -> None:
    """Lay the package's tree out in *stage*, with the modes it is to have."""
    for path, (content, mode) in package.files.items():
        put(stage, path, content, mode)
    for path, target in package.links.items():
        link = stage / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    for name, text in package.scripts.items():
        put(stage, f"/DEBIAN/{name}", text, 0o755)
    put(stage, "/DEBIAN/control", package.control(), 0o644)
    for directory in (stage, *(path for path in stage.rglob("*") if path.is_dir())):
        directory.chmod(0o755)


def build(package: Package, out: Path) -> Path:
    """The package's file in *out*."""
    if not shutil.which("dpkg-deb"):
        raise ToolchainError(
            f"dpkg-deb is not in PATH ({os.environ.get('PATH')}); install the package dpkg"
        )
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        stage = Path(scratch)
        _fill(package, stage)
        target = out / package.file
        command = ["dpkg-deb", "--root-owner-group", "--uniform-compression", "-Zgzip", "-z6"]
        run([*command, "--build", stage, target], env={"SOURCE_DATE_EPOCH": EPOCH})
    return target


def index(directory: Path) -> Path:
    """Make *directory* a flat repository: ``deb [trusted=yes] file:<directory> ./``."""
    target = directory / "Packages"
    target.write_text("\n".join(_entries(sorted(directory.glob("*.deb")))), encoding="utf-8")
    return target


def _entries(files: Iterable[Path]) -> Iterable[str]:
    for file in files:
        asked = ["dpkg-deb", "--field", str(file)]
        control = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        yield f"{control}Filename: ./{file.name}\nSize: {len(content)}\nSHA256: {digest}\n"
