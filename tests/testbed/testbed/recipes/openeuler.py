# SPDX-License-Identifier: GPL-3.0-or-later
"""A look-alike of openEuler 24.03: Debian's programs under openEuler's name, with rpm and dnf as
the only package manager.

No archive of openEuler's can be reached from where this project is built. What is like: how the
system calls itself, the manager, its database, its configuration and its way with scripts, where
libraries lie. What is not: every program, kernel and file that came with the system is Debian's,
and rpm's database is empty, since Debian's packages are unknown to it (a test installs ``base``, so
that packages find a shell).
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from simulators.installers import rpm
from xpubuild.cache import Cache, Recipe, digest_file

RELEASE = "24.03"
OS_RELEASE = f"""\
NAME="openEuler"
VERSION="{RELEASE} (LTS)"
ID="openEuler"
VERSION_ID="{RELEASE}"
PRETTY_NAME="openEuler {RELEASE} (LTS)"
ANSI_COLOR="0;31"
"""
# As openEuler ships it: no unavailable repository is passed over.
DNF_CONFIGURATION = """\
[main]
gpgcheck=1
installonly_limit=3
clean_requirements_on_remove=True
best=True
skip_if_unavailable=False
"""
FILES = {
    "./usr/lib/os-release": OS_RELEASE,
    "./etc/openEuler-release": f"openEuler release {RELEASE} (LTS)\n",
    "./etc/dnf/dnf.conf": DNF_CONFIGURATION,
    # Debian's rpm keeps a database for each user.
    "./etc/rpm/macros.openeuler": "%_dbpath /var/lib/rpm\n",
    # Debian's linker looks there for itself alone.
    "./etc/ld.so.conf.d/lib64.conf": "/usr/lib64\n",
}
REPOSITORIES = "./etc/yum.repos.d"
# Debian's own manager, by which a program could tell, and its name in other places.
# `update-alternatives` stays: openEuler has it too.
REMOVED = re.compile(
    r"\./(?:usr/(?:s?bin|lib)/(?:apt|dpkg)[^/]*(?:/.*)?|(?:etc|var/lib|var/cache)/(?:apt|dpkg)(?:/.*)?"
    r"|etc/debian_version)"
)


def base() -> rpm.Package:
    """What stands in rpm's database for the system itself: its release, and that there is a shell,
    which every package with a script needs."""
    return rpm.Package(
        "openEuler-release",
        "Stand-in for the packages of the base system",
        RELEASE,
        relations=(("Provides", f"system-release = {RELEASE}"), ("Provides", "/bin/sh")),
    )


def is_kept(name: str) -> bool:
    """Whether a member of Debian's archive is in the look-alike as it is."""
    return name not in FILES and not REMOVED.fullmatch(name)


def _alter(archive: Path, out: Path) -> None:
    with (
        tarfile.open(archive) as members,
        tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in members:
            if is_kept(member.name):
                made.addfile(member, members.extractfile(member) if member.isreg() else None)
        for name, text in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            made.addfile(entry, io.BytesIO(text.encode()))
        entry = tarfile.TarInfo(REPOSITORIES)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        made.addfile(entry)


def build(cache: Cache, archive: Path) -> Path:
    """``rootfs.tar`` of the look-alike, from Debian's *archive*, which has rpm and dnf."""
    inputs = {"archive": archive.parent.name, "sources": digest_file(Path(__file__))}
    made = Recipe("rootfs-openeuler", inputs, lambda out: _alter(archive, out / "rootfs.tar"))
    return cache.get(made) / "rootfs.tar"
