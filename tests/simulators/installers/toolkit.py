# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's container toolkit as its release tarball: Debian packages in upstream's folders.

The toolkit's packages hold the real programs, built from their Go modules; names, contents,
dependencies and what runs at configuration follow upstream's packaging. libnvidia-container can't
be had as a module: its two packages are stand-ins that say so, and satisfy the dependencies only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xpubuild.archive import write_tarball
from xpubuild.toolchain import ToolchainError, run

from .runfile import SOURCES, fill_in

# A fixed time for everything packed: the same inputs must give the same bytes.
EPOCH = "0"
REVISION = "1"
STAND_IN = (
    "Stand-in made by flexai.xpu's tests/simulators: libnvidia-container can't be built from a\n"
    "module, so this package satisfies dependencies and nothing else. Containers get their\n"
    "devices through CDI, which does without it.\n"
)
POSTINST = """#!/bin/sh
set -e
[ "$1" != configure ] || {command}
"""
# What upstream's packages run when they are configured.
WRITE_CONFIG = (
    "/usr/bin/nvidia-ctk --quiet config"
    " --config-file=/etc/nvidia-container-runtime/config.toml --in-place"
)
LINK_HOOK = "ln -sf nvidia-container-runtime-hook /usr/bin/nvidia-container-toolkit"
UNLINK_HOOK = """#!/bin/sh
set -e
[ "$1" != purge ] || rm -f /usr/bin/nvidia-container-toolkit
"""


@dataclass(frozen=True)
class Package:
    """One Debian package; ``files`` maps a path on the system to (content or program, mode)."""

    name: str
    summary: str
    depends: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)

    def control(self, version: str) -> str:
        depends = ", ".join(self.depends)
        lines = {
            "Package": self.name,
            "Version": version,
            "Architecture": "amd64",
            "Section": "utils",
            "Priority": "optional",
            "Maintainer": "flexai.xpu contributors <flexai-xpu@example.invalid>",
            "Depends": depends,
            "Description": self.summary,
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items() if value)


def packages(version: str) -> list[Package]:
    """The packages of a release, as upstream splits them. *version* is the Debian version."""
    upstream = version.partition("-")[0]
    cli = (SOURCES / "nvidia-container-cli.sh").read_text(encoding="utf-8")
    same = f"nvidia-container-toolkit-base (= {version})"
    return [
        Package(
            "libnvidia-container1",
            "NVIDIA container runtime library (stand-in)",
            files={"/usr/share/doc/libnvidia-container1/README.stand-in": (STAND_IN, 0o644)},
        ),
        Package(
            "libnvidia-container-tools",
            "NVIDIA container runtime library, command-line tools (stand-in)",
            depends=(f"libnvidia-container1 (>= {version})",),
            files={"/usr/bin/nvidia-container-cli": (fill_in(cli, {"VERSION": upstream}), 0o755)},
        ),
        Package(
            "nvidia-container-toolkit-base",
            "NVIDIA Container Toolkit: runtime and command line",
            programs=("nvidia-container-runtime", "nvidia-ctk", "nvidia-cdi-hook"),
            scripts={"postinst": POSTINST.format(command=WRITE_CONFIG)},
        ),
        Package(
            "nvidia-container-toolkit",
            "NVIDIA Container Toolkit: runtime hook",
            depends=(
                same,
                f"libnvidia-container-tools (>= {version})",
                "libnvidia-container-tools (<< 2.0.0)",
            ),
            programs=("nvidia-container-runtime-hook",),
            scripts={"postinst": POSTINST.format(command=LINK_HOOK), "postrm": UNLINK_HOOK},
        ),
        Package(
            "nvidia-container-toolkit-operator-extensions",
            "NVIDIA Container Toolkit: runtimes with a fixed mode",
            depends=(same,),
            programs=("nvidia-container-runtime.cdi",),
        ),
    ]


def _fill(package: Package, programs: Path, version: str, stage: Path) -> None:
    """Lay the package's tree out in *stage*, with the modes it is to have."""
    for name in package.programs:
        _put(stage, f"/usr/bin/{name}", (programs / name).read_bytes(), 0o755)
    for path, (text, mode) in package.files.items():
        _put(stage, path, text.encode(), mode)
    for name, text in package.scripts.items():
        _put(stage, f"/DEBIAN/{name}", text.encode(), 0o755)
    _put(stage, "/DEBIAN/control", package.control(version).encode(), 0o644)
    for directory in (stage, *(path for path in stage.rglob("*") if path.is_dir())):
        directory.chmod(0o755)


def _put(stage: Path, path: str, content: bytes, mode: int) -> None:
    target = stage / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(mode)


def _deb(package: Package, programs: Path, version: str, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        stage = Path(scratch)
        _fill(package, programs, version, stage)
        target = out / f"{package.name}_{version}_amd64.deb"
        command = ["dpkg-deb", "--root-owner-group", "--uniform-compression", "-Zgzip", "-z6"]
        run([*command, "--build", stage, target], env={"SOURCE_DATE_EPOCH": EPOCH})


def pack(programs: Path, version: str, out: Path) -> Path:
    """Write the release tarball of toolkit *version*, whose programs lie in *programs*."""
    if not shutil.which("dpkg-deb"):
        raise ToolchainError(
            f"dpkg-deb is not in PATH ({os.environ.get('PATH')}); install the package dpkg"
        )
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        root = Path(scratch)
        inside = root / f"release-v{version}-stable/packages/ubuntu18.04/amd64"
        inside.mkdir(parents=True)
        full = f"{version}-{REVISION}"
        for package in packages(full):
            _deb(package, programs, full, inside)
        path = out / f"nvidia-container-toolkit_{version}_deb_amd64.tar.gz"
        write_tarball(path, root, [str(deb.relative_to(root)) for deb in inside.iterdir()])
    return path
