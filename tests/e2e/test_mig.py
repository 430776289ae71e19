# SPDX-License-Identifier: GPL-3.0-or-later
"""MIG instances beside slices, and the device plugin as a unit, on a real kubelet.

A testbed of its own (`topologies/mig.yaml`): one node whose card is in MIG mode.
FLEXAI_MIG_TESTBED names one that is up already and stays up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from testbed.artefacts import publish_all

from e2e.platform import ROOT, Platform, must, recap
from e2e.test_device_plugin import CORES, MEMORY, NUMBER, PATIENCE_S, manifest, wait_for

pytestmark = pytest.mark.soak

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "mig.yaml"
NAMESPACE = "mig"
HOST = "gpu1"
MODEL = "huawei.com/vgpu-type.A100-MIG"
# By NVIDIA's numbers: card 0, GPU instances 1, 5 and 13, compute instance 0 of each.
CAPS = {"3g.20gb": [12, 13], "2g.10gb": [48, 49], "1g.5gb": [120, 121]}
PLUGIN = ("-n", "xpu", "get", "pods", "--field-selector", f"spec.nodeName={HOST}", "-o", "name")
# What the driver API says, in the container: the instance's UUID and its memory.
CUDA = """
import ctypes, uuid
cuda = ctypes.CDLL("libcuda.so.1")
count, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(16)
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
assert cuda.cuDeviceGetUuid_v2(name, 0) == 0
assert cuda.cuDeviceTotalMem_v2(ctypes.byref(total), 0) == 0
print(count.value, f"MIG-{uuid.UUID(bytes=name.raw)}", total.value >> 20)
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Platform]:
    platform = Platform(os.environ.get("FLEXAI_MIG_TESTBED", "mig"))
    was_up = platform.state_file.exists()
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", platform.name])
    platform.playbook("site")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
    account = ("-n", NAMESPACE, "get", "serviceaccount", "default")
    wait_for("a service account", lambda: platform.kubectl(*account, check=False).rc == 0)
    yield platform
    if not was_up:
        down = [sys.executable, "-m", "testbed", "down", "--name", platform.name]
        subprocess.run(down, cwd=ROOT, check=True)


def start(site: Platform, name: str, limits: dict[str, int]) -> None:
    pod = manifest(name, limits)
    pod["metadata"]["namespace"] = NAMESPACE
    site.kubectl("create", "-f", "-", stdin=json.dumps(pod))


def ready(site: Platform, name: str) -> None:
    limit = f"--timeout={PATIENCE_S}s"
    site.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", limit, f"pod/{name}")


def inside(site: Platform, pod: str, *command: str) -> list[str]:
    return site.in_pod(f"{NAMESPACE}/{pod}", *command).output.split()


def held(site: Platform, pod: str) -> list[dict[str, Any]]:
    text = site.on_host(HOST, "cat", "/var/lib/xpu/ledger.json").output
    found = [one for one in json.loads(text)["slices"] if one["pod"] == pod]
    return [share for one in found for share in one["shares"]]


def instances(site: Platform) -> dict[str, str]:
    """Size → UUID, by the node's annotation."""
    node = json.loads(site.kubectl("get", "node", HOST, "-o", "json").output)
    register = node["metadata"]["annotations"]["huawei.com/node-vgpu-register"]
    cards = [card.split(",") for card in register.split(":") if card]
    assert all(card[1].startswith("MIG-") and card[5] == "true" for card in cards), register
    return {card[4].removeprefix("GPU-A100-MIG-"): card[1] for card in cards}


def test_the_node_announces_each_instance_as_a_card(site: Platform) -> None:
    assert set(instances(site)) == set(CAPS)
    node = json.loads(site.kubectl("get", "node", HOST, "-o", "json").output)
    allocatable = node["status"]["allocatable"]
    assert allocatable[NUMBER] == "60" and allocatable[CORES] == "300"
    assert allocatable[MEMORY] == "32", "19 GiB, 9 GiB and 4 GiB that are whole"


@pytest.mark.parametrize(
    ("pod", "size", "limits", "share"),
    [
        ("whole", "2g.10gb", {NUMBER: 1}, (100, 9984)),
        ("sliced", "3g.20gb", {NUMBER: 1, CORES: 20, MEMORY: 3}, (20, 3072)),
    ],
)
def test_a_pod_gets_an_instance_and_sees_no_other(
    site: Platform, pod: str, size: str, limits: dict[str, int], share: tuple[int, int]
) -> None:
    uuid = instances(site)[size]
    start(site, pod, {**limits, f"{MODEL}-{size}": 1})
    ready(site, pod)
    (one,) = held(site, pod)
    assert (one["uuid"], one["cores_percent"], one["memory_mib"]) == (uuid, *share)
    caps = inside(site, pod, "ls", "/dev/nvidia-caps")
    assert sorted(caps) == sorted(f"nvidia-cap{number}" for number in CAPS[size])
    assert inside(site, pod, "python3", "-c", CUDA) == ["1", uuid, str(share[1])]
    listed = inside(
        site, pod, "nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader"
    )
    assert listed == [f"{uuid},", str(share[1]), "MiB"]


def test_several_instances_in_one_container_are_refused_by_name(site: Platform) -> None:
    start(site, "several", {NUMBER: 2, CORES: 10, MEMORY: 1})

    def told() -> str:
        found = site.kubectl("-n", NAMESPACE, "get", "events", "-o", "json").output
        events = json.loads(found)["items"]
        said = [e["message"] for e in events if e["involvedObject"]["name"] == "several"]
        return next((text for text in said if "MIG instance" in text), "")

    assert "beside which a process sees no other card" in wait_for("the reason", told)
    site.kubectl("-n", NAMESPACE, "delete", "pod", "several", "--wait=false")


def unit(site: Platform, *more: str, check: bool = True) -> Any:
    wanted = "device_plugin_unit_state=present"
    return site.playbook("device_plugin_unit", "--limit", HOST, "-e", wanted, *more, check=check)


def runs(site: Platform) -> bool:
    state = site.on_host(HOST, "systemctl", "is-active", "gpu-device-plugin", check=False)
    return state.output.strip() == "active"


def test_the_plugin_as_a_unit_registers_and_a_pod_gets_its_slice(site: Platform) -> None:
    refused = unit(site, check=False)
    assert refused.rc != 0 and "DaemonSet xpu/gpu-device-plugin runs" in refused.output
    assert not runs(site), "beside the DaemonSet"

    label = ("label", "node", HOST, "--overwrite")
    site.kubectl(*label, "flexai.io/device-plugin=unit")
    wait_for(
        "the DaemonSet's pod ends", lambda: "gpu-device-plugin" not in site.kubectl(*PLUGIN).output
    )
    predicted = unit(site, "--check", "--diff")
    assert recap(predicted.output)[HOST]["changed"] > 0 and not runs(site)
    unit(site)
    assert runs(site)
    assert recap(unit(site).output)[HOST]["changed"] == 0

    start(site, "by-unit", {NUMBER: 1, CORES: 20, MEMORY: 2})
    ready(site, "by-unit")
    (share,) = held(site, "by-unit")
    assert (share["cores_percent"], share["memory_mib"]) == (20, 2048)
    assert inside(site, "whole", "python3", "-c", CUDA)[0] == "1", "who ran before runs on"

    gone = "device_plugin_unit_state=absent"
    site.playbook("device_plugin_unit", "--limit", HOST, "-e", gone)
    assert not runs(site)
    left = site.on_host(HOST, "ls", "/usr/local/bin/gpu-device-plugin", check=False)
    assert left.rc != 0
    site.kubectl("label", "node", HOST, "flexai.io/device-plugin-")
    wait_for("the DaemonSet is back", lambda: "gpu-device-plugin" in site.kubectl(*PLUGIN).output)
