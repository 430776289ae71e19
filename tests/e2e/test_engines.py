# SPDX-License-Identifier: GPL-3.0-or-later
"""Slices where the kubelet speaks to Docker by cri-dockerd, and where it speaks to containerd 2.

The site's ``runtimeType`` is docker, so its webhook names Docker's class; pods for containerd name
theirs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.effective import assert_ours_alone
from e2e.platform import ROOT, Platform, recap
from e2e.site import standing

pytestmark = pytest.mark.soak

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "engines.yaml"
# The sandbox inventory names containerd for every node; here each host tells by what it has.
VARIABLES = {"gpupool_runtime_type": "docker", "container_runtime_engine": "auto"}
NAMESPACE = "engines"
NUMBER, CORES, MEMORY = (f"huawei.com/vgpu-{part}" for part in ("number", "cores", "memory-1Gi"))
SLICE = {NUMBER: 1, CORES: 20, MEMORY: 3}
PATIENCE_S = 300
POLL_S = 1.0


def pod(name: str, node: str, limits: dict[str, int], runtime_class: str = "") -> dict[str, Any]:
    container = {
        "name": "app",
        "image": "docker.io/library/xpu-workload:v1.0",
        "imagePullPolicy": "Never",
        "command": ["sleep", "3600"],
        # As CUDA images carry it.
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
        "resources": {"limits": limits},
    }
    spec: dict[str, Any] = {
        "containers": [container],
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 0,
        **({"runtimeClassName": runtime_class} if runtime_class else {}),
    }
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


PODS = (
    pod("docker-webhook", "dock1", SLICE),
    pod("docker-named", "dock1", SLICE, "flexai-xpu-docker"),
    pod("docker-bare", "dock1", {}),
    pod("containerd-2", "two1", SLICE, "flexai-xpu"),
    pod("containerd-2-bare", "two1", {}, "flexai-xpu"),
)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with standing("engines", TOPOLOGY, VARIABLES) as made:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        made.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
        listed = {"apiVersion": "v1", "kind": "List", "items": PODS}
        made.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
        yield made


def ready(platform: Platform, name: str) -> dict[str, Any]:
    """The pod, once it runs."""
    of = ("-n", NAMESPACE)
    done = platform.kubectl(
        *of, "wait", "--for=condition=Ready", f"--timeout={PATIENCE_S}s", f"pod/{name}",
        check=False,
    )  # fmt: skip
    assert done.rc == 0, platform.kubectl(*of, "describe", "pod", name).output[-3000:]
    return dict(json.loads(platform.kubectl(*of, "get", "pod", name, "-o", "json").output))


def quotas(platform: Platform, name: str) -> list[tuple[int, int]]:
    """(percent, bytes) of each virtual card, as the pod itself sees them."""
    monitor = ("/opt/xpu/bin/gpu-monitor", "-o", "json", "-p", "1")
    seen = platform.in_pod(f"{NAMESPACE}/{name}", *monitor).output
    return [(one["core_quota"], one["memory_quota"]) for one in json.loads(seen)["vxpus"]]


def cards(platform: Platform, name: str) -> list[str]:
    listing = "ls /dev | grep -E '^nvidia' || true"
    return platform.in_pod(f"{NAMESPACE}/{name}", "sh", "-c", listing).output.split()


def container_in_docker(platform: Platform, pod: dict[str, Any]) -> dict[str, Any]:
    identity = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("docker://")
    return dict(json.loads(platform.on_host("dock1", "docker", "inspect", identity).output)[0])


def sandbox_failures(platform: Platform, name: str) -> str:
    selector = f"--field-selector=involvedObject.name={name},reason=FailedCreatePodSandBox"
    path = "jsonpath={.items[*].message}"
    return platform.kubectl("-n", NAMESPACE, "get", "events", selector, "-o", path).output


def test_the_nodes_are_on_the_engines_that_this_is_about(platform: Platform) -> None:
    nodes = json.loads(platform.kubectl("get", "nodes", "-o", "json").output)["items"]
    engines = {
        node["metadata"]["name"]: node["status"]["nodeInfo"]["containerRuntimeVersion"]
        for node in nodes
    }
    assert engines["dock1"].startswith("docker://")
    assert engines["two1"].startswith("containerd://2.")


@pytest.mark.parametrize("name", ["docker-webhook", "docker-named", "containerd-2"])
def test_a_pod_sees_its_slice_and_no_more(platform: Platform, name: str) -> None:
    ready(platform, name)
    assert quotas(platform, name) == [(20, 3 << 30)]
    assert [card for card in cards(platform, name) if card[6:].isdigit()] == ["nvidia0"]


@pytest.mark.parametrize("name", ["docker-bare", "containerd-2-bare"])
def test_a_pod_without_a_slice_sees_nothing(platform: Platform, name: str) -> None:
    ready(platform, name)
    assert cards(platform, name) == []


def test_the_webhook_names_the_class_that_cri_dockerd_takes(platform: Platform) -> None:
    found = ready(platform, "docker-webhook")
    assert found["spec"]["runtimeClassName"] == "flexai-xpu-docker"
    assert found["spec"]["schedulerName"] == "volcano"


def test_docker_gets_the_slice_by_a_volume_mount_and_the_default_runtime(
    platform: Platform,
) -> None:
    container = container_in_docker(platform, ready(platform, "docker-named"))
    targets = [mount["Destination"] for mount in container["Mounts"]]
    prefix = "/var/run/nvidia-container-devices/cdi/huawei.com/vgpu/"
    assert [target for target in targets if target.startswith(prefix)]
    # cri-dockerd names no runtime; this is the default's name, which Docker writes down.
    assert container["HostConfig"]["Runtime"] == "nvidia-cdi"


def test_the_class_of_containerd_is_refused_by_cri_dockerd(platform: Platform) -> None:
    """Why there is a second class: if this ever passes, one will do."""
    wrong = pod("docker-wrong", "dock1", {}, "flexai-xpu")
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    wanted = 'RuntimeHandler "nvidia-cdi" not supported'
    deadline = time.monotonic() + PATIENCE_S
    while wanted not in (said := sandbox_failures(platform, "docker-wrong")):
        assert time.monotonic() < deadline, said or "no event yet"
        time.sleep(POLL_S)
    platform.kubectl("-n", NAMESPACE, "delete", "pod", "docker-wrong", "--wait=false")


def test_containerd_2_differs_by_our_runtimes_alone(platform: Platform) -> None:
    assert_ours_alone(platform, "two1", version=3)


def test_the_verdict_names_the_engine_and_a_second_run_changes_nothing(platform: Platform) -> None:
    again = platform.playbook("site", "--extra-vars", json.dumps(VARIABLES))
    assert {host: counts["changed"] for host, counts in recap(again.output).items()} == {
        "cp1": 0,
        "dock1": 0,
        "two1": 0,
    }
    verdict = platform.verdict()
    assert verdict["ready"], verdict
    nodes = {node["name"]: node for node in verdict["nodes"]}
    found = {part["name"]: part["found"] for part in nodes["dock1"]["components"]}
    assert found["container_runtime"].startswith("cri-dockerd: ")
    assert "nvidia-cdi" in found["container_runtime"]


def test_uninstall_gives_docker_its_file_back(platform: Platform, tmp_path: Path) -> None:
    """Last: it takes the site away."""
    platform.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s")
    platform.playbook("uninstall", "--extra-vars", json.dumps(VARIABLES))
    said = platform.on_host("dock1", "cat", "/etc/docker/daemon.json").output
    assert "nvidia" not in said
    info = platform.on_host("dock1", "docker", "info", "--format", "{{json .DefaultRuntime}}")
    assert json.loads(info.output) == "runc"
    shown = platform.on_host("dock1", "docker", "image", "ls", "--format", "{{.Repository}}")
    assert "gpu-device-plugin" not in shown.output
