# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The interception library and its tools: immutable versions, switched by one rename."""

from __future__ import annotations

import typing as t

from . import _selinux as selinux
from ._decision import CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._host import Host

COMPONENT = "xpu_runtime"
HOME = "/opt/xpu"
VERSIONS = f"{HOME}/versions"
CURRENT = f"{HOME}/current"
# The paths of document 000; they follow `current`.
LINKS = {f"{HOME}/lib": "current/lib", f"{HOME}/bin": "current/bin"}
RECORD = "SHA256SUMS"
# Who looks after HOME: this role, or the chart's client-update on nodes that no role looks after.
# It never takes a node back that we took (native/cluster/release).
OWNER = f"{HOME}/owner"
CLIENT = "client-update"


def release_name(version: str, sha256: str) -> str:
    """Directory of a release: the digest tells two builds of one version apart."""
    return f"{version}-{sha256[:12]}"


class Facts(t.NamedTuple):
    current: str
    links: t.Mapping[str, str]
    obstacles: tuple[str, ...]
    altered: tuple[str, ...]
    recorded: bool
    owner: str
    selinux: selinux.Facts = selinux.Facts()


def parse_record(text: str) -> dict[str, str]:
    """A ``sha256sum`` list: file → digest."""
    pairs = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}


def render_record(digests: t.Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def altered_files(host: Host, directory: str, record: t.Mapping[str, str]) -> list[str]:
    return [name for name, digest in record.items() if host.digest(f"{directory}/{name}") != digest]


def observe(host: Host, wanted: str) -> Facts:
    directory = f"{VERSIONS}/{wanted}"
    record = host.read(f"{directory}/{RECORD}")
    return Facts(
        current=host.link(CURRENT).replace("versions/", "", 1),
        links={path: host.link(path) for path in LINKS},
        obstacles=tuple(
            path for path in (*LINKS, CURRENT) if host.exists(path) and not host.link(path)
        ),
        altered=tuple(altered_files(host, directory, parse_record(record or ""))),
        recorded=record is not None,
        owner=(host.read(OWNER) or "").strip(),
        selinux=selinux.observe(host, HOME),
    )


def plan(facts: Facts, wanted: str) -> Decision:
    if facts.obstacles:
        names = ", ".join(facts.obstacles)
        reason = (
            f"{names}: not a link of ours; move it away (an upstream client-update puts it there)"
        )
        claimed = Claim(REFUSE, "another installation of the library", reason)
        return claimed.refusal(COMPONENT, wanted, facts.current)
    differences = []
    if not facts.recorded:
        differences.append(f"{VERSIONS}/{wanted} is not installed")
    if facts.altered:
        differences.append("altered: " + ", ".join(facts.altered))
    if facts.current != wanted:
        differences.append(f"current: {facts.current or 'absent'} → {wanted}")
    differences += [
        f"{path} does not lead to {target}"
        for path, target in LINKS.items()
        if facts.links[path] != target
    ]
    if selinux.is_due(facts.selinux):
        differences.append(f"SELinux has no rule for {HOME}: {selinux.READ_ONLY}")
    if facts.owner != COMPONENT:
        differences.append(f"{OWNER}: {facts.owner or 'absent'} → {COMPONENT}")
    if not differences:
        return Decision(COMPONENT, OK, wanted, facts.current)
    action = CHANGE if facts.current else INSTALL
    return Decision(COMPONENT, action, wanted, facts.current, "; ".join(differences))
