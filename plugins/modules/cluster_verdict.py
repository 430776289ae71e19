#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_verdict
short_description: Ask the API server whether the cluster gives out slices
version_added: 0.1.0
description:
  - Judges RuntimeClasses, node labels, Volcano and the device plugin by what the API server shows.
    Runs on the controller, once per cluster, and shares no knowledge with what installs them.
  - Nothing is changed.
options:
  nodes:
    description: Names of the nodes that have cards.
    type: list
    elements: str
    required: true
  components:
    description: What to judge.
    type: list
    elements: str
    choices: [runtime_classes, node_labels, volcano, gpupool]
    default: [runtime_classes, node_labels, volcano, gpupool]
  changed_components:
    description: Components that this run changed; they are C(changed) instead of C(ok).
    type: list
    elements: str
    default: []
  inside:
    description: RV(flexai.xpu.slice_check#module:problems), where it was run.
    type: list
    elements: str
  wait_s:
    description: Wait as long for everything to be right, then fail. 0 looks once and only tells.
    type: int
    default: 0
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Judge the cluster
  flexai.xpu.cluster_verdict:
    kubeconfig: /etc/kubernetes/admin.conf
    nodes: [gpu1, gpu2]
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
verdict:
  description: The cluster's verdict, as an entry beside those of the nodes.
  returned: success
  type: dict
  sample:
    name: cluster
    ready: true
    components:
      - name: volcano
        wanted: scheduler with huawei-xpu, controllers
        found: docker.io/library/vc-scheduler:v1.0
        state: ok
        reason: ""
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import Cluster, Object, connect
from ..module_utils._errors import XpuError, run_module
from ..module_utils._verdict import Component, Node, build

POLL_S = 2
RESOURCES = ("huawei.com/vgpu-number", "huawei.com/vgpu-cores", "huawei.com/vgpu-memory-1Gi")
HANDLERS = {"flexai-xpu": "nvidia-cdi", "flexai-xpu-docker": "docker", "nvidia": "nvidia"}
READY_LABEL = ("gpupool.com/gpu-ready", "true")
REGISTER = "huawei.com/node-vgpu-register"
WEBHOOK = {"app.kubernetes.io/part-of": "gpupool", "app.kubernetes.io/component": "webhook"}
SCHEDULER_CONFIGURATION = "volcano-scheduler.conf"

Items = t.Sequence[Object]


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def judge_runtime_classes(classes: Items) -> Component:
    name, wanted = "runtime_classes", ", ".join(f"{k} → {v}" for k, v in sorted(HANDLERS.items()))
    there = {_name(thing): str(thing["handler"]) for thing in classes if _name(thing) in HANDLERS}
    found = ", ".join(f"{k} → {v}" for k, v in sorted(there.items()))
    if not there:
        return Component(name, wanted, "", "absent", "no RuntimeClass for slices")
    state = "ok" if there == HANDLERS else "failed"
    return Component(name, wanted, found, state)


def judge_labels(nodes: Items, wanted_nodes: t.Sequence[str]) -> Component:
    name, (key, value) = "node_labels", READY_LABEL
    marked = {
        _name(node) for node in nodes if (node["metadata"].get("labels") or {}).get(key) == value
    }
    lacking = sorted(set(wanted_nodes) - marked)
    wanted, found = f"{len(wanted_nodes)} nodes", f"{len(wanted_nodes) - len(lacking)} nodes"
    if not lacking:
        return Component(name, wanted, found, "ok")
    reason = f"{key}={value} lacks on {', '.join(lacking)}"
    return Component(
        name, wanted, found, "failed" if len(lacking) < len(wanted_nodes) else "absent", reason
    )


def _shortage(workload: Object) -> str:
    """How many pods of a Deployment or DaemonSet are missing; empty when none is."""
    status = workload.get("status") or {}
    if "desiredNumberScheduled" in status:
        wanted, ready = status["desiredNumberScheduled"], status.get("numberReady", 0)
    else:
        wanted, ready = workload["spec"].get("replicas", 1), status.get("availableReplicas", 0)
    behind = status.get("observedGeneration", 0) < workload["metadata"].get("generation", 0)
    if wanted and ready >= wanted and not behind:
        return ""
    return f"{_name(workload)} has {ready} of {wanted} pods ready"


def judge_volcano(deployments: Items, configurations: Items) -> Component:
    """Of several schedulers the one whose configuration names huawei-xpu; others are foreign."""
    name, wanted = "volcano", "scheduler with huawei-xpu, controllers"
    with_plugin = {
        configuration["metadata"]["namespace"]
        for configuration in configurations
        if "name: huawei-xpu" in (configuration.get("data") or {}).get(SCHEDULER_CONFIGURATION, "")
    }

    def of(role: str) -> list[Object]:
        return [d for d in deployments if (d["metadata"].get("labels") or {}).get("app") == role]

    schedulers = of("volcano-scheduler")
    if not schedulers:
        return Component(name, wanted, "", "absent", "no Deployment labelled app=volcano-scheduler")
    ours = [d for d in schedulers if d["metadata"]["namespace"] in with_plugin] or schedulers
    scheduler, namespace = ours[0], ours[0]["metadata"]["namespace"]
    controllers = [d for d in of("volcano-controller") if d["metadata"]["namespace"] == namespace]
    found = str(scheduler["spec"]["template"]["spec"]["containers"][0]["image"])
    faults = [_shortage(d) for d in (*controllers, scheduler)]
    if not controllers:
        faults.append(f"no Deployment labelled app=volcano-controller in {namespace}")
    if namespace not in with_plugin:
        faults.append("the scheduler's configuration does not name huawei-xpu")
    reason = "; ".join(fault for fault in faults if fault)
    return Component(name, wanted, found, "failed" if reason else "ok", reason)


def _lacks_resources(node: Object) -> bool:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return any(str(allocatable.get(resource, "0")) == "0" for resource in RESOURCES) or not (
        node["metadata"].get("annotations") or {}
    ).get(REGISTER)


def judge_gpupool(
    daemon_sets: Items,
    nodes: Items,
    wanted_nodes: t.Sequence[str],
    inside: t.Sequence[str] | None,
    webhooks: Items = (),
) -> Component:
    name, wanted = "gpupool", f"{len(wanted_nodes)} nodes with slices"
    plugins = [d for d in daemon_sets if "gpu-device-plugin" in _name(d)]
    if not plugins:
        return Component(name, wanted, "", "absent", "no DaemonSet gpu-device-plugin")
    there = {_name(node): node for node in nodes}
    lacking = [n for n in wanted_nodes if n not in there or _lacks_resources(there[n])]
    # A chart without a webhook is the site's choice.
    faults = [fault for part in (plugins[0], *webhooks) if (fault := _shortage(part))]
    if lacking:
        faults.append(f"no allocatable slices on {', '.join(sorted(lacking))}")
    faults += inside or []
    found = f"{len(wanted_nodes) - len(lacking)} nodes with slices"
    passed = "" if inside is None else "checked from inside pods"
    return Component(name, wanted, found, "failed" if faults else "ok", "; ".join(faults) or passed)


def judge(cluster: Cluster, params: t.Mapping[str, t.Any]) -> Node:
    asked, wanted_nodes = params["components"], params["nodes"]
    needs_nodes = {"node_labels", "gpupool"} & set(asked)
    nodes = cluster.list("/api/v1/nodes") if needs_nodes else []
    found = []
    if "runtime_classes" in asked:
        found.append(judge_runtime_classes(cluster.list("/apis/node.k8s.io/v1/runtimeclasses")))
    if "node_labels" in asked:
        found.append(judge_labels(nodes, wanted_nodes))
    if "volcano" in asked:
        deployments = cluster.list("/apis/apps/v1/deployments")
        found.append(judge_volcano(deployments, cluster.list("/api/v1/configmaps")))
    if "gpupool" in asked:
        daemon_sets = cluster.list("/apis/apps/v1/daemonsets")
        webhooks = [
            deployment
            for deployment in cluster.list("/apis/apps/v1/deployments")
            if WEBHOOK.items() <= (deployment["metadata"].get("labels") or {}).items()
        ]
        found.append(judge_gpupool(daemon_sets, nodes, wanted_nodes, params["inside"], webhooks))
    return build("cluster", [_marked(part, params["changed_components"]) for part in found])


def _marked(part: Component, changed: t.Collection[str]) -> Component:
    if part.state == "ok" and part.name in changed:
        return Component(part.name, part.wanted, part.found, "changed", part.reason)
    return part


def verdict(cluster: Cluster, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    deadline = time.monotonic() + params["wait_s"]
    found = judge(cluster, params)
    while not found["ready"] and time.monotonic() < deadline:
        time.sleep(POLL_S)
        found = judge(cluster, params)
    if params["wait_s"] and not found["ready"]:
        wrong = [p for p in found["components"] if p["state"] not in ("ok", "changed")]
        raise XpuError(
            f"After {params['wait_s']} s: "
            + "; ".join(f"{part['name']}: {part['reason'] or part['found']}" for part in wrong),
            "look at the pods of namespace xpu with kubectl describe and logs.",
        )
    return {"changed": False, "verdict": found}


def main() -> None:
    components = ["runtime_classes", "node_labels", "volcano", "gpupool"]
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "components": {
                "type": "list",
                "elements": "str",
                "choices": components,
                "default": components,
            },
            "changed_components": {"type": "list", "elements": "str", "default": []},
            "inside": {"type": "list", "elements": "str"},
            "wait_s": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: verdict(connect(m.params["kubeconfig"]), m.params))


if __name__ == "__main__":
    main()
