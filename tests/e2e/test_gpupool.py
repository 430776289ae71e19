# SPDX-License-Identifier: GPL-3.0-or-later
"""Role gpupool on a cluster in use: upgrades leave running pods alone, re-runs change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed.hosts import load

from e2e.conftest import Demo
from e2e.platform import ROOT, SCRIPTS, Platform, Run, recap, run

# Rolls every component, several minutes of waiting.
pytestmark = pytest.mark.soak

# As far as running pods are concerned, what a new version does: the component's pods are made anew.
UPGRADE = {"gpupool_values": {"logLevel": "debug", "gpuClientUpdate": {"intervalS": 61}}}
ROLLED = {
    "gpu-device-plugin": ("xpu", "app.kubernetes.io/name=gpu-device-plugin"),
    "client-update": ("xpu", "app.kubernetes.io/name=client-update"),
    "volcano-scheduler": ("volcano-system", "app=volcano-scheduler"),
    "volcano-controllers": ("volcano-system", "app=volcano-controller"),
}
# A value of Volcano's makes it read its configuration anew; only an image makes new pods.
VOLCANO = ("deployment/volcano-scheduler", "deployment/volcano-controllers")


def items(platform: Platform, namespace: str, selector: str) -> list[dict[str, Any]]:
    found = platform.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json")
    pods: list[dict[str, Any]] = json.loads(found.output)["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def life(platform: Platform, pod: str) -> dict[str, Any]:
    """What changes when a pod's container is started anew."""
    namespace, _, name = pod.partition("/")
    found = json.loads(platform.kubectl("-n", namespace, "get", "pod", name, "-o", "json").output)
    (status,) = found["status"]["containerStatuses"]
    return {
        "uid": found["metadata"]["uid"],
        "container": status["containerID"],
        "started": status["state"]["running"]["startedAt"],
        "restarts": status["restartCount"],
    }


def uids(platform: Platform) -> dict[str, set[str]]:
    return {
        name: {pod["metadata"]["uid"] for pod in items(platform, *where)}
        for name, where in ROLLED.items()
    }


def changed(done: Run) -> set[int]:
    counts = recap(done.output)
    assert counts, done.output
    return {host["changed"] for host in counts.values()}


def test_an_upgrade_of_every_component_leaves_a_running_slice_alone(
    demo: Demo, workload: str
) -> None:
    platform = demo.platform
    before, parts = life(platform, workload), uids(platform)
    platform.playbook("cluster", "--extra-vars", json.dumps(UPGRADE))
    for deployment in VOLCANO:
        platform.kubectl("-n", "volcano-system", "rollout", "restart", deployment)
        platform.kubectl("-n", "volcano-system", "rollout", "status", deployment, "--timeout=300s")
    after = uids(platform)
    # Else nothing was upgraded, and the rest would prove nothing.
    assert all(after[name] and not after[name] & parts[name] for name in ROLLED), (parts, after)
    assert life(platform, workload) == before
    monitor = platform.in_pod(workload, "/opt/xpu/bin/gpu-monitor", "-p", "1", "-o", "json")
    assert json.loads(monitor.output)["vxpus"][0]["core_quota"] == 20
    platform.playbook("cluster")
    assert life(platform, workload) == before
    assert changed(platform.playbook("cluster")) == {0}


def renamed(platform: Platform, directory: Path) -> Path:
    """An inventory of the same machines under names that are not their nodes'."""
    hosts = load(platform.name).hosts
    own = {
        f"rack-{host.name}": {
            "ansible_host": host.container,
            "ansible_connection": "containers.podman.podman",
            "node_labels_node_name": host.name,
        }
        for host in hosts
    }

    def group(role: str) -> dict[str, Any]:
        chosen = (host for host in hosts if role in host.roles)
        return {"hosts": {f"rack-{host.name}": own[f"rack-{host.name}"] for host in chosen}}

    inventory = {
        "flexai_control_plane": group("control-plane"),
        "flexai_nodes": {"children": {"flexai_kubernetes": group("worker")}},
        "all": {
            "vars": {
                "flexai_manifest": str(ROOT / "build/artefacts/manifest.yml"),
                "flexai_kubeconfig": str(platform.kubeconfig),
            }
        },
    }
    file = directory / "inventory.yml"
    file.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    return file


def test_hosts_that_are_named_otherwise_than_their_nodes_are_found(
    demo: Demo, tmp_path: Path
) -> None:
    platform = demo.platform
    command = [str(SCRIPTS / "ansible-playbook"), "flexai.xpu.cluster", "--inventory"]
    env = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(platform.collections),
        "ANSIBLE_NOCOLOR": "1",
    }
    platform.kubectl("label", "node", "gpu1", "gpupool.com/gpu-ready-")
    done = run([*command, str(renamed(platform, tmp_path))], env=env)
    assert changed(done) == {1}
    nodes = json.loads(
        platform.kubectl("get", "nodes", "-l", "gpupool.com/gpu-ready=true", "-o", "json").output
    )["items"]
    assert {node["metadata"]["name"] for node in nodes} == {"gpu1", "gpu2"}
