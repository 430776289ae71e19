#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: slice_check
short_description: Try slices from inside short-lived pods
version_added: 0.1.0
description:
  - On each given node, runs a pod with a slice, which must see exactly one card with its quota, and
    two pods without a slice but with C(NVIDIA_VISIBLE_DEVICES=all), one of them with the runtime
    class of slices, which must see no card.
  - The pods lie in a namespace of their own, which is deleted afterwards. Runs on the controller.
options:
  nodes:
    description: Names of the nodes to try.
    type: list
    elements: str
    required: true
  image:
    description: An image with C(python3) that lies on the nodes, or that they can pull.
    type: str
    required: true
  pull_secret:
    description:
      - Secret with which the image is pulled, as C(namespace/name); empty where none is needed.
        A copy lies in the pods' namespace as long as that does.
    type: str
    default: ""
  cores:
    description: Compute of the slice in percent.
    type: int
    default: 5
  memory_gib:
    description: Memory of the slice.
    type: int
    default: 1
  scheduler_name:
    description: The scheduler that gives out slices.
    type: str
    default: volcano
  timeout_s:
    description: How long the pods may take.
    type: int
    default: 120
extends_documentation_fragment:
  - flexai.xpu._cluster
attributes:
  check_mode:
    description: Makes no pods in C(check_mode), and finds no problems then.
    support: partial
    details: A pod is the only way to look from inside one, so nothing is looked at.
  diff_mode:
    description: There is nothing to show, since nothing stays changed.
    support: N/A
  idempotent:
    description: A second run leaves the same behind, which is nothing.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Try slices from inside
  flexai.xpu.slice_check:
    kubeconfig: /etc/kubernetes/admin.conf
    nodes: [gpu1]
    image: docker.io/library/xpu-workload:v1.0
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
problems:
  description: What is wrong; empty when every pod saw what it should.
  returned: success
  type: list
  elements: str
seen:
  description: What each pod saw.
  returned: success
  type: dict
"""

import json
import secrets
import time
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import NODES, Cluster, Object, connect
from ..module_utils._errors import XpuError, run_module

NAMESPACES = "/api/v1/namespaces"
LABEL = "flexai.io/slice-check"
RUNTIME_CLASS = "flexai-xpu"
DOCKER_RUNTIME_CLASS = "flexai-xpu-docker"  # cri-dockerd knows no other handler than Docker's own
PLACEMENT = "huawei.com/vgpu-ids-new"  # written by huawei-xpu together with the bind
PULL_SECRET = "pull"  # the copy's name
POLL_S = 1
GIB = 1 << 30
# Runs in the pod: what it sees, as one line of JSON after whatever else is printed.
LOOK = """
import glob, json, subprocess
seen = {"cards": len(glob.glob("/dev/nvidia[0-9]*"))}
monitor = "/opt/xpu/bin/gpu-monitor"
if glob.glob(monitor):
    done = subprocess.run([monitor, "-p", "1", "-o", "json"], capture_output=True, text=True)
    seen["monitor"] = json.loads(done.stdout) if done.returncode == 0 else done.stderr[-300:]
print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Trial:
    """One pod: on which node, with a slice or without, under which runtime class."""

    node: str
    sliced: bool
    runtime_class: str = ""

    @property
    def name(self) -> str:
        kind = "slice" if self.sliced else "bare-" + (self.runtime_class or "default")
        return f"{kind}-{self.node}".replace(".", "-").lower()[:63].rstrip("-")


def runtime_class_of(node: Object) -> str:
    """The runtime class of slices on this node."""
    info = (node.get("status") or {}).get("nodeInfo") or {}
    engine = str(info.get("containerRuntimeVersion") or "").partition("://")[0]
    return DOCKER_RUNTIME_CLASS if engine == "docker" else RUNTIME_CLASS


def trials(classes: t.Mapping[str, str]) -> list[Trial]:
    """*classes*: node → runtime class of slices there."""
    return [
        trial
        for node, runtime_class in classes.items()
        for trial in (
            Trial(node, True, runtime_class),
            Trial(node, False, runtime_class),
            Trial(node, False),
        )
    ]


def _pinned(node: str) -> Object:
    """To one node by affinity, so that the scheduler decides as it does for any pod."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def pod(trial: Trial, params: t.Mapping[str, t.Any]) -> Object:
    container: Object = {
        "name": "look",
        "image": params["image"],
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", LOOK],
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
    }
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "affinity": _pinned(trial.node),
        "containers": [container],
    }
    if params["pull_secret"]:
        spec["imagePullSecrets"] = [{"name": PULL_SECRET}]
    if trial.runtime_class:
        spec["runtimeClassName"] = trial.runtime_class
    if trial.sliced:
        spec["schedulerName"] = params["scheduler_name"]
        limits = {
            "huawei.com/vgpu-number": "1",
            "huawei.com/vgpu-cores": str(params["cores"]),
            "huawei.com/vgpu-memory-1Gi": str(params["memory_gib"]),
        }
        container["resources"] = {"limits": limits}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": trial.name},
        "spec": spec,
    }


def pull_secret(cluster: Cluster, source: str) -> Object:
    """A copy of the secret *source* (C(namespace/name)), for another namespace."""
    namespace, slash, name = source.partition("/")
    if not (namespace and slash and name):
        raise XpuError(
            f"pull_secret is {source!r}, which names no secret.", "write namespace/name."
        )
    found = cluster.get(f"{NAMESPACES}/{namespace}/secrets/{name}")
    if found is None:
        raise XpuError(
            f"There is no secret {name} in namespace {namespace}, with which images are pulled.",
            "make it, or leave images_pull_secret empty where the registry asks nobody.",
        )
    copied = {key: found[key] for key in ("apiVersion", "kind", "type", "data") if key in found}
    return {**copied, "metadata": {"name": PULL_SECRET}}


def problems(trial: Trial, seen: t.Mapping[str, t.Any], params: t.Mapping[str, t.Any]) -> list[str]:
    """What is wrong with what one pod saw (pure)."""
    where = f"pod {trial.name}"
    if "error" in seen:
        return [f"{where}: {seen['error']}"]
    if not trial.sliced:
        return [f"{where} sees {seen['cards']} cards without a slice"] if seen["cards"] else []
    if not seen.get("placement"):
        return [f"{where} was bound without {PLACEMENT}; vc-scheduler has not loaded huawei-xpu"]
    if seen["cards"] != 1:
        return [f"{where} sees {seen['cards']} cards, its slice is on one"]
    monitor = seen.get("monitor")
    devices = monitor.get("vxpus", []) if isinstance(monitor, dict) else []
    if len(devices) != 1:
        return [f"{where}: gpu-monitor shows {monitor or 'nothing'}"]
    quota = (devices[0]["core_quota"], devices[0]["memory_quota"])
    wanted = (params["cores"], params["memory_gib"] * GIB)
    if quota != wanted:
        return [f"{where} has a quota of {quota[0]} % and {quota[1]} bytes, not {wanted}"]
    return []


def _read(text: str) -> dict[str, t.Any]:
    last = (text.strip().splitlines() or [""])[-1]
    try:
        return dict(json.loads(last))
    except ValueError:
        return {"error": f"printed {text[-300:]!r}"}


def _why_not(cluster: Cluster, namespace: str, found: Object) -> str:
    """Why a pod did not get to its end: its newest warning, else its phase."""
    name = found["metadata"]["name"]
    events = cluster.list(
        f"{NAMESPACES}/{namespace}/events?fieldSelector=involvedObject.name%3D{name}"
    )
    warnings = [event["message"] for event in events if event.get("type") == "Warning"]
    phase = found.get("status", {}).get("phase", "unknown")
    return f"is {phase}" + (f": {warnings[-1]}" if warnings else "")


class Run:
    """The trials in one namespace."""

    def __init__(self, cluster: Cluster, params: t.Mapping[str, t.Any]) -> None:
        self._cluster, self._params = cluster, params
        self._namespace = f"flexai-slice-check-{secrets.token_hex(4)}"
        self._pods = f"{NAMESPACES}/{self._namespace}/pods"

    def __enter__(self) -> Run:
        for left in self._cluster.list(f"{NAMESPACES}?labelSelector={LABEL}"):
            if not left["metadata"].get("deletionTimestamp"):
                self._delete(left["metadata"]["name"])  # an earlier check was killed
        metadata = {"name": self._namespace, "labels": {LABEL: "true"}}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        source = self._params["pull_secret"]
        # Before anything is made: there may be none to copy.
        secret = pull_secret(self._cluster, source) if source else None
        self._cluster.change("post", NAMESPACES, body)
        if secret is not None:
            self._cluster.change("post", f"{NAMESPACES}/{self._namespace}/secrets", secret)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._delete(self._namespace)

    def _delete(self, namespace: str) -> None:
        self._cluster.change("delete", f"{NAMESPACES}/{namespace}")

    def start(self, trial: Trial) -> None:
        """The pod's service account comes some moments after its namespace."""
        deadline = time.monotonic() + self._params["timeout_s"]
        while True:
            try:
                self._cluster.change("post", self._pods, pod(trial, self._params))
                return
            except XpuError as error:
                if "serviceaccount" not in error.msg or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def results(self) -> dict[str, dict[str, t.Any]]:
        """What each pod saw, once all have ended or time is up."""
        deadline = time.monotonic() + self._params["timeout_s"]
        while True:
            found = self._cluster.list(self._pods)
            open_pods = [p for p in found if self._phase(p) not in ("Succeeded", "Failed")]
            if not open_pods or time.monotonic() > deadline:
                return {p["metadata"]["name"]: self._result(p) for p in found}
            time.sleep(POLL_S)

    @staticmethod
    def _phase(found: Object) -> str:
        return str(found.get("status", {}).get("phase", ""))

    def _result(self, found: Object) -> dict[str, t.Any]:
        metadata = found["metadata"]
        if self._phase(found) == "Succeeded":
            seen = _read(self._cluster.log(self._namespace, metadata["name"]))
            return {**seen, "placement": metadata.get("annotations", {}).get(PLACEMENT, "")}
        return {"error": _why_not(self._cluster, self._namespace, found)}


def check(cluster: Cluster, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    found_nodes = {node["metadata"]["name"]: node for node in cluster.list(NODES)}
    # A node that isn't there is told by its pods, which stay pending.
    wanted = trials({name: runtime_class_of(found_nodes.get(name, {})) for name in params["nodes"]})
    with Run(cluster, params) as run:
        for trial in wanted:
            run.start(trial)
        seen = run.results()
    found = [
        problem
        for trial in wanted
        for problem in problems(trial, seen.get(trial.name, {"error": "vanished"}), params)
    ]
    return {"changed": False, "problems": found, "seen": seen}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "str", "required": True},
            "image": {"type": "str", "required": True},
            "pull_secret": {"type": "str", "default": "", "no_log": False},
            "cores": {"type": "int", "default": 5},
            "memory_gib": {"type": "int", "default": 1},
            "scheduler_name": {"type": "str", "default": "volcano"},
            "timeout_s": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, problems=[], seen={})
    run_module(module, lambda m: check(connect(m.params["kubeconfig"]), m.params))


if __name__ == "__main__":
    main()
