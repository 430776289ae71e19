#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_labels
short_description: Label nodes with cards, and have the RuntimeClasses that slices need
version_added: 0.1.0
description:
  - Runs on the controller, once for all nodes. Other labels of the nodes stay as they are.
  - What it sets on a node, and what stood there before, it records in the node's annotation
    C(flexai.io/labels), so that it can be taken back.
  - A RuntimeClass is made when it is absent and mended when it is ours; somebody else's is left as
    it is when it names the same handler, and refused when it names another.
options:
  nodes:
    description: Names of the nodes. Needed when O(state=present).
    type: list
    elements: str
  labels:
    description: Labels that every one of the nodes bears. Needed when O(state=present).
    type: dict
  state:
    description:
      - V(absent) gives every node that bears our record the labels of before, and deletes the
        RuntimeClasses that are ours. A label that somebody has changed since stays.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows labels and RuntimeClasses before and after.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Mark the nodes that have cards
  flexai.xpu.node_labels:
    kubeconfig: /etc/kubernetes/admin.conf
    nodes: [gpu1, gpu2]
    labels:
      gpupool.com/gpu-ready: "true"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
steps:
  description: What was, or would be, changed.
  returned: success
  type: list
  elements: str
left:
  description: What was not removed since it is not ours, each with the reason.
  returned: success
  type: list
  elements: str
"""

import json
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import (
    HANDLERS,
    LABELS_RECORD,
    NODES,
    OWNER,
    RUNTIME_CLASSES,
    Cluster,
    Object,
    connect,
    is_ours,
)
from ..module_utils._errors import XpuError, run_module

RECORD = LABELS_RECORD
# What document 000 patches onto `nvidia` by hand, with the value that Helm really looks for.
ADOPTION = {
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {
        "meta.helm.sh/release-name": "gpupool",
        "meta.helm.sh/release-namespace": "default",
    },
}


@dataclass(frozen=True)
class Step:
    """One request to the API server, with what it changes for people."""

    what: str
    verb: str
    path: str
    body: Object | None
    before: str = ""


def runtime_class(name: str) -> Object:
    extra = ADOPTION if name == "nvidia" else {}
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {
            "name": name,
            "labels": {**OWNER, **extra.get("labels", {})},
            "annotations": extra.get("annotations", {}),
        },
        "handler": HANDLERS[name],
    }


def plan_labels(
    found: t.Mapping[str, Object], nodes: t.Iterable[str], labels: t.Mapping[str, str]
) -> list[Step]:
    unknown = sorted(set(nodes) - set(found))
    if unknown:
        raise XpuError(
            f"The cluster has no node {', '.join(unknown)}; it has {', '.join(sorted(found))}.",
            "set node_labels_node_name on hosts whose node is named otherwise.",
        )
    steps = []
    for node in sorted(set(nodes)):
        has = found[node]["metadata"].get("labels") or {}
        lacking = {key: value for key, value in labels.items() if has.get(key) != value}
        if lacking:
            record = recorded(found[node])
            for key, value in lacking.items():
                former = record[key][1] if key in record else has.get(key)
                record[key] = [value, former]
            note = {RECORD: json.dumps(record, sort_keys=True)}
            body = {"metadata": {"labels": lacking, "annotations": note}}
            before = json.dumps({key: has.get(key) for key in lacking}, sort_keys=True)
            steps.append(Step(f"node {node}", "patch", f"{NODES}/{node}", body, before))
    return steps


def recorded(node: Object) -> dict[str, list[str | None]]:
    """What we set on this node: label → [our value, the value of before]."""
    notes = node["metadata"].get("annotations") or {}
    record: dict[str, list[str | None]] = json.loads(notes.get(RECORD) or "{}")
    return record


def plan_removal(
    nodes: t.Mapping[str, Object], classes: t.Mapping[str, Object]
) -> tuple[list[Step], list[str]]:
    """(what takes everything of ours back, what stays since it is another's)"""
    steps, left = [], []
    for name, node in sorted(nodes.items()):
        record, has = recorded(node), node["metadata"].get("labels") or {}
        if not record:
            continue
        # Null removes a key in a merge patch.
        back = {key: former for key, (ours, former) in record.items() if has.get(key) == ours}
        left += [f"label {key} of node {name}: changed since" for key in record if key not in back]
        body = {"metadata": {"labels": back, "annotations": {RECORD: None}}}
        before = json.dumps({key: has.get(key) for key in back}, sort_keys=True)
        steps.append(Step(f"node {name}", "patch", f"{NODES}/{name}", body, before))
    for name in sorted(HANDLERS.keys() & classes.keys()):
        if is_ours(classes[name]):
            path = f"{RUNTIME_CLASSES}/{name}"
            steps.append(Step(f"RuntimeClass {name}", "delete", path, None, "present"))
        else:
            left.append(f"RuntimeClass {name}: not made by flexai.xpu")
    return steps, left


def plan_runtime_classes(found: t.Mapping[str, Object]) -> list[Step]:
    steps = []
    for name, handler in HANDLERS.items():
        wanted, there = runtime_class(name), found.get(name)
        if there is None:
            steps.append(Step(f"RuntimeClass {name}", "post", RUNTIME_CLASSES, wanted))
        elif there["handler"] != handler:
            raise XpuError(
                f"RuntimeClass {name} exists with handler {there['handler']}, "
                f"slices need {handler}. "
                "Nothing was changed.",
                "remove it with whatever made it, or give that another name.",
            )
        else:
            steps += _mend(name, wanted["metadata"], there["metadata"])
    return steps


def _mend(name: str, wanted: Object, there: Object) -> list[Step]:
    """Our own RuntimeClass gets back what it lost; another's is left alone."""
    if not is_ours({"metadata": there}):
        return []
    lost = {
        part: {
            key: value
            for key, value in wanted[part].items()
            if (there.get(part) or {}).get(key) != value
        }
        for part in ("labels", "annotations")
    }
    if not any(lost.values()):
        return []
    path = f"{RUNTIME_CLASSES}/{name}"
    return [Step(f"RuntimeClass {name}", "patch", path, {"metadata": lost})]


def _by_name(items: t.Iterable[Object]) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in items}


def converge(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    nodes = _by_name(cluster.list(NODES))
    classes = _by_name(cluster.list(RUNTIME_CLASSES))
    left: list[str] = []
    if params["state"] == "present":
        steps = plan_labels(nodes, params["nodes"], params["labels"])
        steps += plan_runtime_classes(classes)
    else:
        steps, left = plan_removal(nodes, classes)
    for step in () if check else steps:
        cluster.change(step.verb, step.path, step.body)
    return {
        "changed": bool(steps),
        "steps": [step.what for step in steps],
        "left": left,
        "diff": {
            "before": "".join(f"{step.what} {step.before}\n" for step in steps),
            "after": "".join(f"{step.what} {_after(step)}\n" for step in steps),
        },
    }


def _after(step: Step) -> str:
    return json.dumps(step.body) if step.body else "absent"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str"},
            "labels": {"type": "dict"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("nodes", "labels"))],
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(connect(m.params["kubeconfig"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
