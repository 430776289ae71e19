# SPDX-License-Identifier: GPL-3.0-or-later
"""Document 003 on the demo: NVIDIA's own plugin, the real program, shares a card by time slices.

One of the demo's nodes is taken from our plugin for it, and given back at the end.
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

from e2e.conftest import Demo
from e2e.platform import ROOT, Platform, Run, recap

pytestmark = pytest.mark.soak

OURS, THEIRS = "gpu1", "gpu2"
REPLICAS = 10
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
    assert site.capacity(THEIRS)["nvidia.com/gpu.shared"] == str(REPLICAS)
    assert "nvidia.com/gpu.shared" not in site.capacity(OURS)
    assert changed(site.role()) == {0}


def test_a_pod_is_told_its_card(site: Site) -> None:
    """By a mount, which libnvidia-container reads; the testbed has none, so no driver follows."""
    site.platform.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(POD))
    site.platform.kubectl("wait", "pod/shared", "--for=condition=Ready", "--timeout=120s")
    told = site.platform.in_pod("default/shared", "ls", "/var/run/nvidia-container-devices").output
    (card,) = load(site.platform.name).host(THEIRS).cards
    assert told.split() == [card.uuid]
    # Time slices limit nothing: there is no slice in this container.
    assert site.platform.in_pod("default/shared", "ls", "/etc/xpu", check=False).rc != 0


def test_our_preflight_names_who_has_the_node(site: Site) -> None:
    refused = site.platform.playbook("preflight", check=False)
    assert refused.rc != 0
    assert f"hands out the cards of {THEIRS} as nvidia.com/gpu already" in refused.output


def test_uninstalling_leaves_nothing(site: Site) -> None:
    site.platform.kubectl("delete", "pod", "shared")
    assert changed(site.role(entry="uninstall")) != {0}
    assert changed(site.role(entry="uninstall")) == {0}
    objects = site.platform.kubectl(
        "get", "namespaces,clusterroles,clusterrolebindings,daemonsets", "-A", "-o", "name"
    ).output
    assert "nvidia-device-plugin" not in objects
    node = json.loads(site.platform.kubectl("get", "node", THEIRS, "-o", "json").output)["metadata"]
    assert "nvidia.com/device-plugin.config" not in node["labels"]
    assert "flexai.io/nvidia-device-plugin" not in node["annotations"]
