# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Who else has a part in this host: the traces of others, and the ports that are taken.

Evidence only; what follows from it is decided by the component that it concerns. Everything is read
from files, since a look at a host must not start programs.
"""

from __future__ import annotations

import typing as t

from ._decision import ADOPT, COEXIST, OK, REFUSE, Claim, Decision
from ._host import Host

GPU_OPERATOR = "gpu-operator"
ASCEND_RUNTIME = "Ascend docker runtime"
# Owner and what he leaves on a host → component that it concerns.
TRACES: dict[tuple[str, str], str] = {
    # The operator's driver container: its root, and the pid of its main process.
    (GPU_OPERATOR, "/run/nvidia/driver/usr/bin/nvidia-smi"): "nvidia_driver",
    (GPU_OPERATOR, "/run/nvidia/nvidia-driver.pid"): "nvidia_driver",
    (GPU_OPERATOR, "/usr/local/nvidia/toolkit/nvidia-container-runtime"): "container_toolkit",
    (
        ASCEND_RUNTIME,
        "/usr/local/Ascend/Ascend-Docker-Runtime/ascend-docker-runtime",
    ): "container_runtime",
}
# Component → what we do, and the words for it ({path} is the trace).
STANCES: dict[tuple[str, str], tuple[str, str]] = {
    (GPU_OPERATOR, "nvidia_driver"): (
        REFUSE,
        "gpu-operator runs the driver in a container ({path}); set driver.enabled=false in its "
        "ClusterPolicy, or take the host out of flexai_nodes",
    ),
    (GPU_OPERATOR, "container_toolkit"): (
        COEXIST,
        "gpu-operator has a toolkit of its own ({path}); ours stands beside it under /usr/bin",
    ),
    (ASCEND_RUNTIME, "container_runtime"): (
        COEXIST,
        "the Ascend docker runtime ({path}) stays as it is; ours are added beside it",
    ),
}
PORT_FILES = ("/proc/net/tcp", "/proc/net/tcp6")
LISTENING = "0A"
# Port → what of ours listens there where nobody else does.
OUR_PORTS = {8082: "xpu-exporter"}


class Facts(t.NamedTuple):
    traces: tuple[tuple[str, str, str], ...] = ()
    ports: t.Mapping[str, str] = {}


def listening(table: str, ports: t.Collection[int]) -> dict[int, str]:
    """Port → inode of a socket that listens there, from /proc/net/tcp."""
    found = {}
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == LISTENING:
            port = int(words[1].rsplit(":", 1)[1], 16)
            if port in ports:
                found[port] = words[9]
    return found


def program_of(host: Host, inode: str) -> str:
    """Who holds a socket: ``name (pid n)``; looked for only where a port is taken."""
    for link in host.glob("/proc/[0-9]*/fd/*"):
        if host.link(link) == f"socket:[{inode}]":
            pid = link.split("/")[2]
            return f"{(host.read(f'/proc/{pid}/comm') or '?').strip()} (pid {pid})"
    return "an unknown program"


def observe(host: Host) -> Facts:
    traces = [
        (owner, path, component) for (owner, path), component in TRACES.items() if host.exists(path)
    ]
    taken: dict[int, str] = {}
    for file in PORT_FILES:
        taken.update(listening(host.read(file) or "", OUR_PORTS))
    return Facts(
        traces=tuple(traces),
        ports={str(port): program_of(host, inode) for port, inode in taken.items()},
    )


def claim(facts: Facts, component: str) -> Claim | None:
    """What somebody else's traces mean for a component."""
    for owner, path, concerned in facts.traces:
        if concerned == component:
            stance, words = STANCES[(owner, component)]
            return Claim(stance, owner, words.format(path=path))
    return None


def plan_ports(facts: Facts) -> list[Decision]:
    """A port that somebody else listens on is his; ours of the same name is nothing to tell."""
    decisions = []
    for port, holder in sorted(facts.ports.items()):
        ours = OUR_PORTS[int(port)]
        if holder.startswith(ours):
            continue
        reason = f"port {port} is held by {holder}; {ours} needs another one on this host"
        claimed = Claim(COEXIST, holder.split(" (")[0], reason)
        decisions.append(claimed.on(Decision("ports", OK, "", port)))
    return decisions


def plan_runtimes(
    where: str, theirs: t.Mapping[str, str], ours: t.Mapping[str, str], trace: Claim | None
) -> Claim | None:
    """Runtimes that the site defined under our names: the same program is used, another stays."""
    for name, program in sorted(theirs.items()):
        # The name alone is looked up on the daemon's PATH.
        if program not in (ours[name], ours[name].rsplit("/", 1)[1]):
            return Claim(
                REFUSE,
                where,
                f"{where} defines runtime {name} as {program}, and slices need {ours[name]} under "
                "that name; rename it, or take it out with whatever put it there",
            )
    if theirs:
        names = ", ".join(sorted(theirs))
        return Claim(ADOPT, where, f"{where} defines {names} itself, with the program of ours")
    return trace


def plan_packages(
    what: str, manager: str, names: t.Iterable[str], found: str, wanted: str, variable: str
) -> Claim:
    """Packages that somebody else installed: used where they are what is wanted, never changed."""
    listed, owner = ", ".join(sorted(names)), f"packages of {manager}"
    if found == wanted:
        reason = f"{what} {found} belongs to the package manager ({listed}) and is used as it is"
        return Claim(ADOPT, owner, reason)
    return Claim(
        REFUSE,
        owner,
        f"{what} {found or 'of an unknown version'} belongs to the package manager ({listed}), "
        f"{wanted} is wanted; "
        + (
            f"set {variable}: {found} to use it as it is, or remove these packages"
            if found
            else "remove these packages"
        ),
    )
