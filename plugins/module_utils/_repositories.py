# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What the repositories of a host have, and packages of exact versions out of them."""

from __future__ import annotations

import typing as t

from . import _packages as packages
from ._errors import XpuError
from ._host import Host

QUERY_LIMIT_S = 300
# By these words dnf says that there is no such package, which is an answer; its other errors are
# none.
NO_MATCH = "No matches found"


def _ask_dnf(host: Host, *words: str) -> str:
    """dnf's answer. An error of its own (its lock is held, a repository can't be read) must not
    pass for a repository that has nothing."""
    argv = packages.dnf_argv(*words)
    done = host.run(argv, timeout_s=QUERY_LIMIT_S)
    if done.rc != 0 and NO_MATCH not in done.err:
        tail = (done.err.strip() or done.out.strip())[-400:]
        raise XpuError(
            f"{' '.join(argv)} ended with rc {done.rc}: {tail}. Nothing was changed.",
            "wait for the process that it names, or mend the repository, and run this again.",
        )
    return done.out


def offered(host: Host, manager: str, name: str) -> list[str]:
    """The exact versions of a package that the host's repositories have, newest first."""
    if manager == "dpkg":
        done = host.run(["apt-cache", "madison", name], timeout_s=QUERY_LIMIT_S)
        lines = (line.split("|") for line in done.out.splitlines())
        return [line[1].strip() for line in lines if len(line) > 1]
    form = "%{version}-%{release}\\n"
    said = _ask_dnf(host, "--quiet", "repoquery", "--queryformat", form, name)
    return [line.strip() for line in said.splitlines() if line.strip()][::-1]


def _known(host: Host, manager: str, asked: t.Sequence[str], version: str) -> dict[str, list[str]]:
    """Name → those of its versions that are upstream's *version*."""
    return {
        name: [each for each in offered(host, manager, name) if packages.upstream(each) == version]
        for name in asked
    }


def refresh(host: Host, manager: str) -> None:
    """Read the lists of the repositories anew."""
    if manager == "dpkg":
        host.run(["apt-get", "update"], timeout_s=QUERY_LIMIT_S)
    else:
        _ask_dnf(host, "--quiet", "makecache")


def resolve(
    host: Host, manager: str, asked: t.Sequence[str], version: str, remedy: str
) -> list[str]:
    """Each name with the exact version, as the manager takes it. The lists of the repositories are
    read anew only where they lack something."""
    found = _known(host, manager, asked, version)
    if not all(found.values()):
        refresh(host, manager)
        found = _known(host, manager, asked, version)
    lacking = [name for name, versions in found.items() if not versions]
    if lacking:
        offers = {name: offered(host, manager, name) for name in lacking}
        told = "; ".join(
            f"{name}: {', '.join(versions) if versions else 'in none'}"
            for name, versions in offers.items()
        )
        raise XpuError(
            f"No repository of the host has version {version} of {', '.join(lacking)} ({told}). "
            "Nothing was changed.",
            remedy,
        )
    sign = "=" if manager == "dpkg" else "-"
    return [f"{name}{sign}{versions[0]}" for name, versions in found.items()]


def install_argv(manager: str, exact: t.Sequence[str]) -> list[str]:
    """Also where that means an older version, or that one flavour gives way to another."""
    argv = packages.install_argv(manager, exact)
    more = "--allow-downgrades" if manager == "dpkg" else "--allowerasing"
    at = len(argv) - len(exact)
    return [*argv[:at], more, *argv[at:]]


def trial_argv(manager: str, exact: t.Sequence[str]) -> list[str]:
    """What the manager would install, told and not done."""
    if manager == "dpkg":
        return ["apt-get", "install", "--simulate", "--no-install-recommends", *exact]
    return packages.dnf_argv("install", "--assumeno", *exact)
