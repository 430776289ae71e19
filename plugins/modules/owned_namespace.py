#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: owned_namespace
short_description: Have a namespace of our own, and take away only what is ours and empty
version_added: 0.1.0
description:
  - A namespace that is absent is made with C(app.kubernetes.io/part-of=flexai.xpu), which says that
    it is ours. Somebody else's is used as it is and never labelled.
  - Runs on the controller.
options:
  name:
    description: Name of the namespace.
    type: str
    required: true
  labels:
    description: Further labels, for a namespace that is ours.
    type: dict
    default: {}
  state:
    description:
      - V(absent) deletes the namespace when it is ours and holds nothing but what every namespace
        has (its default service account, the cluster's root certificate, events, leases).
    type: str
    choices: [present, absent]
    default: present
  timeout_s:
    description: How long to wait until a deleted namespace has gone.
    type: int
    default: 60
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows the labels before and after.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have the namespace of the device plugin
  flexai.xpu.owned_namespace:
    kubeconfig: /etc/kubernetes/admin.conf
    name: xpu
    labels:
      pod-security.kubernetes.io/enforce: privileged
  delegate_to: localhost
"""

RETURN = r"""
left:
  description: Why the namespace was not deleted, one reason a line.
  returned: success
  type: list
  elements: str
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import OWNER, Cluster, Object, connect, is_ours
from ..module_utils._errors import XpuError, run_module

NAMESPACES = "/api/v1/namespaces"
POLL_S = 0.5
# What Kubernetes itself puts into every namespace, and what a program that has gone leaves behind.
EVERYWHERE = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
TRACES = ("Event", "Lease")


def labels_lacking(found: Object | None, wanted: t.Mapping[str, str]) -> dict[str, str]:
    """Labels that a namespace of ours must get; none for somebody else's."""
    if found is None:
        return dict(wanted)
    has = found["metadata"].get("labels") or {}
    return {k: v for k, v in wanted.items() if has.get(k) != v} if is_ours(found) else {}


def content(things: t.Iterable[tuple[str, str]]) -> list[str]:
    """Of (kind, name) what somebody put into the namespace, for people."""
    return sorted(
        f"{kind} {name}"
        for kind, name in things
        if kind not in TRACES and (kind, name) not in EVERYWHERE
    )


def _things(cluster: Cluster, namespace: str) -> t.Iterator[tuple[str, str]]:
    for path, kind in cluster.kinds_in_namespaces():
        for thing in cluster.list(path.format(namespace=namespace)):
            yield kind, thing["metadata"]["name"]


def obstacles(cluster: Cluster, found: Object) -> list[str]:
    """Why the namespace has to stay."""
    name = found["metadata"]["name"]
    if not is_ours(found):
        return [f"namespace {name}: not made by flexai.xpu"]
    inside = content(_things(cluster, name))
    return [f"namespace {name}: holds {', '.join(inside)}"] if inside else []


def delete(cluster: Cluster, name: str, timeout_s: int) -> None:
    path = f"{NAMESPACES}/{name}"
    cluster.change("delete", path)
    deadline = time.monotonic() + timeout_s
    while cluster.get(path) is not None:
        if time.monotonic() > deadline:
            raise XpuError(
                f"Namespace {name} is still there {timeout_s} s after its deletion.",
                f"look at its conditions: kubectl get namespace {name} -o yaml.",
            )
        time.sleep(POLL_S)


def _present(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    name = params["name"]
    found = cluster.get(f"{NAMESPACES}/{name}")
    lacking = labels_lacking(found, {**params["labels"], **OWNER})
    if lacking and not check:
        body: Object = {"metadata": {"name": name, "labels": lacking}}
        if found is None:
            cluster.change("post", NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", **body})
        else:
            cluster.change("patch", f"{NAMESPACES}/{name}", body)
    before = "absent" if found is None else "present"
    return {"changed": bool(lacking), "left": [], "diff": _diff(name, before, "present", lacking)}


def _absent(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    name = params["name"]
    found = cluster.get(f"{NAMESPACES}/{name}")
    left = obstacles(cluster, found) if found else []
    changed = found is not None and not left
    if changed and not check:
        delete(cluster, name, params["timeout_s"])
    before = "present" if found else "absent"
    after = "absent" if changed else before
    return {"changed": changed, "left": left, "diff": _diff(name, before, after, {})}


def _diff(name: str, before: str, after: str, labels: t.Mapping[str, str]) -> dict[str, str]:
    lines = "".join(f"{key}={value}\n" for key, value in sorted(labels.items()))
    return {"before": f"namespace {name} {before}\n", "after": f"namespace {name} {after}\n{lines}"}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "labels": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "timeout_s": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    converge = _present if module.params["state"] == "present" else _absent
    run_module(module, lambda m: converge(connect(m.params["kubeconfig"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
