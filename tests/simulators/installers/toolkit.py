# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's container toolkit as its release tarball: Debian packages in upstream's folders.

The toolkit's packages hold the real programs, built from their Go modules; names, contents,
dependencies and what runs at configuration follow upstream's packaging. libnvidia-container can't
be had as a module: its two packages are stand-ins that say so, and satisfy the dependencies only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xpubuild.archive import write_tarball

from . import deb
from .runfile import SOURCES, fill_in

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

    def packed(self, programs: Path, version: str) -> deb.Package:
        """With the programs it is to hold, out of *programs*."""
        held: dict[str, tuple[str | bytes, int]] = {
            f"/usr/bin/{name}": ((programs / name).read_bytes(), 0o755) for name in self.programs
        }
        return deb.Package(
            self.name,
            self.summary,
            version,
            relations={"Depends": ", ".join(self.depends)},
            files={**held, **self.files},
            scripts=self.scripts,
        )


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


def pack(programs: Path, version: str, out: Path) -> Path:
    """Write the release tarball of toolkit *version*, whose programs lie in *programs*."""
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        root = Path(scratch)
        inside = root / f"release-v{version}-stable/packages/ubuntu18.04/amd64"
        inside.mkdir(parents=True)
        full = f"{version}-{REVISION}"
        for package in packages(full):
            deb.build(package.packed(programs, full), inside)
        path = out / f"nvidia-container-toolkit_{version}_deb_amd64.tar.gz"
        write_tarball(path, root, [str(file.relative_to(root)) for file in inside.iterdir()])
    return path
