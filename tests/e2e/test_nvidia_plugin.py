# SPDX-License-Identifier: GPL-3.0-or-later
"""Document 003 on the demo: NVIDIA's own plugin, the real program, shares a card by time slices.

One of the demo's nodes is taken from our plugin for it, and given back at the end. It has two
cards, as the document's: 20 time slices, of which the document's service asks for 12.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed.hosts import load
from testbed.recipes import device_plugin
from xpubuild.artefacts import Artefact, publish
from xpubuild.cache import Cache
from xpubuild.recipes import helm

from e2e import serving
from e2e.conftest import Demo
from e2e.platform import ROOT, Platform, Run, recap

pytestmark = pytest.mark.soak

OURS, THEIRS = "gpu2", "gpu1"
REPLICAS, CARDS = 10, 2
SHARED = {
    "version": "v1",
    "flags": {"migStrategy": "none"},
    "sharing": {
        "timeSlicing": {
            "renameByDefault": True,
            "resources": [{"name": "nvidia.com/gpu", "replicas": REPLICAS}],
        }
    },
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "shared", "namespace": "default"},
    "spec": {
        "runtimeClassName": "flexai-xpu",
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "main",
                "image": "docker.io/library/xpu-workload:v1.0",
                "command": ["sleep", "infinity"],
                # The image asks for every card; the plugin's own environment goes before that.
                "resources": {"limits": {"nvidia.com/gpu.shared": "1"}},
            }
        ],
    },
}

# The document's service in inventories/sandbox/services: namespace, name, model.
SERVED = ("openpie-model", "vllm-openai", "qwen2-7b")
# And as role vllm_service has it.
BY_ROLE: dict[str, Any] = {
    "vllm_service_name": "vllm-openai",
    "vllm_service_namespace": "openpie-role",
    "vllm_service_model": "/var/lib/flexai-engine/model",
    "vllm_service_served_name": "qwen2-7b",
    "vllm_service_version": "0.6.3.post1",
    "vllm_service_image": serving.IMAGE,
    "vllm_service_env": {"PATH": "/engine/bin:/usr/local/bin:/usr/bin:/bin"},
    "vllm_service_volumes": [f"{serving.DIRECTORY}:/engine"],
    "vllm_service_nodes": [THEIRS],
    "vllm_service_device": "shared",
    "vllm_service_gpus": 12,
    "vllm_service_shared_replicas": REPLICAS,
    "vllm_service_tensor_parallel": 2,
    "vllm_service_card_memory_gib": 24,
    "vllm_service_memory_utilization": 0.5,
    "vllm_service_max_model_len": 512,
    "vllm_service_runtime_class": "flexai-xpu",
    "vllm_service_cpu": "100m",
    "vllm_service_memory": "6Gi",
    "vllm_service_port": 18000,
    "vllm_service_drain_s": 1,
    "vllm_service_start_timeout_s": 300,
}


def manifest(directory: Path) -> Path:
    """What a site's manifest has for this role: helm, and NVIDIA's chart."""
    cache = Cache()
    chart = device_plugin.publish(cache, directory)
    entries = [
        Artefact(
            "helm", helm.VERSION, "x86_64", "binary", helm.build(cache) / "helm", "Apache-2.0"
        ),
        Artefact(
            "nvidia-device-plugin", device_plugin.VERSION, "noarch", "chart", chart, "Apache-2.0"
        ),
    ]
    return publish(entries, directory / "artefacts")


class Site:
    """A site that has the role."""

    def __init__(self, platform: Platform, directory: Path) -> None:
        self.platform = platform
        self._variables = {
            "nvidia_device_plugin_manifest": str(manifest(directory)),
            "nvidia_device_plugin_nodes": [THEIRS],
            "nvidia_device_plugin_configs": {"default": {"version": "v1"}, "shared": SHARED},
            "nvidia_device_plugin_node_configs": {THEIRS: "shared"},
            # The testbed has no libnvidia-container, which runtime nvidia would use.
            "nvidia_device_plugin_runtime_class": "flexai-xpu",
        }

    def role(self, *arguments: str, check: bool = True, **more: Any) -> Run:
        book = ROOT / "tests/e2e/nvidia_plugin.yml"
        return self.platform.play(book, {**self._variables, **more}, *arguments, check=check)

    def capacity(self, node: str) -> dict[str, str]:
        found = json.loads(self.platform.kubectl("get", "node", node, "-o", "json").output)
        capacity: dict[str, str] = found["status"]["capacity"]
        return {name: value for name, value in capacity.items() if name.startswith("nvidia.com")}


@pytest.fixture(scope="module")
def site(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The demo with NVIDIA's image on one node, which ours no longer serves."""
    platform = demo.platform
    built = device_plugin.image(Cache())
    host = load(platform.name).host(THEIRS)
    host.put("/root/k8s-device-plugin.tar", built / "k8s-device-plugin.tar")
    platform.on_host(
        THEIRS, "ctr", "-n", "k8s.io", "images", "import", "/root/k8s-device-plugin.tar"
    )
    made = Site(platform, tmp_path_factory.mktemp("nvidia"))
    yield made
    platform.kubectl("delete", "pod", "shared", "--ignore-not-found")
    made.role(entry="uninstall")
    platform.on_host(THEIRS, "rm", "/root/k8s-device-plugin.tar")
    platform.on_host(THEIRS, "ctr", "-n", "k8s.io", "images", "rm", device_plugin.REFERENCE)
    platform.playbook("cluster")


def changed(done: Run) -> set[int]:
    counts = recap(done.output)
    assert counts, done.output
    return {host["changed"] for host in counts.values()}


def test_a_node_that_gives_slices_is_not_given_twice(site: Site) -> None:
    refused = site.role(
        nvidia_device_plugin_nodes=[OURS], nvidia_device_plugin_node_configs={}, check=False
    )
    assert refused.rc != 0
    assert f"node {OURS}: gpu-device-plugin gives its cards out as slices" in refused.output
    assert changed(refused) == {0}


def test_document_003s_own_text_is_refused_with_what_to_write(site: Site) -> None:
    pasted = {"default": {"config": {"map": {"default": SHARED}}}}
    refused = site.role(
        nvidia_device_plugin_configs=pasted, nvidia_device_plugin_node_configs={}, check=False
    )
    assert refused.rc != 0
    assert "holds the path config.map of the chart's values" in refused.output
    assert changed(refused) <= {0}


def test_a_card_is_shared_as_the_configuration_says(site: Site) -> None:
    site.platform.kubectl("label", "node", THEIRS, "gpupool.com/gpu-ready-")
    site.platform.kubectl(
        "-n", "xpu", "wait", "pod", "--for=delete", "--timeout=120s",
        "-l", "app.kubernetes.io/name=gpu-device-plugin",
        f"--field-selector=spec.nodeName={THEIRS}",
    )  # fmt: skip
    assert changed(site.role()) != {0}
    assert site.capacity(THEIRS)["nvidia.com/gpu.shared"] == str(REPLICAS * CARDS)
    assert "nvidia.com/gpu.shared" not in site.capacity(OURS)
    assert changed(site.role()) == {0}


def test_a_pod_is_told_its_card(site: Site) -> None:
    """By a mount, which libnvidia-container reads; the testbed has none, so no driver follows."""
    site.platform.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(POD))
    site.platform.kubectl("wait", "pod/shared", "--for=condition=Ready", "--timeout=120s")
    told = site.platform.in_pod("default/shared", "ls", "/var/run/nvidia-container-devices").output
    cards = {card.uuid for card in load(site.platform.name).host(THEIRS).cards}
    assert len(told.split()) == 1 and set(told.split()) < cards
    # Time slices limit nothing: there is no slice in this container.
    assert site.platform.in_pod("default/shared", "ls", "/etc/xpu", check=False).rc != 0


@pytest.fixture
def engine(site: Site) -> Iterator[None]:
    """The stub on the node, and nothing of what served with it afterwards."""
    host = load(site.platform.name).host(THEIRS)
    site.platform.kubectl("delete", "pod", "shared", "--ignore-not-found")
    serving.place(serving.stub(), [host])
    yield
    for namespace in (SERVED[0], BY_ROLE["vllm_service_namespace"]):
        site.platform.kubectl("delete", "namespace", namespace, "--ignore-not-found")
    serving.remove([host])


def slices(platform: Platform, namespace: str) -> dict[str, Any]:
    """What the one pod of a namespace asks of cards, and where it runs."""
    found = platform.kubectl("-n", namespace, "get", "pods", "-o", "json").output
    (pod,) = json.loads(found)["items"]
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    asked = {name: value for name, value in limits.items() if name.startswith("nvidia.com")}
    return {"node": pod["spec"]["nodeName"], **asked}


WANTED = {"node": THEIRS, "nvidia.com/gpu.shared": "12"}


def test_the_documents_service_runs_on_12_of_its_20_slices(site: Site, engine: None) -> None:
    platform = site.platform
    more: dict[str, Any] = {"serving_runtime_class": "flexai-xpu"}
    refused = serving.inference(
        platform, "document-003", serving_shared_replicas=20, check=False, **more
    )
    assert refused.rc != 0
    assert "whole GPUs (nvidia.com/gpu) with tensor parallelism 2" in refused.output
    assert changed(serving.inference(platform, "document-003", **more)) != {0}
    assert slices(platform, SERVED[0]) == WANTED
    assert serving.chat(platform, *SERVED, "红楼梦是什么") == "xxxxxxxx"
    assert changed(serving.inference(platform, "document-003", **more)) == {0}
    gone = {"inference_service_state": "absent", **more}
    assert changed(serving.inference(platform, "document-003", **gone)) != {0}


def test_the_same_by_the_playbook_for_one_pod(site: Site, engine: None) -> None:
    platform = site.platform
    done = platform.play("flexai.xpu.vllm_service", BY_ROLE)
    assert changed(done) != {0}
    assert "xxxxxxxx" in done.output  # the playbook's own chat
    assert slices(platform, BY_ROLE["vllm_service_namespace"]) == WANTED
    assert changed(platform.play("flexai.xpu.vllm_service", BY_ROLE)) == {0}
    gone = {**BY_ROLE, "vllm_service_state": "absent"}
    assert changed(platform.play("flexai.xpu.vllm_service", gone)) != {0}


def test_our_preflight_names_who_has_the_node(site: Site) -> None:
    refused = site.platform.playbook("preflight", check=False)
    assert refused.rc != 0
    assert f"hands out the cards of {THEIRS} as nvidia.com/gpu already" in refused.output


def test_uninstalling_leaves_nothing(site: Site) -> None:
    assert changed(site.role(entry="uninstall")) != {0}
    assert changed(site.role(entry="uninstall")) == {0}
    objects = site.platform.kubectl(
        "get", "namespaces,clusterroles,clusterrolebindings,daemonsets", "-A", "-o", "name"
    ).output
    assert "nvidia-device-plugin" not in objects
    node = json.loads(site.platform.kubectl("get", "node", THEIRS, "-o", "json").output)["metadata"]
    assert "nvidia.com/device-plugin.config" not in node["labels"]
    assert "flexai.io/nvidia-device-plugin" not in node["annotations"]
