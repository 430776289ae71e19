# SPDX-License-Identifier: GPL-3.0-or-later
"""uninstall.yml brings back what was before site.yml, and refuses while slices are held."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from testbed.artefacts import publish_all

from e2e import serving, snapshot
from e2e.platform import ROOT, Platform, must, recap

pytestmark = pytest.mark.soak

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "molecule.yaml"
HOSTS = ("cp1", "gpu1", "dock1")
# What the README of role container_runtime names: a changed configuration takes a restart.
NAMED = ("start of containerd.service", "start of docker.service")
CLUSTER_WIDE = (
    "namespaces,customresourcedefinitions,runtimeclasses,clusterroles,clusterrolebindings"
)
# A service that the site names, which holds no slice.
SERVICE: dict[str, object] = {
    "vllm_service_name": "tiny",
    "vllm_service_namespace": "served",
    "vllm_service_model": "/var/lib/flexai-engine/model",
    "vllm_service_version": "0.32.0",
    "vllm_service_image": serving.IMAGE,
    "vllm_service_env": {"PATH": "/engine/bin:/usr/local/bin:/usr/bin:/bin"},
    "vllm_service_volumes": [f"{serving.DIRECTORY}:/engine"],
    "vllm_service_nodes": ["gpu1"],
    "vllm_service_device": "none",
    "vllm_service_runtime_class": "flexai-xpu",
    "vllm_service_cpu": "100m",
    "vllm_service_memory": "4Gi",
    "vllm_service_drain_s": 1,
}
NODE_MARKS = "{range .items[*]}{.metadata.name} {.metadata.labels} {.metadata.annotations}{end}"


@pytest.fixture(scope="module")
def bare() -> Iterator[Platform]:
    """A testbed of its own without anything of ours."""
    platform = Platform("uninstall")
    down = [sys.executable, "-m", "testbed", "down", "--name", platform.name]
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    subprocess.run(down, cwd=ROOT, check=True)
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", platform.name])
    yield platform
    subprocess.run(down, cwd=ROOT, check=True)


def look(platform: Platform) -> dict[str, snapshot.Snapshot]:
    """The hosts, and the cluster as if it were one more."""

    def on_host(host: str, *command: str) -> str:
        return platform.on_host(host, *command).output

    found = {host: snapshot.take(on_host, host) for host in HOSTS}
    objects = platform.kubectl("get", CLUSTER_WIDE, "-o", "name").output
    marks = platform.kubectl("get", "nodes", "-o", f"jsonpath={NODE_MARKS}").output
    found["cluster"] = {**dict.fromkeys(objects.split(), "present"), "nodes": marks}
    return found


def changed(output: str) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in recap(output).items()}


def test_there_and_back(bare: Platform) -> None:
    before = look(bare)
    bare.playbook("site")

    pod = bare.start_workload()
    refused = bare.playbook("uninstall", check=False)
    assert refused.rc != 0
    assert f"pod {pod} on gpu1" in refused.output
    assert set(changed(refused.output).values()) == {0}
    bare.kubectl("delete", "namespace", "slice-demo", "--wait=true")

    nodes = serving.nodes(bare)
    serving.place(serving.stub(), nodes)
    bare.play("flexai.xpu.vllm_service", SERVICE)
    # A group of two finds no second node here, and goes all the same.
    serving.inference(bare, "pair", inference_service_wait=False)
    named = ("--extra-vars", json.dumps(SERVICE), "-e", f"@{serving.SERVICES}/pair.yml")
    installed = look(bare)

    predicted = changed(bare.playbook("uninstall", "--check", "--diff", *named).output)
    assert {host: snapshot.differences(installed[host], look(bare)[host]) for host in HOSTS} == {
        host: [] for host in HOSTS
    }
    assert all(predicted.values()), predicted

    bare.playbook("uninstall", *named)
    serving.remove(nodes)
    after = look(bare)
    left = {
        place: [
            line
            for line in snapshot.differences(before[place], after[place])
            if not line.startswith(NAMED)
        ]
        for place in before
    }
    assert left == {place: [] for place in before}
    again = changed(bare.playbook("uninstall", *named).output)
    assert set(again.values()) == {0}, again
