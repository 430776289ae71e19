# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's container toolkit as its release tarballs: deb or rpm packages in upstream's folders.

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

from . import deb, rpm
from .runfile import SOURCES, fill_in

REVISION = "1"
STAND_IN = (
    "Stand-in made by flexai.xpu's tests/simulators: libnvidia-container can't be built from a\n"
    "module, so this package satisfies dependencies and nothing else. Containers get their\n"
    "devices through CDI, which does without it.\n"
)
# What upstream's packages run when they are configured.
WRITE_CONFIG = (
    "/usr/bin/nvidia-ctk --quiet config"
    " --config-file=/etc/nvidia-container-runtime/config.toml --in-place"
)
LINK_HOOK = "ln -sf nvidia-container-runtime-hook /usr/bin/nvidia-container-toolkit"
UNLINK_HOOK = "rm -f /usr/bin/nvidia-container-toolkit"
# Below ``packages/``, by form.
FOLDERS = {"deb": "ubuntu18.04/amd64", "rpm": "centos7/x86_64"}
_OPERATORS = {"=": "=", ">=": ">=", "<<": "<"}


def _rpm_relation(depends: str) -> str:
    """``name (>= 1)`` in rpm's words."""
    name, _gap, rest = depends.partition(" (")
    operator, _gap, version = rest.rstrip(")").partition(" ")
    return f"{name} {_OPERATORS[operator]} {version}"


@dataclass(frozen=True)
class Package:
    """One package; ``files`` maps a path on the system to (content, mode), ``configured`` and
    ``gone`` are what it runs when it is configured and after it has gone."""

    name: str
    summary: str
    depends: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    configured: str = ""
    gone: str = ""

    def held(self, programs: Path) -> deb.Files:
        """All its files, with those out of *programs*."""
        own = {
            f"/usr/bin/{name}": ((programs / name).read_bytes(), 0o755) for name in self.programs
        }
        return {**own, **self.files}

    def as_deb(self, programs: Path, version: str) -> deb.Package:
        scripts = {}
        if self.configured:
            scripts["postinst"] = f'#!/bin/sh\nset -e\n[ "$1" != configure ] || {self.configured}\n'
        if self.gone:
            scripts["postrm"] = f'#!/bin/sh\nset -e\n[ "$1" != purge ] || {self.gone}\n'
        return deb.Package(
            self.name,
            self.summary,
            version,
            relations={"Depends": ", ".join(self.depends)},
            files=self.held(programs),
            scripts=scripts,
        )

    def as_rpm(self, programs: Path, version: str) -> rpm.Package:
        scripts = {}
        if self.configured:
            scripts["post"] = self.configured
        if self.gone:
            scripts["postun"] = f'[ "$1" -ne 0 ] || {self.gone}'
        number, _gap, release = version.partition("-")
        return rpm.Package(
            self.name,
            self.summary,
            number,
            release,
            relations=tuple(("Requires", _rpm_relation(needed)) for needed in self.depends),
            files=self.held(programs),
            scripts=scripts,
        )


def packages(version: str) -> list[Package]:
    """The packages of a release, as upstream splits them. *version* has the revision too."""
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
            configured=WRITE_CONFIG,
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
            configured=LINK_HOOK,
            gone=UNLINK_HOOK,
        ),
        Package(
            "nvidia-container-toolkit-operator-extensions",
            "NVIDIA Container Toolkit: runtimes with a fixed mode",
            depends=(same,),
            programs=("nvidia-container-runtime.cdi",),
        ),
    ]


def build(programs: Path, version: str, out: Path, form: str) -> None:
    """Write the packages of toolkit *version*, whose programs lie in *programs*, into *out*."""
    full = f"{version}-{REVISION}"
    for package in packages(full):
        if form == "rpm":
            rpm.build(package.as_rpm(programs, full), out)
        else:
            deb.build(package.as_deb(programs, full), out)


def pack(programs: Path, version: str, out: Path, form: str = "deb") -> Path:
    """Write the release tarball of one *form*, ``deb`` or ``rpm``."""
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        root = Path(scratch)
        folder = FOLDERS[form]
        inside = root / f"release-v{version}-stable/packages/{folder}"
        inside.mkdir(parents=True)
        build(programs, version, inside, form)
        path = out / f"nvidia-container-toolkit_{version}_{form}_{folder.partition('/')[2]}.tar.gz"
        write_tarball(path, root, [str(file.relative_to(root)) for file in inside.iterdir()])
    return path
