# SPDX-License-Identifier: GPL-3.0-or-later
"""Topologies: what is accepted, and the whole text of each refusal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from testbed.errors import TestbedError
from testbed.topology import parse_topology, read_topology

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
GOOD: dict[str, Any] = {
    "name": "site",
    "subnet": "10.89.64.0/24",
    "kubernetes": {"pod_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/16"},
    "hosts": [
        {"name": "cp1", "os": "debian12", "roles": ["control-plane"]},
        {
            "name": "gpu1",
            "os": "ubuntu2404",
            "roles": ["worker"],
            "cards": {"profile": "t4", "count": 2},
        },
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one place changed; ``path`` is like ``hosts/1/os``, value ``...`` removes it."""
    document = copy.deepcopy(GOOD)
    place: Any = document
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def test_a_topology_survives_being_written_and_read() -> None:
    assert parse_topology(parse_topology(GOOD).document()) == parse_topology(GOOD)


@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_topology_in_the_tree_is_valid(path: Path) -> None:
    assert read_topology(path).hosts


def test_address_ranges_of_a_cluster_have_defaults() -> None:
    kubernetes = parse_topology(changed("kubernetes", ...)).kubernetes
    assert kubernetes is not None
    assert (kubernetes.pod_cidr, kubernetes.service_cidr) == ("10.244.0.0/16", "10.96.0.0/16")


REFUSED = {
    "unknown key": (
        changed("hosts/1/card", {"profile": "t4", "count": 1}),
        "topology: hosts[1] has the unknown key 'card'; allowed: cards, name, os, roles",
        "did you mean 'cards'?",
    ),
    "missing key": (
        changed("hosts/0/os", ...),
        "topology: hosts[0] lacks the key 'os'",
        "add os to hosts[0]",
    ),
    "unknown system": (
        changed("hosts/0/os", "debian14"),
        "topology: hosts[0].os is 'debian14'; allowed: debian12, debian12-podman, debian13, "
        "openeuler, ubuntu2204, ubuntu2404",
        "did you mean 'debian13'?",
    ),
    "role without an engine": (
        changed("hosts/1/os", "openeuler"),
        "topology: hosts[1].roles is ['worker']; allowed: none on openeuler, which has no "
        "container engine",
        "leave it out, or take another system",
    ),
    "unknown role": (
        changed("hosts/0/roles", ["master"]),
        "topology: hosts[0].roles[0] is 'master'; allowed: control-plane, worker, "
        "docker, cri-dockerd, containerd-2",
        "correct or remove it",
    ),
    "unknown profile": (
        changed("hosts/1/cards/profile", "a100"),
        "topology: hosts[1].cards.profile is 'a100'; allowed: a100-40g, a100-40g-mig, a100-80g, "
        "ascend-310p3, ascend-910b3, h100-80g, l4, t4",
        "did you mean 'a100-80g'?",
    ),
    "a flag as a number": (
        changed("hosts/1/cards/count", True),
        "topology: hosts[1].cards.count is True; allowed: a whole number from 1 to 16",
        "correct it",
    ),
    "NVSwitches beside cards without": (
        changed("hosts/1/cards/switches", 4),
        "topology: hosts[1].cards.switches is 4; allowed: NVSwitches beside a100-40g, a100-80g, "
        "h100-80g, none beside t4",
        "leave it out, or take such a profile",
    ),
    "too many cards": (
        changed("hosts/1/cards/count", 17),
        "topology: hosts[1].cards.count is 17; allowed: a whole number from 1 to 16",
        "correct it",
    ),
    "a text where a list belongs": (
        changed("hosts/0/roles", "worker"),
        "topology: hosts[0].roles is 'worker'; allowed: a list",
        "write it as - item",
    ),
    "a list where a mapping belongs": (
        changed("hosts/1/cards", []),
        "topology: hosts[1].cards is []; allowed: a mapping with count, profile, switches",
        "write it as key: value",
    ),
    "duplicate node name": (
        changed("hosts/1/name", "cp1"),
        "topology: hosts names the host 'cp1' twice; allowed: each once",
        "rename or remove one 'cp1'",
    ),
    "a name that no container can have": (
        changed("hosts/0/name", "CP_1"),
        "topology: hosts[0].name is 'CP_1'; allowed: "
        "1 to 21 of a-z, 0-9 and -, a letter first, no - last",
        "choose another name",
    ),
    "subnet with host bits": (
        changed("subnet", "10.89.64.1/24"),
        "topology: subnet is '10.89.64.1/24'; allowed: an IPv4 network such as 10.89.64.0/24",
        "correct it (10.89.64.1/24 has host bits set)",
    ),
    "subnet that is a number": (
        changed("subnet", 10),
        "topology: subnet is 10; allowed: an IPv4 network such as 10.89.64.0/24",
        "correct it (not a text)",
    ),
    "subnet too small": (
        changed("subnet", "10.89.64.0/30"),
        "topology: subnet is '10.89.64.0/30'; allowed: a prefix of 8 to 26 bits",
        "use a /24",
    ),
    "ranges that overlap": (
        changed("kubernetes/pod_cidr", "10.89.0.0/16"),
        "topology: kubernetes.pod_cidr (10.89.0.0/16) overlaps subnet (10.89.64.0/24)",
        "choose another range for kubernetes.pod_cidr",
    ),
    "workers alone": (
        changed("hosts/0/roles", []),
        "topology: hosts has workers but no host with the role control-plane",
        "add roles: [control-plane] to one host",
    ),
    "two control planes": (
        changed("hosts/1/roles", ["control-plane"]),
        "topology: more than one host has the role control-plane; allowed: one",
        "make the others workers",
    ),
    "an engine without a node": (
        changed("hosts/1/roles", ["cri-dockerd"]),
        "topology: hosts[1].roles is ['cri-dockerd']; allowed: cri-dockerd with worker and nothing "
        "else",
        "write roles: [worker, cri-dockerd]",
    ),
    "two engines": (
        changed("hosts/1/roles", ["worker", "containerd-2", "cri-dockerd"]),
        "topology: hosts[1].roles is ['worker', 'containerd-2', 'cri-dockerd']; allowed: "
        "containerd-2 with worker and nothing else",
        "write roles: [worker, containerd-2]",
    ),
    "Docker beside Kubernetes": (
        changed("hosts/1/roles", ["worker", "docker"]),
        "topology: hosts[1].roles is ['worker', 'docker']; allowed: docker alone",
        "give Docker a host of its own",
    ),
    "no hosts": (
        changed("hosts", []),
        "topology: the number of hosts is 0; allowed: 1 to 64",
        "add or remove hosts",
    ),
    "not a mapping at all": (
        ["hosts"],
        "topology: the file is ['hosts']; allowed: a mapping with hosts, kubernetes, name, subnet",
        "write it as key: value",
    ),
}


@pytest.mark.parametrize(("document", "message", "remedy"), REFUSED.values(), ids=REFUSED)
def test_a_bad_topology_is_refused_in_one_sentence(
    document: object, message: str, remedy: str
) -> None:
    with pytest.raises(TestbedError) as refusal:
        parse_topology(document)
    assert refusal.value.message == message
    assert refusal.value.remedy == remedy


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\nhosts: []\n")
    with pytest.raises(TestbedError, match="the mapping at line 1 has the key 'name' twice"):
        read_topology(path)


def test_a_missing_file_names_the_ones_beside_it(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("")
    with pytest.raises(TestbedError) as refusal:
        read_topology(tmp_path / "dmeo.yaml")
    assert "No such file" in refusal.value.message
    assert str(tmp_path / "demo.yaml") in refusal.value.remedy
