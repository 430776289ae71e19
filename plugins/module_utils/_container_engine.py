# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The container engine itself: from packages where a site asks for it and none is there."""

from __future__ import annotations

import re
import typing as t

from . import _containerd as containerd
from . import _crio as crio
from . import _docker as docker
from . import _records as records
from ._decision import BLOCKED, INSTALL, OK, REFUSE, Claim, Decision, version_key
from ._host import Host

COMPONENT = "container_engine"
RECORD = "container_engine"
PROGRAMS = {
    "containerd": (containerd.PROGRAM,),
    "crio": (crio.PROGRAM,),
    "docker": docker.PROGRAMS,
    "cri-dockerd": docker.CRI_DOCKERD,
}
UNITS = {
    "containerd": "containerd.service",
    "crio": "crio.service",
    "docker": "docker.service",
    "cri-dockerd": "cri-docker.service",
}
# containerd: the oldest that slices were run on; CRI-O: the first with CDI; Docker: document 002's;
# cri-dockerd: the first that speaks version 1 of the CRI, as kubelets from 1.26 on ask for.
SINCE = {"containerd": "1.6.0", "crio": "1.23.0", "docker": "25.0.3", "cri-dockerd": "0.3.0"}
_DEBIAN = {"containerd": ("containerd",), "docker": ("docker.io",)}
_RHEL = {"containerd": ("containerd.io",), "docker": ("docker-ce",)}
# The distributions' own packages; Docker's where a distribution has none.
PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "debian": _DEBIAN,
    "ubuntu": _DEBIAN,
    "openEuler": {"containerd": ("containerd",), "docker": ("moby",)},
    "rhel": _RHEL,
    "rocky": _RHEL,
    "almalinux": _RHEL,
}
_VERSION = re.compile(r"(?<![\d.])v?(\d+\.\d+(?:\.\d+)?)")


class Wanted(t.NamedTuple):
    """Whether the role may install, from which packages, and how old an engine may be."""

    install: bool = False
    packages: tuple[str, ...] = ()
    since: str = ""


class Facts(t.NamedTuple):
    engine: str
    installed: bool
    version: str
    system: str
    record: t.Mapping[str, t.Any]

    @property
    def ours(self) -> bool:
        return self.record.get("engine") == self.engine


def since(wanted: Wanted, engine: str) -> str:
    return wanted.since or SINCE[engine]


def packages(wanted: Wanted, system: str, engine: str) -> tuple[str, ...]:
    """What to install; nothing where neither site nor table names it."""
    return wanted.packages or PACKAGES.get(system, {}).get(engine, ())


def version_of(said: str) -> str:
    """``Docker version 25.0.3, build x``, ``containerd github.com/… v2.1.4 …`` → the version."""
    found = _VERSION.search(said)
    return found.group(1) if found else ""


def observe(host: Host, engine: str, system: str) -> Facts:
    program = next((path for path in PROGRAMS[engine] if host.program(path)), "")
    said = host.run([program, "--version"], timeout_s=20).out if program else ""
    return Facts(engine, bool(program), version_of(said), system, records.read(host, RECORD))


def plan(facts: Facts, wanted: Wanted) -> Decision:
    floor = since(wanted, facts.engine)
    text = f"{facts.engine} {floor} or newer"
    found = f"{facts.engine} {facts.version}" if facts.installed else ""
    if not facts.installed:
        names = packages(wanted, facts.system, facts.engine)
        if names:
            reason = f"{facts.engine} absent; {', '.join(names)} from the host's repositories"
            return Decision(COMPONENT, INSTALL, text, "", reason)
        reason = f"no package of {facts.engine} is known for {facts.system or 'this system'}; name "
        return Decision(COMPONENT, BLOCKED, text, "", f"{reason}it in container_engine_packages")
    if version_key(facts.version or "0") >= version_key(floor):
        return Decision(COMPONENT, OK, text, found)
    what = f"{facts.engine} {facts.version or 'of an unknown version'} is older than {floor}"
    remedy = f"upgrade it, or set container_engine_since: {facts.version or '0'} to use it as it is"
    # An engine with containers on it is never upgraded from here, whoever installed it.
    owner = "flexai.xpu" if facts.ours else "the site"
    return Claim(REFUSE, owner, f"{what}; {remedy}").refusal(COMPONENT, text, found)
