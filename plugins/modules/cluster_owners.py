#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_owners
short_description: Find who else has a part in the cluster, and stop where that can't go together
version_added: 0.1.0
description:
  - Runs on the controller, once for the cluster, before anything is changed. Finds gpu-operator,
    NVIDIA's and Ascend's own device plugins, MindCluster, a Volcano of somebody else's,
    RuntimeClasses, Helm releases and labels of others, and decides for each component whether it is
    adopted, worked beside, or refused.
  - Fails with all refusals and their remedies in one message. Changes nothing.
options:
  nodes:
    description: Names of the nodes that are ours to change.
    type: list
    elements: str
    default: []
  components:
    description: Of which components to ask; others neither stop it nor are they told.
    type: list
    elements: str
    choices: [runtime_classes, node_labels, volcano, gpupool]
    default: [runtime_classes, node_labels, volcano, gpupool]
  labels:
    description: Labels that they shall bear.
    type: dict
    default: {}
  gpupool_release:
    description: Name of our release of the chart gpupool.
    type: str
    default: gpupool
  gpupool_namespace:
    description: Its namespace.
    type: str
    default: default
  volcano_release:
    description: Name of our release of Volcano's chart.
    type: str
    default: volcano
  volcano_namespace:
    description: Its namespace.
    type: str
    default: volcano-system
  volcano_second_name:
    description:
      - What ours is called where a foreign Volcano runs, as release, namespace and scheduler.
    type: str
    default: flexai-volcano
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Find who else has a part in the cluster
  flexai.xpu.cluster_owners:
    kubeconfig: /etc/kubernetes/admin.conf
    nodes: [gpu1, gpu2]
  delegate_to: localhost
"""

RETURN = r"""
foreign_volcano:
  description: By what a Volcano of somebody else's is known; empty where there is none.
  returned: success
  type: str
plan:
  description: One entry per component that somebody else has a part in.
  returned: success
  type: list
  elements: dict
lines:
  description: The same for people.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import (
    HANDLERS,
    LABELS_RECORD,
    NODES,
    RUNTIME_CLASSES,
    Cluster,
    connect,
)
from ..module_utils._cluster_owners import Release, Seen, Wanted, decide, foreign_volcano
from ..module_utils._decision import BLOCKED
from ..module_utils._errors import XpuError, run_module

COMPONENTS = ["runtime_classes", "node_labels", "volcano", "gpupool"]
APPS = "/apis/apps/v1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SECRETS = "/api/v1/secrets"


def observe(cluster: Cluster) -> Seen:
    return Seen(
        nodes=cluster.list(NODES),
        workloads=[
            thing
            for kind in ("daemonsets", "deployments")
            for thing in cluster.list(f"{APPS}/{kind}")
        ],
        runtime_classes=cluster.list(RUNTIME_CLASSES),
        crds=cluster.list(CRDS),
        helm_records=cluster.list(SECRETS, label_selector="owner=helm"),
    )


def _wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    return Wanted(
        nodes=params["nodes"],
        labels=params["labels"],
        handlers=HANDLERS,
        gpupool=Release(params["gpupool_release"], params["gpupool_namespace"]),
        volcano=Release(params["volcano_release"], params["volcano_namespace"]),
        second=Release(params["volcano_second_name"], params["volcano_second_name"]),
    )


def look(cluster: Cluster, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    seen, wanted = observe(cluster), _wanted(params)
    decisions = [
        decision
        for decision in decide(seen, wanted, LABELS_RECORD)
        if decision.component in params["components"]
    ]
    refused = [
        f"cluster: {decision.component} is blocked: {decision.reason}."
        for decision in decisions
        if decision.action == BLOCKED
    ]
    if refused:
        raise XpuError("Nothing was changed.\n" + "\n".join(refused), "see each line.")
    return {
        "changed": False,
        "foreign_volcano": foreign_volcano(seen, wanted.volcano),
        "plan": [decision.as_dict() for decision in decisions],
        "lines": [f"cluster  {one.component}  {one.stance}: {one.reason}" for one in decisions],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str", "default": []},
            "components": {
                "type": "list",
                "elements": "str",
                "choices": COMPONENTS,
                "default": COMPONENTS,
            },
            "labels": {"type": "dict", "default": {}},
            "gpupool_release": {"type": "str", "default": "gpupool"},
            "gpupool_namespace": {"type": "str", "default": "default"},
            "volcano_release": {"type": "str", "default": "volcano"},
            "volcano_namespace": {"type": "str", "default": "volcano-system"},
            "volcano_second_name": {"type": "str", "default": "flexai-volcano"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: look(connect(m.params["kubeconfig"]), m.params))


if __name__ == "__main__":
    main()
