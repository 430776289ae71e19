#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_users
short_description: Refuse to go on while pods hold slices, or something rests on Volcano
version_added: 0.1.0
description:
  - Looks for what an uninstallation would take the ground from, and fails with all of it named.
    Changes nothing. Runs on the controller.
options:
  of:
    description:
      - V(slices) finds unfinished pods that are bound to a node and ask for C(huawei.com/vgpu-*).
      - V(volcano) finds unfinished pods that name Volcano as their scheduler, and Volcano's objects
        that go with its CRDs (jobs, job flows, job templates, queues other than its own).
      - V(scheduler) finds unfinished pods that name O(scheduler_name), and nothing else.
    type: str
    choices: [slices, volcano, scheduler]
    required: true
  scheduler_name:
    description: The scheduler of O(of=scheduler).
    type: str
  force:
    description: Whether to go on all the same; what was found is a warning then.
    type: bool
    default: false
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
- name: Refuse while pods hold slices
  flexai.xpu.cluster_users:
    kubeconfig: /etc/kubernetes/admin.conf
    of: slices
  delegate_to: localhost
"""

RETURN = r"""
users:
  description: What was found.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import Cluster, Object, connect
from ..module_utils._errors import XpuError, run_module

PODS = "/api/v1/pods"
SLICE_RESOURCE = "huawei.com/vgpu-"
SCHEDULER = "volcano"
FINISHED = ("Succeeded", "Failed")
OWN_QUEUES = ("default", "root")
VOLCANO_KINDS = {
    "Volcano job": "/apis/batch.volcano.sh/v1alpha1/jobs",
    "job flow": "/apis/flow.volcano.sh/v1alpha1/jobflows",
    "job template": "/apis/flow.volcano.sh/v1alpha1/jobtemplates",
    "queue": "/apis/scheduling.volcano.sh/v1beta1/queues",
}


def _name(thing: Object) -> str:
    meta = thing["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def _asks_for_slice(pod: Object) -> bool:
    spec = pod["spec"]
    containers = [*spec["containers"], *(spec.get("initContainers") or ())]
    return any(
        resource.startswith(SLICE_RESOURCE)
        for container in containers
        for resource in (container.get("resources") or {}).get("limits") or {}
    )


def _unfinished(pods: t.Iterable[Object]) -> list[Object]:
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") not in FINISHED]


def slice_holders(pods: t.Iterable[Object]) -> list[str]:
    """Pods that have a slice now; one that waits for a node has none yet."""
    return sorted(
        f"pod {_name(pod)} on {pod['spec']['nodeName']}"
        for pod in _unfinished(pods)
        if pod["spec"].get("nodeName") and _asks_for_slice(pod)
    )


def scheduled_by(pods: t.Iterable[Object], scheduler: str) -> list[str]:
    """Pods that wait or run by the word of a scheduler."""
    return sorted(
        f"pod {_name(pod)}"
        for pod in _unfinished(pods)
        if pod["spec"].get("schedulerName") == scheduler
    )


def volcano_users(
    pods: t.Iterable[Object], objects: t.Mapping[str, t.Iterable[Object]]
) -> list[str]:
    """What is scheduled by Volcano, or would be deleted with its CRDs."""
    found = scheduled_by(pods, SCHEDULER) + [
        f"{kind} {_name(thing)}"
        for kind, things in objects.items()
        for thing in things
        if not (kind == "queue" and _name(thing) in OWN_QUEUES)
    ]
    return sorted(found)


def look(cluster: Cluster, of: str, scheduler: str | None = None) -> list[str]:
    pods = cluster.list(PODS)
    if of == "slices":
        return slice_holders(pods)
    if of == "scheduler":
        return scheduled_by(pods, scheduler or "")
    return volcano_users(pods, {kind: cluster.list(path) for kind, path in VOLCANO_KINDS.items()})


def refuse(users: t.Sequence[str], params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    said = {
        "slices": "hold slices",
        "volcano": "rest on Volcano",
        "scheduler": f"rest on scheduler {params.get('scheduler_name')}",
    }[params["of"]]
    sentence = f"These {said}: {', '.join(users)}."
    if users and not params["force"]:
        raise XpuError(
            f"{sentence} Nothing was changed.",
            "delete them first, or take it from under them with uninstall_force: true.",
        )
    return {"changed": False, "users": users, "warnings": [sentence] if users else []}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "of": {"type": "str", "choices": ["slices", "volcano", "scheduler"], "required": True},
            "scheduler_name": {"type": "str"},
            "force": {"type": "bool", "default": False},
        },
        required_if=[("of", "scheduler", ("scheduler_name",))],
        supports_check_mode=True,
    )

    def act(m: AnsibleModule) -> dict[str, t.Any]:
        found = look(connect(m.params["kubeconfig"]), m.params["of"], m.params["scheduler_name"])
        return refuse(found, m.params)

    run_module(module, act)


if __name__ == "__main__":
    main()
