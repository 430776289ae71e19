# SPDX-License-Identifier: GPL-3.0-or-later
"""Topologies: what a YAML file may say, checked completely before anything is made. Pure.

The schema is strict on purpose: a misspelt key that is ignored costs an afternoon.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import TestbedError

NAME = re.compile(r"[a-z][a-z0-9-]{0,20}")
SYSTEMS = ("debian12", "debian12-podman", "debian13", "openeuler", "ubuntu2204", "ubuntu2404")
# They have no container engine before somebody installs one, and roles start one at the first boot.
WITHOUT_ENGINE = ("openeuler",)
ROLES = ("control-plane", "worker", "docker", "cri-dockerd", "containerd-2")
# What a worker's kubelet speaks to in place of the system's own containerd.
ENGINE_ROLES = ("cri-dockerd", "containerd-2")
# vendor:device of each profile; what such a card can do is the simulator's business.
PROFILES = {
    "a100-40g": ("0x10de", "0x20f1"),
    "a100-40g-mig": ("0x10de", "0x20f1"),
    "a100-80g": ("0x10de", "0x20b5"),
    "ascend-310p3": ("0x19e5", "0xd500"),
    "ascend-910b3": ("0x19e5", "0xd802"),
    "h100-80g": ("0x10de", "0x2330"),
    "l4": ("0x10de", "0x27b8"),
    "t4": ("0x10de", "0x1eb8"),
}
# Vendor → PCI class of its cards.
CLASSES = {"0x10de": "0x030200", "0x19e5": "0x120000"}
# What their boards' NVSwitches are; the other profiles have none.
SWITCHES = {"a100-40g": "0x1af1", "a100-80g": "0x1af1", "h100-80g": "0x22a3"}
MAX_CARDS = 16
MAX_SWITCHES = 12
MAX_HOSTS = 64
DEFAULT_POD_CIDR = "10.244.0.0/16"
DEFAULT_SERVICE_CIDR = "10.96.0.0/16"


@dataclass(frozen=True)
class CardsSpec:
    """Cards of one host, and the NVSwitches of their board."""

    profile: str
    count: int
    switches: int = 0


@dataclass(frozen=True)
class HostSpec:
    """One host, as asked for."""

    name: str
    os: str
    roles: tuple[str, ...]
    cards: CardsSpec | None


@dataclass(frozen=True)
class KubernetesSpec:
    """Address ranges of the cluster."""

    pod_cidr: str
    service_cidr: str


@dataclass(frozen=True)
class Topology:
    """A checked topology. ``subnet`` None: take a free one."""

    name: str
    subnet: str | None
    kubernetes: KubernetesSpec | None
    hosts: tuple[HostSpec, ...]

    def document(self) -> dict[str, Any]:
        """The same topology as parse_topology reads it."""
        document: dict[str, Any] = {"name": self.name}
        if self.subnet:
            document["subnet"] = self.subnet
        if self.kubernetes:
            document["kubernetes"] = vars(self.kubernetes).copy()
        document["hosts"] = [_host_document(host) for host in self.hosts]
        return document


def _host_document(host: HostSpec) -> dict[str, Any]:
    document: dict[str, Any] = {"name": host.name, "os": host.os, "roles": list(host.roles)}
    if host.cards:
        document["cards"] = vars(host.cards).copy()
    return document


def _fail(where: str, found: object, allowed: str, remedy: str) -> TestbedError:
    return TestbedError(f"topology: {where} is {found!r}; allowed: {allowed}", remedy)


def _closest(word: object, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f"did you mean {near[0]!r}?" if near else "correct or remove it"


def _mapping(value: object, where: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    allowed = sorted(required | optional)
    if not isinstance(value, dict):
        raise _fail(where, value, f"a mapping with {', '.join(allowed)}", "write it as key: value")
    for key in value:
        if key not in allowed:
            raise TestbedError(
                f"topology: {where} has the unknown key {key!r}; allowed: {', '.join(allowed)}",
                _closest(key, allowed),
            )
    for key in sorted(required):
        if key not in value:
            raise TestbedError(f"topology: {where} lacks the key {key!r}", f"add {key} to {where}")
    return value


def _choice(value: object, where: str, allowed: Iterable[str]) -> str:
    names = tuple(allowed)
    if not isinstance(value, str) or value not in names:
        raise _fail(where, value, ", ".join(names), _closest(value, names))
    return value


def check_name(value: object, where: str) -> str:
    """A name that can be part of a container, network, cgroup and host name."""
    if not isinstance(value, str) or not NAME.fullmatch(value) or value.endswith("-"):
        raise _fail(
            where,
            value,
            "1 to 21 of a-z, 0-9 and -, a letter first, no - last",
            "choose another name",
        )
    return value


def check_subnet(value: object, where: str, least_prefix: int = 26) -> str:
    """An IPv4 network written with its prefix length and no host bits."""
    try:
        if not isinstance(value, str):
            raise ValueError("not a text")
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise _fail(
            where, value, "an IPv4 network such as 10.89.64.0/24", f"correct it ({error})"
        ) from None
    if not 8 <= network.prefixlen <= least_prefix:
        raise _fail(where, value, f"a prefix of 8 to {least_prefix} bits", "use a /24")
    return str(network)


def _integer(value: object, where: str, low: int, high: int) -> int:
    # bool is an int in Python, and `count: yes` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _fail(where, value, f"a whole number from {low} to {high}", "correct it")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _fail(where, value, "a list", "write it as - item")
    return value


def _cards(value: object, where: str) -> CardsSpec:
    fields = _mapping(value, where, {"profile", "count"}, {"switches"})
    spec = CardsSpec(
        _choice(fields["profile"], f"{where}.profile", PROFILES),
        _integer(fields["count"], f"{where}.count", 1, MAX_CARDS),
        _integer(fields.get("switches", 0), f"{where}.switches", 0, MAX_SWITCHES),
    )
    if spec.switches and spec.profile not in SWITCHES:
        raise _fail(
            f"{where}.switches",
            spec.switches,
            f"NVSwitches beside {', '.join(sorted(SWITCHES))}, none beside {spec.profile}",
            "leave it out, or take such a profile",
        )
    return spec


def _roles(value: object, where: str) -> tuple[str, ...]:
    roles = tuple(
        _choice(role, f"{where}[{index}]", ROLES) for index, role in enumerate(_list(value, where))
    )
    _unique(roles, where, "role")
    if "docker" in roles and len(roles) > 1:
        raise _fail(where, list(roles), "docker alone", "give Docker a host of its own")
    engines = [role for role in roles if role in ENGINE_ROLES]
    if engines and set(roles) != {"worker", engines[0]}:
        raise _fail(
            where,
            list(roles),
            f"{engines[0]} with worker and nothing else",
            f"write roles: [worker, {engines[0]}]",
        )
    return roles


def _host(value: object, where: str) -> HostSpec:
    fields = _mapping(value, where, {"name", "os"}, {"roles", "cards"})
    name = check_name(fields["name"], f"{where}.name")
    system = _choice(fields["os"], f"{where}.os", SYSTEMS)
    roles = _roles(fields.get("roles", []), f"{where}.roles")
    if roles and system in WITHOUT_ENGINE:
        raise _fail(
            f"{where}.roles",
            list(roles),
            f"none on {system}, which has no container engine",
            "leave it out, or take another system",
        )
    return HostSpec(
        name=name,
        os=system,
        roles=roles,
        cards=_cards(fields["cards"], f"{where}.cards") if "cards" in fields else None,
    )


def _unique(values: Iterable[str], where: str, what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise TestbedError(
                f"topology: {where} names the {what} {value!r} twice; allowed: each once",
                f"rename or remove one {value!r}",
            )
        seen.add(value)


def _kubernetes(fields: Mapping[str, Any], hosts: tuple[HostSpec, ...]) -> KubernetesSpec | None:
    roles = {role for host in hosts for role in host.roles}
    if "worker" in roles and "control-plane" not in roles:
        raise TestbedError(
            "topology: hosts has workers but no host with the role control-plane",
            "add roles: [control-plane] to one host",
        )
    if "control-plane" not in roles:
        if "kubernetes" in fields:
            raise TestbedError(
                "topology: kubernetes is given, but no host has the role control-plane",
                "add roles: [control-plane] to one host, or remove the key kubernetes",
            )
        return None
    if sum("control-plane" in host.roles for host in hosts) > 1:
        raise TestbedError(
            "topology: more than one host has the role control-plane; allowed: one",
            "make the others workers",
        )
    given = _mapping(
        fields.get("kubernetes", {}), "kubernetes", set(), {"pod_cidr", "service_cidr"}
    )
    return KubernetesSpec(
        check_subnet(given.get("pod_cidr", DEFAULT_POD_CIDR), "kubernetes.pod_cidr", 20),
        check_subnet(
            given.get("service_cidr", DEFAULT_SERVICE_CIDR), "kubernetes.service_cidr", 24
        ),
    )


def _check_overlaps(named: Mapping[str, str]) -> None:
    items = [(where, ipaddress.IPv4Network(text)) for where, text in named.items()]
    for index, (where, network) in enumerate(items):
        for other_where, other in items[:index]:
            if network.overlaps(other):
                raise TestbedError(
                    f"topology: {where} ({network}) overlaps {other_where} ({other})",
                    f"choose another range for {where}",
                )


def parse_topology(document: object) -> Topology:
    """Check a topology document; the first mistake is raised with key, value and remedy."""
    fields = _mapping(document, "the file", {"name", "hosts"}, {"subnet", "kubernetes"})
    entries = _list(fields["hosts"], "hosts")
    if not 1 <= len(entries) <= MAX_HOSTS:
        raise _fail("the number of hosts", len(entries), f"1 to {MAX_HOSTS}", "add or remove hosts")
    hosts = tuple(_host(entry, f"hosts[{index}]") for index, entry in enumerate(entries))
    _unique((host.name for host in hosts), "hosts", "host")
    subnet = check_subnet(fields["subnet"], "subnet") if "subnet" in fields else None
    if subnet and len(hosts) > ipaddress.IPv4Network(subnet).num_addresses - 12:
        raise _fail("subnet", subnet, f"room for {len(hosts)} hosts from .10 on", "use a /24")
    kubernetes = _kubernetes(fields, hosts)
    ranges = {"subnet": subnet} if subnet else {}
    if kubernetes:
        ranges["kubernetes.pod_cidr"] = kubernetes.pod_cidr
        ranges["kubernetes.service_cidr"] = kubernetes.service_cidr
    _check_overlaps(ranges)
    return Topology(check_name(fields["name"], "name"), subnet, kubernetes, hosts)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, which YAML libraries let the last one win."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            line = node.start_mark.line + 1
            raise TestbedError(
                f"topology: the mapping at line {line} has the key {key!r} twice", "remove one"
            )
    return loader.construct_mapping(node, deep=True)


_construct: Callable[..., Any] = _construct_mapping
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct)


def read_topology(path: Path) -> Topology:
    """Read and check a topology file."""
    try:
        text = path.read_text()
    except OSError as error:
        known = sorted(str(file) for file in path.parent.glob("*.yaml"))
        raise TestbedError(
            f"cannot read topology {path}: {error.strerror}",
            f"name an existing file: {', '.join(known) or 'tests/testbed/topologies/demo.yaml'}",
        ) from None
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise TestbedError(f"topology {path} is not valid YAML: {error}", "correct it") from None
    try:
        return parse_topology(document)
    except TestbedError as error:
        raise TestbedError(f"{path}: {error.message}", error.remedy) from None
