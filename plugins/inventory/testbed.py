# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Inventory of a running testbed, read from its state file."""

from __future__ import annotations

DOCUMENTATION = r"""
name: testbed
short_description: Hosts of a running flexai.xpu testbed
version_added: 0.1.0
author:
  - flexai.xpu contributors (@flexai-xpu)
description:
  - Reads the state file of a testbed that C(python -m testbed up) made and gives its hosts and
    their groups.
  - Every host with cards is in the group C(flexai_nodes). Hosts with cards and the role C(worker)
    are in C(flexai_kubernetes), those with cards and the role C(docker) in C(flexai_docker), the
    host with the role C(control-plane) in C(flexai_control_plane).
  - Hosts are reached through Podman (connection P(containers.podman.podman#connection)) on the
    machine the testbed runs on, or by SSH as any site's.
  - Only for tests. Real sites write an inventory of their own.
options:
  plugin:
    description: Marks the file as one for this plugin.
    type: str
    required: true
    choices: [flexai.xpu.testbed]
  testbed:
    description: Name of the testbed.
    type: str
    default: demo
    env:
      - name: FLEXAI_TESTBED
  connection:
    description: How the hosts are reached.
    type: str
    choices: [podman, ssh]
    default: podman
    env:
      - name: FLEXAI_TESTBED_CONNECTION
  state_root:
    description: Directory that holds the states of all testbeds of this machine.
    type: path
    default: /var/lib/flexai-testbed
    env:
      - name: FLEXAI_TESTBED_STATE
"""

EXAMPLES = r"""
# inventories/sandbox/testbed.yml
plugin: flexai.xpu.testbed

# another testbed than the one FLEXAI_TESTBED names, or "demo"
---
plugin: flexai.xpu.testbed
testbed: molecule
"""

import json
import os
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

GROUPS = (
    "flexai_nodes",
    "flexai_ascend",
    "flexai_kubernetes",
    "flexai_docker",
    "flexai_control_plane",
)
FILE_NAMES = ("testbed.yml", "testbed.yaml")


def groups_of(host: dict[str, Any]) -> list[str]:
    """Groups of one host of the state file (docs/interfaces.md §9)."""
    roles = set(host["roles"])
    groups = []
    if any(card["profile"].startswith("ascend-") for card in host["cards"]):
        groups.append("flexai_ascend")
    elif host["cards"]:
        groups.append("flexai_nodes")
        if "worker" in roles:
            groups.append("flexai_kubernetes")
        if "docker" in roles:
            groups.append("flexai_docker")
    if "control-plane" in roles:
        groups.append("flexai_control_plane")
    return groups


def by_podman(host: dict[str, Any]) -> dict[str, str]:
    """Variables that let Ansible reach one host of the state file through Podman."""
    return {
        "ansible_connection": "containers.podman.podman",
        "ansible_host": host["container"],
    }


def by_ssh(host: dict[str, Any], directory: str) -> dict[str, str]:
    """The same by SSH, with the keys that the testbed has in its state *directory*."""
    known = os.path.join(directory, "ssh", "known_hosts")
    return {
        "ansible_connection": "ansible.builtin.ssh",
        "ansible_host": host["address"],
        "ansible_user": "root",
        "ansible_ssh_private_key_file": os.path.join(directory, "ssh", "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes",
    }


def variables_of(host: dict[str, Any]) -> dict[str, str]:
    """Variables of one host of the state file, however it is reached."""
    return {
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_testbed_address": host["address"],
    }


def site_variables(state: dict[str, Any]) -> dict[str, str]:
    """Variables all hosts of a testbed share."""
    return {
        "flexai_site": state["name"],
        "flexai_kubeconfig": state["kubeconfig"] or "",
    }


def read_state(path: str, name: str) -> dict[str, Any]:
    """Content of the state file; errors name what is missing and the remedy."""
    try:
        with open(path, encoding="utf-8") as stream:
            return dict(json.load(stream))
    except FileNotFoundError as error:
        raise AnsibleParserError(
            f"there is no testbed {name!r} ({path} does not exist); bring it up with `make demo` "
            f"or `python -m testbed up TOPOLOGY --name {name}`, or name another with FLEXAI_TESTBED"
        ) from error
    except (OSError, ValueError) as error:
        raise AnsibleParserError(
            f"cannot read the state of testbed {name!r} in {path}: {error}"
        ) from error


class InventoryModule(BaseInventoryPlugin):
    """Ansible's side: options in, hosts and groups out."""

    NAME = "flexai.xpu.testbed"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(FILE_NAMES)

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        name = self.get_option("testbed")
        directory = os.path.join(self.get_option("state_root"), name)
        state = read_state(os.path.join(directory, "state.json"), name)
        ssh = self.get_option("connection") == "ssh"
        self._populate(state, lambda host: by_ssh(host, directory) if ssh else by_podman(host))

    def _populate(
        self, state: dict[str, Any], reached: Callable[[dict[str, Any]], dict[str, str]]
    ) -> None:
        # Also the empty ones: plays name them all.
        for group in GROUPS:
            self.inventory.add_group(group)
        for host in state["hosts"]:
            self.inventory.add_host(host["name"])
            for group in groups_of(host):
                self.inventory.add_host(host["name"], group=group)
            for key, value in {**variables_of(host), **reached(host)}.items():
                self.inventory.set_variable(host["name"], key, value)
        for key, value in site_variables(state).items():
            self.inventory.set_variable("all", key, value)
