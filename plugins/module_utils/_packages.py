# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Which packages are installed, read from the databases of dpkg and rpm without running either."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import typing as t

from ._errors import XpuError
from ._host import Completed, Host

DPKG_STATUS = "/var/lib/dpkg/status"
RPM_DATABASES = ("/usr/lib/sysimage/rpm/rpmdb.sqlite", "/var/lib/rpm/rpmdb.sqlite")
# The format of rpm before 4.16, which only rpm itself can read.
RPM_OLD_DATABASE = "/var/lib/rpm/Packages"
_NAME, _VERSION, _STRING = 1000, 1001, 6
_INDEX = struct.Struct(">IIII")


class Packages(t.NamedTuple):
    """Name → upstream version, and whose database said so (``dpkg`` or ``rpm``)."""

    manager: str
    versions: t.Mapping[str, str]

    def named(self, pattern: t.Pattern[str]) -> dict[str, str]:
        return {name: self.versions[name] for name in self.versions if pattern.fullmatch(name)}


def upstream(version: str) -> str:
    """``3:580.95.05-0ubuntu1`` is upstream's ``580.95.05``."""
    return version.split(":", 1)[-1].rsplit("-", 1)[0]


def from_dpkg(status: str, words: t.Iterable[str]) -> dict[str, str]:
    """Installed packages whose name holds one of *words*."""
    pattern = re.compile(
        r"^Package: ([^\n]*(?:{})[^\n]*)\n(?:[^\n]+\n)*?Status: (?:install|hold) ok installed\n"
        r"(?:[^\n]+\n)*?Version: ([^\n]+)$".format("|".join(map(re.escape, words))),
        re.MULTILINE,
    )
    return {found.group(1): upstream(found.group(2)) for found in pattern.finditer(status)}


def rpm_header(blob: bytes) -> dict[int, str]:
    """The string tags of a header as rpm stores it: a count, a size, an index, the data."""
    count, _size = struct.unpack_from(">II", blob)
    data = 8 + count * _INDEX.size
    found = {}
    for number in range(count):
        tag, kind, offset, _items = _INDEX.unpack_from(blob, 8 + number * _INDEX.size)
        if kind == _STRING:
            start = data + offset
            found[tag] = blob[start : blob.index(b"\0", start)].decode(errors="replace")
    return found


def _from_rpm_sqlite(path: str, words: t.Sequence[str]) -> dict[str, str]:
    import sqlite3  # needed on hosts with rpm only

    like = " OR ".join("Name.key LIKE ?" for _word in words)
    query = f"SELECT Packages.blob FROM Name JOIN Packages USING (hnum) WHERE {like}"
    # immutable: a host that is looked at gets no journal files. A transaction that was killed has
    # left one, which holds what it did last.
    journal = os.path.exists(f"{path}-wal") and os.path.getsize(f"{path}-wal") > 0
    way = "mode=ro" if journal else "immutable=1"
    with contextlib.closing(sqlite3.connect(f"file:{path}?{way}", uri=True)) as database:
        rows = database.execute(query, [f"%{word}%" for word in words]).fetchall()
    headers = [rpm_header(row[0]) for row in rows]
    return {tags[_NAME]: tags[_VERSION] for tags in headers if {_NAME, _VERSION} <= tags.keys()}


def _from_rpm(host: Host, words: t.Sequence[str]) -> dict[str, str]:
    for path in RPM_DATABASES:
        if host.exists(path):
            return _from_rpm_sqlite(host.path(path), words)
    if not host.exists(RPM_OLD_DATABASE):
        return {}
    patterns = [f"*{word}*" for word in words]
    done = host.run(["rpm", "-qa", "--qf", "%{NAME} %{VERSION}\\n", *patterns])
    lines = (line.partition(" ") for line in done.out.splitlines())
    return {name: version for name, gap, version in lines if gap}


def observe(host: Host, dpkg_status: str, words: t.Sequence[str] = ("nvidia", "cuda")) -> Packages:
    """The packages whose name holds one of *words*. A host has one manager in earnest: dpkg where
    its database isn't empty."""
    if dpkg_status:
        return Packages("dpkg", from_dpkg(dpkg_status, words))
    return Packages("rpm", _from_rpm(host, words))


def everything(host: Host) -> Packages:
    """Every package of the host."""
    return observe(host, host.read(DPKG_STATUS) or "", ("",))


def traces(host: Host, names: t.Iterable[str]) -> list[str]:
    """Those of *names* that the manager still has something of: dpkg keeps what a removed package
    leaves, its configuration and scripts, until it is purged."""
    status = host.read(DPKG_STATUS) or ""
    if status:
        there = set(re.findall(r"^Package: (\S+)$", status, re.MULTILINE))
    else:
        there = set(everything(host).versions)
    return sorted(there.intersection(names))


def dnf_argv(*words: str) -> list[str]:
    """dnf, which by itself waits without end for another dnf; who that is, the error says."""
    return ["dnf", "--setopt=exit_on_lock=True", *words]


def install_argv(manager: str, names: t.Sequence[str]) -> list[str]:
    """How the host's manager installs without a question."""
    if manager == "dpkg":
        return ["apt-get", "install", "--yes", "--no-install-recommends", *names]
    return dnf_argv("install", "--assumeyes", *names)


def install_files_argv(manager: str, files: t.Sequence[str]) -> list[str]:
    """How it installs package files, of an older version too, and asks no repository: offline as
    well. A configuration file that the site has changed stays."""
    if manager == "dpkg":
        return ["dpkg", "--force-confold", "--install", *files]
    return dnf_argv("install", "--assumeyes", "--disablerepo=*", "--nogpgcheck", *files)


def removal_argv(manager: str, names: t.Sequence[str]) -> list[str]:
    """How it removes them, configuration and all."""
    if manager == "dpkg":
        return ["apt-get", "purge", "--yes", *names]
    return dnf_argv("remove", "--assumeyes", *names)


# Exit status of a dnf that doesn't wait for another, and apt's words.
_DNF_LOCKED = 200
_APT_LOCKED = re.compile(r"Could not get lock [^\n]*")


def _holder_of_lock(argv: t.Sequence[str], done: Completed) -> str:
    """The manager's own words on who holds its lock; empty where that isn't what failed."""
    if argv[0] == "dnf":
        lines = [line.strip() for line in (done.out + done.err).splitlines() if "PID" in line]
        return (lines[-1] if lines else "another dnf") if done.rc == _DNF_LOCKED else ""
    found = _APT_LOCKED.search(done.err)
    return found.group(0) if found else ""


def must(host: Host, argv: t.Sequence[str], limit_s: float, remedy: str) -> None:
    """Run the package manager; one that fails is an error with its own words."""
    done = host.run(argv, timeout_s=limit_s)
    if done.rc == 0:
        return
    holder = _holder_of_lock(argv, done)
    if holder:
        raise XpuError(
            f"Another program holds the lock of {argv[0]}, so nothing was installed or removed "
            f"({holder}).",
            "let it end (an automatic update, most often), then run this again.",
        )
    tail = (done.err.strip() or done.out.strip())[-800:]
    raise XpuError(f"{' '.join(argv)} ended with rc {done.rc}: {tail}.", remedy)
