# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin: groups from roles, and errors that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleParserError
from ansible_collections.flexai.xpu.plugins.inventory import testbed as plugin

ROOT = Path(__file__).resolve().parents[4]
SCRIPTS = Path(sysconfig.get_path("scripts"))
CARD = {"profile": "t4", "uuid": "GPU-1", "serial": "1", "pci_address": "0000:3b:00.0"}


def host(name: str, roles: list[str], cards: int, profile: str = "t4") -> dict[str, Any]:
    return {
        "name": name,
        "container": f"site-{name}",
        "address": "10.1.2.10",
        "os": "debian12",
        "roles": roles,
        "cards": [{**CARD, "profile": profile}] * cards,
    }


STATE = {
    "version": 1,
    "name": "site",
    "topology": {},
    "network": {"name": "site", "subnet": "10.1.2.0/24"},
    "hosts": [
        host("cp1", ["control-plane"], 0),
        host("gpu1", ["worker"], 2),
        host("w1", ["worker"], 0),
        host("dock1", ["docker"], 1),
        host("bare1", [], 1),
        host("npu1", [], 2, "ascend-910b3"),
    ],
    "kubeconfig": "/state/kubeconfig",
}


@pytest.mark.parametrize(
    ("roles", "cards", "wanted"),
    [
        (["control-plane"], 0, ["flexai_control_plane"]),
        (
            ["control-plane", "worker"],
            1,
            ["flexai_nodes", "flexai_kubernetes", "flexai_control_plane"],
        ),
        (["worker"], 1, ["flexai_nodes", "flexai_kubernetes"]),
        (["worker"], 0, []),
        (["docker"], 1, ["flexai_nodes", "flexai_docker"]),
        (["docker"], 0, []),
        ([], 1, ["flexai_nodes"]),
    ],
)
def test_groups_follow_roles_and_cards(roles: list[str], cards: int, wanted: list[str]) -> None:
    assert plugin.groups_of(host("h", roles, cards)) == wanted


def test_a_host_with_npus_is_no_node_of_the_nvidia_path() -> None:
    assert plugin.groups_of(host("h", [], 1, "ascend-310p3")) == ["flexai_ascend"]
    worker = host("h", ["worker"], 1, "ascend-910b3")
    assert plugin.groups_of(worker) == ["flexai_ascend"]


def listing(tmp_path: Path, connection: str = "podman") -> subprocess.CompletedProcess[str]:
    """What ansible-inventory makes of testbed "site" with its state in *tmp_path*."""
    source = tmp_path / "testbed.yml"
    source.write_text("plugin: flexai.xpu.testbed\n")
    return subprocess.run(
        [SCRIPTS / "ansible-inventory", "-i", source, "--list"],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
            "FLEXAI_TESTBED": "site",
            "FLEXAI_TESTBED_STATE": str(tmp_path),
            "FLEXAI_TESTBED_CONNECTION": connection,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def plain(value: Any) -> Any:
    """A variable without the wrapper that marks it as no template."""
    return value["__ansible_unsafe"] if isinstance(value, dict) else value


def test_a_state_becomes_hosts_groups_and_variables(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/state.json").write_text(json.dumps(STATE))
    done = listing(tmp_path)
    assert done.returncode == 0, done.stderr
    inventory = json.loads(done.stdout)
    assert {name: inventory.get(name, {}).get("hosts") for name in plugin.GROUPS} == {
        "flexai_nodes": ["gpu1", "dock1", "bare1"],
        "flexai_ascend": ["npu1"],
        "flexai_kubernetes": ["gpu1"],
        "flexai_docker": ["dock1"],
        "flexai_control_plane": ["cp1"],
    }
    variables = inventory["_meta"]["hostvars"]["gpu1"]
    wanted = {
        "ansible_connection": "containers.podman.podman",
        "ansible_host": "site-gpu1",
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_kubeconfig": "/state/kubeconfig",
        "flexai_site": "site",
    }
    assert {key: plain(variables[key]) for key in wanted} == wanted


def test_hosts_are_reached_by_ssh_with_the_testbeds_keys(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/state.json").write_text(json.dumps(STATE))
    done = listing(tmp_path, "ssh")
    assert done.returncode == 0, done.stderr
    variables = json.loads(done.stdout)["_meta"]["hostvars"]["gpu1"]
    keys = tmp_path / "site/ssh"
    wanted = {
        "ansible_connection": "ansible.builtin.ssh",
        "ansible_host": "10.1.2.10",
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(keys / "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={keys / 'known_hosts'} "
        "-o StrictHostKeyChecking=yes",
        "flexai_site": "site",
    }
    assert {key: plain(variables[key]) for key in wanted} == wanted


def test_a_testbed_without_cluster_has_no_kubeconfig() -> None:
    assert plugin.site_variables({**STATE, "kubeconfig": None})["flexai_kubeconfig"] == ""


def test_a_testbed_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = listing(tmp_path)
    assert done.returncode != 0
    text = " ".join(done.stderr.split())
    assert f"there is no testbed 'site' ({tmp_path}/site/state.json does not exist)" in text
    assert "make demo" in text and "FLEXAI_TESTBED" in text


def test_a_broken_state_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{")
    with pytest.raises(AnsibleParserError, match="cannot read the state of testbed 'site' in"):
        plugin.read_state(str(path), "site")
