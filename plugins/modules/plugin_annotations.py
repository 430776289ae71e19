#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: plugin_annotations
short_description: Take from the nodes what a device plugin that is gone wrote on them
version_added: 0.1.0
description:
  - gpu-device-plugin registers its cards in annotations of its node. Where no DaemonSet of that
    name runs any more nobody keeps them true, and they are removed.
  - As long as there is such a DaemonSet, whoever it belongs to, they stay. Runs on the controller.
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows the annotations before and after.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Take the registration of cards from the nodes
  flexai.xpu.plugin_annotations:
    kubeconfig: /etc/kubernetes/admin.conf
  delegate_to: localhost
"""

RETURN = r"""
nodes:
  description: Nodes that bore such annotations and no longer do, or would no longer.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import Cluster, Object, connect
from ..module_utils._errors import run_module

NODES = "/api/v1/nodes"
DAEMON_SETS = "/apis/apps/v1/daemonsets"
PLUGIN = "gpu-device-plugin"
ANNOTATIONS = ("huawei.com/node-vgpu-register", "huawei.com/node-vgpu-handshake")


def stale(nodes: t.Iterable[Object], daemon_sets: t.Iterable[Object]) -> dict[str, list[str]]:
    """Node → annotations that nobody keeps true any more."""
    if any(PLUGIN in thing["metadata"]["name"] for thing in daemon_sets):
        return {}
    found = {
        node["metadata"]["name"]: [
            key for key in ANNOTATIONS if key in (node["metadata"].get("annotations") or {})
        ]
        for node in nodes
    }
    return {name: keys for name, keys in found.items() if keys}


def converge(cluster: Cluster, check: bool) -> dict[str, t.Any]:
    found = stale(cluster.list(NODES), cluster.list(DAEMON_SETS))
    for name, keys in () if check else found.items():
        body = {"metadata": {"annotations": dict.fromkeys(keys)}}
        cluster.change("patch", f"{NODES}/{name}", body)
    lines = "".join(f"node {name}: {key}\n" for name, keys in found.items() for key in keys)
    return {
        "changed": bool(found),
        "nodes": sorted(found),
        "diff": {"before": lines, "after": ""},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"kubeconfig": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(connect(m.params["kubeconfig"]), m.check_mode))


if __name__ == "__main__":
    main()
