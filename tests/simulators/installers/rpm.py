# SPDX-License-Identifier: GPL-3.0-or-later
"""rpm packages and a repository of them, packed so that the same inputs give the same bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xpubuild import system
from xpubuild.toolchain import run

from .deb import EPOCH, Files, put

TOOLS = {"createrepo_c": "createrepo-c", "rpmbuild": "rpm"}
REVISION = "1"
# A packaging host adds things of its own; a package that is the same anywhere has none of them.
MACROS = {
    "_build_id_links": "none",
    "_buildhost": "localhost",
    "__os_install_post": "%{nil}",
    "debug_package": "%{nil}",
    "_binary_payload": "w6.gzdio",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
}
# Directories that a system has by itself; a package owns the others of its files.
OF_THE_SYSTEM = {
    f"/{path}"
    for path in (
        "",
        "etc",
        "etc/ld.so.conf.d",
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/lib/modprobe.d",
        "usr/lib/systemd",
        "usr/lib/systemd/system",
        "usr/lib64",
        "usr/local",
        "usr/sbin",
        "usr/share",
        "usr/share/doc",
        "usr/src",
    )
}
SPEC = """\
Name: {name}
Version: {version}
Release: {release}
Summary: {summary}
License: GPL-3.0-or-later
AutoReqProv: no
{fields}
%description
{summary}.
%install
mkdir -p %{{buildroot}}
cp -a {stage}/. %{{buildroot}}
%files
{files}
{scripts}"""


@dataclass(frozen=True)
class Package:
    """One package. ``files`` maps a path on the system to (content, mode), ``links`` one to where
    it leads; ``relations`` holds (field of the specification, value); ``empty`` are directories
    that come without a file; ``scripts`` are the bodies of %post, %preun and %postun."""

    name: str
    summary: str
    version: str
    release: str = REVISION
    relations: tuple[tuple[str, str], ...] = ()
    files: Files = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}-{self.release}.x86_64.rpm"

    def directories(self) -> list[str]:
        """Those that are the package's own, and go with it."""
        held = {str(parent) for path in {*self.files, *self.links} for parent in Path(path).parents}
        return sorted({*held, *self.empty} - OF_THE_SYSTEM)

    def specification(self, stage: Path) -> str:
        """What rpmbuild is told; the files lie in *stage*."""
        return SPEC.format(
            name=self.name,
            version=self.version,
            release=self.release,
            summary=self.summary,
            stage=stage,
            fields="".join(f"{name}: {value}\n" for name, value in self.relations),
            files="\n".join(
                [f'%dir "{path}"' for path in self.directories()]
                + [f'"{path}"' for path in sorted({*self.files, *self.links})]
            ),
            scripts="".join(f"%{name}\n{body}\n" for name, body in self.scripts.items()),
        )


def build(package: Package, out: Path) -> Path:
    """The package's file in *out*."""
    system.require(TOOLS, "a repository of rpm packages")
    with tempfile.TemporaryDirectory(prefix="flexai-xpu-") as scratch:
        stage, specification = Path(scratch, "stage"), Path(scratch, "package.spec")
        stage.mkdir()
        for path, (content, mode) in package.files.items():
            put(stage, path, content, mode)
        for path in package.empty:
            (stage / path.lstrip("/")).mkdir(parents=True)
        for path, target in package.links.items():
            link = stage / path.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        for laid in stage.rglob("*"):
            os.utime(laid, (int(EPOCH), int(EPOCH)), follow_symlinks=False)
        specification.write_text(package.specification(stage), encoding="utf-8")
        places = {**MACROS, "_topdir": scratch, "_rpmdir": scratch}
        defines = [f"--define={name} {value}" for name, value in places.items()]
        run(
            ["rpmbuild", "-bb", "--quiet", "--target=x86_64", *defines, specification],
            env={"SOURCE_DATE_EPOCH": EPOCH},
        )
        made = out / package.file
        made.write_bytes((Path(scratch) / "x86_64" / package.file).read_bytes())
    return made


def index(directory: Path) -> Path:
    """Make *directory* a repository: ``baseurl=file://<directory>``."""
    system.require(TOOLS, "a repository of rpm packages")
    run(["createrepo_c", "--quiet", directory])
    return directory / "repodata/repomd.xml"
