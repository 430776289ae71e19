# SPDX-License-Identifier: GPL-3.0-or-later
"""What a topology becomes: addresses, cards, container flags."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from testbed import plan
from testbed.errors import TestbedError
from testbed.hosts import Testbed, from_document
from testbed.topology import parse_topology

DOCUMENT = {
    "name": "site",
    "hosts": [
        {"name": "cp1", "os": "debian12", "roles": ["control-plane"]},
        {
            "name": "gpu1",
            "os": "debian12",
            "roles": ["worker"],
            "cards": {"profile": "a100-40g", "count": 3},
        },
        {"name": "dock1", "os": "debian12", "roles": ["docker"]},
    ],
}


@pytest.fixture
def testbed(tmp_path: Path) -> Testbed:
    return plan.make_testbed(parse_topology(DOCUMENT), "site", "10.1.2.0/24", tmp_path)


def test_hosts_get_addresses_in_order_and_names_with_the_testbeds(testbed: Testbed) -> None:
    assert [(host.container, host.address) for host in testbed.hosts] == [
        ("site-cp1", "10.1.2.10"),
        ("site-gpu1", "10.1.2.11"),
        ("site-dock1", "10.1.2.12"),
    ]


def test_a_testbed_survives_its_state_file(testbed: Testbed, tmp_path: Path) -> None:
    document = json.loads(json.dumps(testbed.document()))
    assert from_document(document, tmp_path) == testbed


def test_cards_keep_their_identity_and_no_two_share_one() -> None:
    topology = parse_topology(DOCUMENT)
    uuids = [
        [card.uuid for host in made.hosts for card in host.cards]
        for made in (
            plan.make_testbed(topology, "site", "10.1.2.0/24", Path("/a")),
            plan.make_testbed(topology, "site", "10.9.9.0/24", Path("/b")),
            plan.make_testbed(topology, "other", "10.1.2.0/24", Path("/a")),
        )
    ]
    assert uuids[0] == uuids[1]
    assert len(set(uuids[0] + uuids[2])) == 6


def test_a_card_is_a_directory_as_the_interfaces_say(testbed: Testbed) -> None:
    files = plan.pci_files(testbed.host("gpu1").cards)
    card = testbed.host("gpu1").cards[2]
    assert len(files) == 3 * 5
    assert files[f"{card.pci_address}/vendor"] == "0x10de\n"
    assert files[f"{card.pci_address}/device"] == "0x20f1\n"
    assert files[f"{card.pci_address}/numa_node"] == "1\n"
    assert files[f"{card.pci_address}/simgpu"].splitlines() == [
        "profile a100-40g",
        f"uuid {card.uuid}",
        f"serial {card.serial}",
    ]


def test_an_nvswitch_is_a_bridge_of_nvidias_and_no_card(testbed: Testbed) -> None:
    cards = testbed.host("gpu1").cards
    files = plan.pci_files(cards, switches=2)
    more = files.keys() - plan.pci_files(cards).keys()
    assert len(more) == 2 * 4
    assert files["0000:c2:00.0/class"] == "0x068000\n"
    assert files["0000:c2:00.0/device"] == "0x1af1\n"


@pytest.mark.parametrize(
    ("roles", "wanted"),
    [
        ((), ()),
        (("worker",), ("containerd.service",)),
        (("control-plane", "worker"), ("containerd.service",)),
        (("docker",), ("containerd.service", "docker.service", "docker.socket")),
    ],
)
def test_a_host_runs_only_its_roles_services(
    roles: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    assert plan.units(roles) == wanted


def test_first_files_carry_the_units_and_a_machine_id_of_the_hosts_own(testbed: Testbed) -> None:
    keys = {"authorized": b"a", "host": b"b", "host.pub": b"c"}

    def content(host: str, path: str) -> bytes:
        archive = plan.first_files(testbed, testbed.host(host), keys)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            stream = tar.extractfile(path)
            assert stream is not None
            return stream.read()

    assert content("cp1", "etc/flexai-testbed/units") == b"containerd.service\n"
    assert len(content("cp1", "etc/machine-id").strip()) == 32
    assert content("cp1", "etc/machine-id") != content("gpu1", "etc/machine-id")


def test_a_container_made_from_other_flags_is_told_apart(testbed: Testbed) -> None:
    host = testbed.host("gpu1")
    flags = plan.create_flags(testbed, host, "image:1", "cgroupfs")
    other = plan.create_flags(testbed, host, "image:2", "cgroupfs")
    assert plan.definition(flags) != plan.definition(other)
    assert plan.labelled(flags)[0].endswith(plan.definition(flags))


@pytest.mark.parametrize(
    ("name", "manager", "wanted"),
    [
        ("demo", "cgroupfs", "/flexai_testbed_demo"),
        ("my-demo", "cgroupfs", "/flexai_testbed_my_demo"),
        ("my-demo", "systemd", "flexai_testbed_my_demo.slice"),
    ],
)
def test_one_cgroup_holds_all_hosts(name: str, manager: str, wanted: str) -> None:
    assert plan.cgroup_parent(name, manager) == wanted


TAKEN = [("10.89.64.0/18", "interface eth1"), ("10.89.128.0/24", "podman network a")]


def test_without_a_wish_the_first_free_subnet_is_taken() -> None:
    assert plan.choose_subnet(None, []) == "10.89.128.0/24"
    assert plan.choose_subnet(None, TAKEN) == "10.89.129.0/24"


@pytest.mark.parametrize("wish", ["10.89.128.0/24", "10.89.128.128/25", "10.0.0.0/8"])
def test_a_taken_subnet_is_refused_with_its_owner_and_a_free_one(wish: str) -> None:
    taken = TAKEN[1:]
    with pytest.raises(TestbedError) as refusal:
        plan.choose_subnet(wish, taken)
    assert refusal.value.message == (
        f"subnet {wish} is already taken by podman network a (10.89.128.0/24)"
    )
    assert "10.89.129.0/24 is free" in refusal.value.remedy


def test_an_address_of_the_machine_takes_its_subnet() -> None:
    with pytest.raises(TestbedError, match="taken by interface lo"):
        plan.choose_subnet("10.5.0.0/24", [("10.5.0.7", "interface lo")])


def test_a_host_has_a_mac_address_of_its_own_that_lasts() -> None:
    first = plan.mac_address("a", "h1")
    assert first == plan.mac_address("a", "h1")
    assert len({first, plan.mac_address("a", "h2"), plan.mac_address("b", "h1")}) == 3
    # Locally administered, and no multicast address.
    assert int(first[:2], 16) & 3 == 2


@pytest.mark.parametrize(
    ("podman", "cgroups", "own_switch"),
    [("4.3.1", "v1", True), ("4.9.3", "v1", False), ("4.9.3", "v2", True), ("5.4.2", "v1", False)],
)
def test_podmans_systemd_switch_is_used_where_it_is_not_refused(
    podman: str, cgroups: str, own_switch: bool
) -> None:
    flags = plan.systemd_flags(podman, cgroups)
    assert ("--systemd=always" in flags) is own_switch
    assert any(flag.startswith("--tmpfs=/run:") for flag in flags) is not own_switch
