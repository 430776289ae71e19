#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_plugin_nodes
short_description: Give nodes to NVIDIA's device plugin, and see what they show
version_added: 0.1.0
description:
  - Refuses nodes whose cards somebody gives out already, our own device plugin above all; one card
    must not be promised twice.
  - Has each node bear the label C(nvidia.com/device-plugin.config) with the name of its
    configuration, where that is not the default, and takes back only what it set.
  - With O(wait_s), waits until the nodes' capacity is what their configurations say.
  - Runs on the controller.
options:
  nodes:
    description: Names of the nodes. Needed when O(state=present).
    type: list
    elements: str
  node_configs:
    description: Node → name of its configuration, where it is not the default.
    type: dict
    default: {}
  release:
    description: Our Helm release of NVIDIA's chart.
    type: str
    default: nvidia-device-plugin
  namespace:
    description: Its namespace.
    type: str
    default: nvidia-device-plugin
  offers:
    description: Node → C(resource) and C(multiple) that its capacity shall show; see O(wait_s).
    type: dict
    default: {}
  wait_s:
    description: How long to wait for the capacity in O(offers). 0 doesn't look.
    type: int
    default: 0
  state:
    description: V(absent) takes the labels back from every node that we set one on.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Give two nodes to NVIDIA's plugin
  flexai.xpu.nvidia_plugin_nodes:
    kubeconfig: /etc/kubernetes/admin.conf
    nodes: [gpu3, gpu4]
    node_configs: {gpu4: shared}
  delegate_to: localhost
"""

RETURN = r"""
steps:
  description: What was, or would be, changed.
  returned: success
  type: list
  elements: str
left:
  description: Labels that stay since somebody has changed them.
  returned: success
  type: list
  elements: str
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import NODES, Cluster, Object, connect
from ..module_utils._cluster_owners import (
    HELM_NAME,
    HELM_NAMESPACE,
    NVIDIA_PLUGIN,
    OUR_RESOURCE,
    offers_nvidia,
    owners_of_workloads,
    shows,
)
from ..module_utils._errors import XpuError, run_module
from ..module_utils._nvidia_plugin import Offer, shortage

LABEL = "nvidia.com/device-plugin.config"
# Annotation of a node: the value of that label that we set.
RECORD = "flexai.io/nvidia-device-plugin"
READY_LABEL = ("gpupool.com/gpu-ready", "true")
DAEMON_SETS = "/apis/apps/v1/daemonsets"
POLL_S = 2


class Step(t.NamedTuple):
    """A node's label from *before* to *label*, and the record of what we set."""

    node: str
    label: str | None
    before: str | None
    record: str | None

    @property
    def what(self) -> str:
        if self.label == self.before:
            return f"node {self.node}: record of label {LABEL} → {self.record or 'absent'}"
        return f"node {self.node}: {LABEL} {self.before or 'absent'} → {self.label or 'absent'}"

    @property
    def body(self) -> Object:
        """A merge patch; null removes a key."""
        return {
            "metadata": {"labels": {LABEL: self.label}, "annotations": {RECORD: self.record}},
        }


def _labels(node: Object) -> t.Mapping[str, str]:
    return node["metadata"].get("labels") or {}


def _record(node: Object) -> str | None:
    notes: t.Mapping[str, str] = node["metadata"].get("annotations") or {}
    return notes.get(RECORD)


def is_ours(daemon_set: Object, release: str, namespace: str) -> bool:
    notes = daemon_set["metadata"].get("annotations") or {}
    return (notes.get(HELM_NAME), notes.get(HELM_NAMESPACE)) == (release, namespace)


def refusals(
    nodes: t.Mapping[str, Object],
    wanted: t.Iterable[str],
    daemon_sets: t.Sequence[Object],
    release: str,
    namespace: str,
) -> list[str]:
    """Why some nodes can't be given to NVIDIA's plugin (pure)."""
    installed = any(is_ours(one, release, namespace) for one in daemon_sets)
    strangers = [one for one in daemon_sets if not is_ours(one, release, namespace)]
    theirs = owners_of_workloads(strangers).get(NVIDIA_PLUGIN, [])
    found = []
    for name in sorted(wanted):
        node = nodes.get(name)
        if node is None:
            found.append(f"node {name}: the cluster has {', '.join(sorted(nodes))} only")
        elif shows(node, OUR_RESOURCE) or _labels(node).get(READY_LABEL[0]) == READY_LABEL[1]:
            found.append(
                f"node {name}: gpu-device-plugin gives its cards out as slices (label "
                f"{'='.join(READY_LABEL)}, {OUR_RESOURCE}); take the host out of flexai_kubernetes "
                "and its label off the node, or the node out of nvidia_device_plugin_nodes"
            )
        elif offers_nvidia(node) and not installed:
            by = f" ({', '.join(theirs)})" if theirs else ""
            found.append(
                f"node {name}: somebody else's plugin{by} gives its cards out already; uninstall "
                "that one first, or leave the node to it"
            )
    return found


def plan(
    nodes: t.Mapping[str, Object], wanted: t.Iterable[str], configs: t.Mapping[str, str]
) -> tuple[list[Step], list[str]]:
    """(what to set or take back, what stays since it is another's)"""
    steps, left = [], []
    given = set(wanted)
    for name, node in sorted(nodes.items()):
        has, record = _labels(node).get(LABEL), _record(node)
        target = configs.get(name) if name in given else None
        if target is not None:
            if (has, record) != (target, target):
                steps.append(Step(name, target, has, target))
        elif record is not None:
            changed_since = has not in (record, None)
            steps.append(Step(name, has if changed_since else None, has, None))
            if changed_since:
                left.append(f"label {LABEL}={has} of node {name}: changed since we set it")
        elif name in given and has is not None:
            left.append(f"label {LABEL}={has} of node {name}: set by somebody else, and in force")
    return steps, left


def wait(cluster: Cluster, offers: t.Mapping[str, Offer], wait_s: int) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        there = {node["metadata"]["name"]: node for node in cluster.list(NODES)}
        lacking = [shortage(there[name], wanted) for name, wanted in sorted(offers.items())]
        lacking = [line for line in lacking if line]
        if not lacking:
            return
        if time.monotonic() >= deadline:
            raise XpuError(
                f"After {wait_s} s: {'; '.join(lacking)}.",
                "look at the pods of NVIDIA's plugin on these nodes with kubectl logs.",
            )
        time.sleep(POLL_S)


def converge(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    nodes = {node["metadata"]["name"]: node for node in cluster.list(NODES)}
    present = params["state"] == "present"
    wanted, configs = (params["nodes"], params["node_configs"]) if present else ([], {})
    if present:
        refused = refusals(
            nodes, wanted, cluster.list(DAEMON_SETS), params["release"], params["namespace"]
        )
        if refused:
            raise XpuError("Nothing was changed.\n" + "\n".join(refused), "see each line.")
    steps, left = plan(nodes, wanted, configs)
    for step in () if check else steps:
        cluster.change("patch", f"{NODES}/{step.node}", step.body)
    if present and params["wait_s"] and not check:
        offers = {name: Offer(**offer) for name, offer in params["offers"].items()}
        wait(cluster, offers, params["wait_s"])
    lines = [step.what for step in steps]
    return {
        "changed": bool(steps),
        "steps": lines,
        "left": left,
        "diff": {"before": "", "after": "".join(f"{line}\n" for line in lines)},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str"},
            "node_configs": {"type": "dict", "default": {}},
            "release": {"type": "str", "default": "nvidia-device-plugin"},
            "namespace": {"type": "str", "default": "nvidia-device-plugin"},
            "offers": {"type": "dict", "default": {}},
            "wait_s": {"type": "int", "default": 0},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("nodes",))],
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(connect(m.params["kubeconfig"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
