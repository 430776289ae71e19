#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: device_plugin_cover
short_description: Refuse where a DaemonSet of gpu-device-plugin covers a node
version_added: 0.1.0
description:
  - On a node where gpu-device-plugin runs as a unit no DaemonSet may run it too, since two would
    take turns with the kubelet's sockets. Fails where a DaemonSet of any namespace that runs it
    chooses the node by node selector and affinity, or where a pod of one is still there.
  - Taints are not looked at, since a toleration may be added at any time. Runs on the controller.
options:
  node:
    description: Name of the node.
    type: str
    required: true
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: See that no DaemonSet runs the device plugin here
  flexai.xpu.device_plugin_cover:
    kubeconfig: /etc/kubernetes/admin.conf
    node: gpu1
  delegate_to: localhost
"""

RETURN = r"""
daemon_sets:
  description: DaemonSets of gpu-device-plugin that leave the node out, as namespace/name.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import NODES, Cluster, Object, connect
from ..module_utils._errors import XpuError, run_module

DAEMON_SETS = "/apis/apps/v1/daemonsets"
PODS = "/api/v1/pods"
PLUGIN = "gpu-device-plugin"
KEEP_OFF = "flexai.io/device-plugin=unit"


def runs_plugin(pod_spec: Object) -> bool:
    """Whether one of a pod's images is the device plugin's, whatever registry and tag it has."""
    images = [str(container.get("image", "")) for container in pod_spec.get("containers") or ()]
    names = [image.rpartition("/")[2] for image in images]
    return any(name.partition("@")[0].partition(":")[0] == PLUGIN for name in names)


def _holds(expression: Object, labels: t.Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    operator = expression["operator"]
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    return True  # Gt, Lt: rather refuse once too often than run two plugins


def chooses(pod_spec: Object, labels: t.Mapping[str, str]) -> bool:
    """Whether pods of this kind go to a node with these labels, by node selector and affinity."""
    wanted = pod_spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get(
        "nodeSelectorTerms"
    )
    if not terms:
        return True
    return any(
        all(_holds(expression, labels) for expression in term.get("matchExpressions") or ())
        for term in terms
    )


def _name(thing: Object) -> str:
    return f"{thing['metadata'].get('namespace', 'default')}/{thing['metadata']['name']}"


def examine(
    node: Object | None, name: str, daemon_sets: t.Iterable[Object], pods: t.Iterable[Object]
) -> list[str]:
    """The plugin's DaemonSets that leave the node out; XpuError where one doesn't."""
    if node is None:
        raise XpuError(
            f"The cluster has no node {name}.",
            "set device_plugin_unit_node for this host to the name its kubelet registers.",
        )
    labels = node["metadata"].get("labels") or {}
    plugins = [one for one in daemon_sets if runs_plugin(one["spec"]["template"]["spec"])]
    covering = [_name(one) for one in plugins if chooses(one["spec"]["template"]["spec"], labels)]
    if covering:
        raise XpuError(
            f"DaemonSet {', '.join(covering)} runs {PLUGIN} on node {name}, and two would take "
            "turns with the kubelet's sockets.",
            f"keep it off: `kubectl label node {name} {KEEP_OFF}` (chart gpupool), or let "
            "another DaemonSet's node selector leave the node out; then run again. To keep the "
            "DaemonSet instead, set device_plugin_unit_state to absent.",
        )
    left = [
        _name(pod)
        for pod in pods
        if runs_plugin(pod["spec"])
        and any(o["kind"] == "DaemonSet" for o in pod["metadata"].get("ownerReferences") or ())
    ]
    if left:
        raise XpuError(
            f"Pod {', '.join(left)} of a DaemonSet that leaves node {name} out is still there.",
            "wait until it has ended, then run again.",
        )
    return sorted(_name(one) for one in plugins)


def look(cluster: Cluster, name: str) -> dict[str, t.Any]:
    left_out = examine(
        cluster.get(f"{NODES}/{name}"),
        name,
        cluster.list(DAEMON_SETS),
        cluster.list(PODS, field_selector=f"spec.nodeName={name}"),
    )
    return {"changed": False, "daemon_sets": left_out}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "node": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: look(connect(m.params["kubeconfig"]), m.params["node"]))


if __name__ == "__main__":
    main()
