# SPDX-License-Identifier: GPL-3.0-or-later
"""``down``: removes whatever bears a testbed's name, cgroup or subnet, whatever state it is in.

Nothing is taken from the state file alone: an ``up`` that was killed may not have written it, and
a ``podman`` that was killed leaves things its own database does not know. So every trace is looked
for where the machine keeps it, removed, and looked for again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import machine
from .errors import TestbedError
from .hosts import STATE_ROOT
from .plan import cgroup_parent, is_network_of
from .podman import LABEL, containers, networks_of, podman, stored_containers

CGROUPS = Path("/sys/fs/cgroup")
TABLES = ("filter", "nat", "mangle", "raw")
NETNS = Path("/run/netns")
ATTEMPTS = 5


@dataclass(frozen=True)
class Traces:
    """What of a testbed is on the machine."""

    containers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()
    cgroups: tuple[Path, ...] = ()
    mounts: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    state: tuple[Path, ...] = ()
    subnets: frozenset[str] = field(default=frozenset(), compare=False)

    def lines(self) -> list[str]:
        """One line per trace, for people."""
        return [
            f"{kind}: {item}"
            for kind, items in vars(self).items()
            if kind != "subnets"
            for item in items
        ]


def belongs(subnets: Iterable[str], address: str) -> bool:
    """Whether an address or network (``10.1.2.3/24``, ``10.1.2.3``) lies in one of *subnets*."""
    try:
        network = ipaddress.ip_interface(address).network
    except ValueError:
        return False
    own = [ipaddress.ip_network(subnet) for subnet in subnets]
    return any(
        network.version == subnet.version
        and ipaddress.ip_interface(address).ip in subnet
        and network.prefixlen >= subnet.prefixlen
        for subnet in own
    )


def _network_in(comment: str) -> str:
    """The network that netavark's comment on a rule names, or nothing."""
    found = re.match(r"name: (\S+) id: ", comment)
    return found[1] if found else ""


def rules_of(listing: str, subnets: Iterable[str], testbed: str) -> list[str]:
    """Lines of ``iptables -S`` that name one of *subnets*, or a network of *testbed*."""
    own = list(subnets)
    found = []
    for line in listing.splitlines():
        words = shlex.split(line)
        named = any(is_network_of(testbed, _network_in(word)) for word in words)
        if line.startswith("-A ") and (named or any(belongs(own, word) for word in words)):
            found.append(line)
    return found


def empty_chains(listing: str) -> list[str]:
    """Chains netavark made for one network that hold nothing any more, or only foreign traffic."""
    made = re.findall(r"^-N (NETAVARK-[0-9A-F]+)$", listing, re.MULTILINE)
    jumps = set(re.findall(r"-j (NETAVARK-[0-9A-F]+)", listing))
    return [chain for chain in made if chain not in jumps]


def _subnets(name: str, own_networks: list[dict[str, Any]]) -> frozenset[str]:
    subnets = {
        subnet["subnet"] for network in own_networks for subnet in network.get("subnets") or []
    }
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads((STATE_ROOT / name / "state.json").read_text())
        subnets.add(document["network"]["subnet"])
    return frozenset(subnets)


def _stored(name: str) -> tuple[str, ...]:
    """Containers by label, and those a killed podman left in storage under a host's name."""
    found = {entry["Id"] for entry in containers(name)}
    with contextlib.suppress(OSError):
        hosts = {f"{name}-{path.name}" for path in (STATE_ROOT / name / "hosts").iterdir()}
        for entry in stored_containers():
            foreign = (entry.get("Labels") or {}).get(LABEL, name) != name
            if entry.get("IsInfra") or foreign or not hosts.intersection(entry["Names"]):
                continue
            if entry["Status"] == "Storage" or entry.get("State") == "unknown":
                found.add(entry["Id"])
    return tuple(sorted(found))


def _cgroup_directories(name: str) -> Iterator[Path]:
    """Our cgroup in each hierarchy, children first."""
    names = {cgroup_parent(name, manager).strip("/") for manager in ("systemd", "cgroupfs")}
    roots = [CGROUPS, *(path for path in CGROUPS.glob("*") if path.is_dir())]
    for root in roots:
        for own in names:
            top = root / own
            if top.is_dir():
                for directory, _, _ in os.walk(top, topdown=False):
                    yield Path(directory)


def _processes(cgroups: Iterable[Path]) -> tuple[int, ...]:
    found: set[int] = set()
    for directory in cgroups:
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (directory / "cgroup.procs").read_text().split())
    return tuple(sorted(found - {0}))


def _mounts(name: str) -> tuple[str, ...]:
    prefix = f"{STATE_ROOT / name}/"
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return tuple(target for target in reversed(targets) if target.startswith(prefix))


def _addresses(namespace: str | None = None) -> list[tuple[str, str]]:
    """``(interface, address/prefix)`` of the machine or of a named network namespace."""
    where = ["-n", namespace] if namespace else []
    done = machine.run(["ip", *where, "-json", "-4", "address"], check=False)
    return [
        (link["ifname"], f"{address['local']}/{address['prefixlen']}")
        for link in json.loads(done.stdout or b"[]")
        for address in link.get("addr_info", [])
        if "local" in address
    ]


def _namespaces(subnets: frozenset[str]) -> tuple[str, ...]:
    """Network namespaces that have an address of ours: a killed podman leaves them nameless."""
    if not subnets or not NETNS.is_dir():
        return ()
    return tuple(
        path.name
        for path in sorted(NETNS.iterdir())
        if any(belongs(subnets, address) for _, address in _addresses(path.name))
    )


def _rules(subnets: frozenset[str], testbed: str) -> tuple[str, ...]:
    found = []
    for table in TABLES:
        listing = machine.run(["iptables", "-w", "-t", table, "-S"], check=False)
        for line in rules_of(listing.stdout.decode(), subnets, testbed):
            found.append(f"{table} {line}")
    return tuple(found)


def look(name: str, remembered: frozenset[str] = frozenset()) -> Traces:
    """Everything on this machine that belongs to testbed *name*."""
    own_networks = networks_of(name)
    subnets = _subnets(name, own_networks) | remembered
    cgroups = tuple(_cgroup_directories(name))
    return Traces(
        containers=_stored(name),
        networks=tuple(network["name"] for network in own_networks),
        processes=_processes(cgroups),
        cgroups=cgroups,
        mounts=_mounts(name),
        namespaces=_namespaces(subnets),
        interfaces=tuple(
            interface for interface, address in _addresses() if belongs(subnets, address)
        ),
        rules=_rules(subnets, name),
        state=tuple(path for path in [STATE_ROOT / name] if path.exists()),
        subnets=subnets,
    )


def _remove_rules(rules: Iterable[str]) -> None:
    for rule in rules:
        table, line = rule.split(" ", 1)
        words = ["-D", *shlex.split(line)[1:]]
        machine.run(["iptables", "-w", "-t", table, *words], check=False)
    for table in ("nat", "filter"):
        listing = machine.run(["iptables", "-w", "-t", table, "-S"], check=False).stdout.decode()
        for chain in empty_chains(listing):
            machine.run(["iptables", "-w", "-t", table, "-F", chain], check=False)
            machine.run(["iptables", "-w", "-t", table, "-X", chain], check=False)


def _kill(processes: Iterable[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _remove_cgroups(cgroups: Iterable[Path]) -> None:
    for directory in cgroups:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _remove(found: Traces) -> None:
    """One pass; what resists is found by the next look."""
    if found.containers:
        podman("rm", "--force", "--time=0", "--volumes", *found.containers, check=False)
    # Half-made containers are in storage only, where plain rm does not look.
    for identity in found.containers:
        podman("rm", "--force", "--storage", identity, check=False)
    for network in found.networks:
        podman("network", "rm", "--force", network, check=False)
    _kill(found.processes)
    for namespace in found.namespaces:
        machine.run(["ip", "netns", "delete", namespace], check=False)
    for interface in found.interfaces:
        machine.run(["ip", "link", "delete", interface], check=False)
    _remove_rules(found.rules)
    for target in found.mounts:
        machine.run(["umount", "--lazy", target], check=False)


def remove(name: str) -> bool:
    """Remove testbed *name*; tells whether there was any of it. The caller holds the lock."""
    found = look(name)
    any_of_it = bool(found.lines())
    for attempt in range(ATTEMPTS):
        _remove(found)
        _remove_cgroups(_cgroup_directories(name))
        found = look(name, found.subnets)
        # The state goes last, alone: until then it tells a repeated down the subnet.
        if found.lines() == [f"state: {path}" for path in found.state]:
            for path in found.state:
                shutil.rmtree(path)
            return any_of_it
        time.sleep(0.2 * (attempt + 1))
    raise TestbedError(
        f"testbed {name} could not be removed completely; left:\n  " + "\n  ".join(found.lines()),
        f"remove these by hand, then: python -m testbed down --name {name}",
    )
