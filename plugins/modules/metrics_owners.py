#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: metrics_owners
short_description: Look who exports metrics in the cluster already, and whether ours can
version_added: 0.1.0
description:
  - Names exporters of cards that are not ours, and whoever has the exporter's port on one of the
    nodes. Refuses what couldn't work (the port is to be the node's own and is taken; objects of
    prometheus-operator are wanted, which isn't there). Changes nothing. Runs on the controller.
options:
  nodes:
    description: Names of the nodes on which our exporter is to run.
    type: list
    elements: str
    required: true
  port:
    description: Port of our exporter.
    type: int
    required: true
  host_network:
    description: Whether that is to be a port of the node itself.
    type: bool
    default: false
  kinds:
    description: Kinds of prometheus-operator that are wanted.
    type: list
    elements: str
    choices: [ServiceMonitor, PrometheusRule]
    default: []
extends_documentation_fragment:
  - flexai.xpu._cluster
attributes:
  check_mode:
    description: Can run in C(check_mode); it changes nothing anyway.
    support: full
  diff_mode:
    description: There is nothing to show, since nothing is changed.
    support: N/A
  idempotent:
    description: Changes nothing.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: See that our exporter can have the nodes' port 8082
  flexai.xpu.metrics_owners:
    kubeconfig: /etc/kubernetes/admin.conf
    nodes: [gpu1, gpu2]
    port: 8082
    host_network: true
  delegate_to: localhost
"""

RETURN = r"""
exporters:
  description: Exporters of cards that are not ours; they stay as they are.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import Cluster, Object, connect
from ..module_utils._errors import XpuError, run_module

PODS = "/api/v1/pods"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OURS = {"app.kubernetes.io/part-of": "gpupool", "app.kubernetes.io/name": "xpu-exporter"}
# Words of which one stands in the image of an exporter of cards.
IMAGES = ("xpu-exporter", "xpu_exporter", "npu-exporter", "dcgm-exporter", "gpu-exporter")
FINISHED = ("Succeeded", "Failed")
CUSTOM = {
    "ServiceMonitor": "servicemonitors.monitoring.coreos.com",
    "PrometheusRule": "prometheusrules.monitoring.coreos.com",
}


def is_our_exporter(pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return OURS.items() <= labels.items()


def _name(pod: Object) -> str:
    meta = pod["metadata"]
    return f"{meta['namespace']}/{meta['name']} on {pod['spec']['nodeName']}"


def running_on(pods: t.Iterable[Object], nodes: t.Container[str]) -> list[Object]:
    """Unfinished pods of these nodes, our exporter's own left out."""
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName") in nodes
        and (pod.get("status") or {}).get("phase") not in FINISHED
        and not is_our_exporter(pod)
    ]


def exporters(pods: t.Iterable[Object]) -> list[str]:
    """Those whose image says that they export cards."""
    return sorted(
        _name(pod)
        for pod in pods
        if any(
            word in str(container.get("image", ""))
            for container in pod["spec"]["containers"]
            for word in IMAGES
        )
    )


def holders(pods: t.Iterable[Object], port: int) -> list[str]:
    """Those that have a port of their node: by hostPort, or by the node's network. A program that
    declares no port is not seen; our exporter says so itself when it finds the port taken."""

    def has(pod: Object) -> bool:
        ports = [p for c in pod["spec"]["containers"] for p in c.get("ports") or ()]
        on_host = bool(pod["spec"].get("hostNetwork"))
        return any(
            p.get("hostPort") == port or (on_host and p.get("containerPort") == port) for p in ports
        )

    return sorted(_name(pod) for pod in pods if has(pod))


def judge(
    pods: t.Sequence[Object], definitions: t.Iterable[Object], params: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """What is told of others; what couldn't work is refused."""
    others = running_on(pods, params["nodes"])
    port, taken = params["port"], holders(others, params["port"])
    if params["host_network"] and taken:
        raise XpuError(
            f"Port {port} of the nodes is taken: {', '.join(taken)}. Nothing was changed.",
            "choose another monitoring_port, leave monitoring_host_network false, or remove that "
            "exporter.",
        )
    known = {definition["metadata"]["name"] for definition in definitions}
    missing = [kind for kind in params["kinds"] if CUSTOM[kind] not in known]
    if missing:
        raise XpuError(
            f"The cluster knows no {' and no '.join(missing)}; prometheus-operator is not "
            "installed. Nothing was changed.",
            "install prometheus-operator first, or set monitoring_service_monitor and "
            "monitoring_alerts to false.",
        )
    found = exporters(others)
    said = [f"exports metrics of cards too, and stays as it is: {name}" for name in found]
    return {"changed": False, "exporters": found, "warnings": said}


def look(cluster: Cluster, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    definitions = cluster.list(DEFINITIONS) if params["kinds"] else []
    return judge(cluster.list(PODS), definitions, params)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "host_network": {"type": "bool", "default": False},
            "kinds": {"type": "list", "elements": "str", "choices": list(CUSTOM), "default": []},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: look(connect(m.params["kubeconfig"]), m.params))


if __name__ == "__main__":
    main()
