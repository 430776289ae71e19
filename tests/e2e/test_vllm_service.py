# SPDX-License-Identifier: GPL-3.0-or-later
"""Document 000's deployment by vllm_service.yml: a slice, a Service, a chat, and nothing left.

The engine is the stub of tests/group under vLLM's command line: the cards compute nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import serving, snapshot
from e2e.conftest import Demo
from e2e.platform import Platform, Run, changed

NAMESPACE, NAME = "vllm-e2e", "qwen"
# Where a snapshot sees it.
MODEL = "/opt/Qwen2.5-0.5B-Instruct"
NODES = ("gpu1", "gpu2")
# What Qwen2.5-0.5B-Instruct was published with, as far as sizing asks for it.
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


class Site:
    """A site that serves one model."""

    def __init__(self, platform: Platform, source: Path) -> None:
        self.platform = platform
        self._variables = {
            "vllm_service_name": NAME,
            "vllm_service_namespace": NAMESPACE,
            "vllm_service_model": MODEL,
            "vllm_service_model_source": str(source),
            "vllm_service_image": serving.IMAGE,
            "vllm_service_env": {"PATH": "/engine/bin:/usr/local/bin:/usr/bin:/bin"},
            "vllm_service_volumes": [f"{serving.DIRECTORY}:/engine"],
            "vllm_service_cores": 20,
            "vllm_service_memory_gib": 3,
            "vllm_service_cpu": "100m",
            "vllm_service_memory": "2Gi",
            "vllm_service_shm_gib": 1,
            "vllm_service_drain_s": 1,
            "vllm_service_start_timeout_s": 300,
        }
        self._before = self.hosts()

    def play(self, *arguments: str, check: bool = True, **more: Any) -> Run:
        variables = {**self._variables, **more}
        return self.platform.play("flexai.xpu.vllm_service", variables, *arguments, check=check)

    def hosts(self) -> dict[str, snapshot.Snapshot]:
        def on_host(host: str, *command: str) -> str:
            return self.platform.on_host(host, *command).output

        return {node: snapshot.take(on_host, node) for node in NODES}

    def left_on_hosts(self) -> list[str]:
        now = self.hosts()
        return [line for n in NODES for line in snapshot.differences(self._before[n], now[n])]

    def objects(self) -> str:
        """What the cluster has of the service."""
        kinds = "namespaces,deployments,services,pods"
        found = self.platform.kubectl("get", kinds, "-A", "-o", "name").output
        return "\n".join(line for line in found.splitlines() if NAME in line or NAMESPACE in line)


@pytest.fixture(scope="module")
def site(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    source = tmp_path_factory.mktemp("model")
    (source / "config.json").write_text(json.dumps(CONFIG))
    nodes = serving.nodes(demo.platform)
    serving.place(serving.stub(), nodes)
    yield Site(demo.platform, source)
    demo.platform.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    serving.remove(nodes)


def test_a_check_predicts_the_service_and_makes_nothing(site: Site) -> None:
    assert changed(site.play("--check", "--diff")) != {0}
    assert site.objects() == ""


def test_the_service_is_made_once_on_a_slice_of_its_size(site: Site) -> None:
    first = site.play()
    assert changed(first) != {0}
    assert "xxxxxxxx" in first.output  # the answer to the playbook's own chat
    platform = site.platform
    (pod,) = json.loads(
        platform.kubectl("-n", NAMESPACE, "get", "pods", "-o", "json").output
    )["items"]  # fmt: skip
    assert pod["spec"]["nodeName"] in NODES
    grant = pod["metadata"]["annotations"]["huawei.com/vgpu-ids-new"].rstrip(":").split(",")
    assert grant[2:5] == ["GPU", str(3 * 1024), "20"]
    assert changed(site.play()) == {0}
    assert changed(site.play("--check")) == {0}


def test_the_model_is_on_the_nodes_or_its_lack_is_told(site: Site) -> None:
    for node in NODES:
        site.platform.on_host(node, "test", "-f", f"{MODEL}/config.json")
    refused = site.play(
        vllm_service_model="/opt/elsewhere", vllm_service_model_source="", check=False
    )
    assert refused.rc != 0 and changed(refused) == {0}
    assert f"/opt/elsewhere/config.json is not on {', '.join(NODES)}" in refused.output


def test_somebody_elses_service_is_neither_taken_over_nor_taken_away(site: Site) -> None:
    kubectl = site.platform.kubectl
    kubectl("-n", NAMESPACE, "create", "service", "clusterip", "other", "--tcp=80")
    refused = site.play(vllm_service_name="other", check=False)
    assert refused.rc != 0 and changed(refused) == {0}
    assert f"Namespace {NAMESPACE} has Service other, which this role" in refused.output
    removed = site.play(vllm_service_state="absent")
    assert changed(removed) != {0}
    assert f"namespace {NAMESPACE}: holds" in removed.output and "Service other" in removed.output
    assert site.objects() == f"namespace/{NAMESPACE}"
    kubectl("-n", NAMESPACE, "delete", "service", "other")


def test_nothing_is_left_of_it(site: Site) -> None:
    assert changed(site.play(vllm_service_state="absent")) != {0}
    assert site.objects() == ""
    assert site.left_on_hosts() == []
    assert changed(site.play(vllm_service_state="absent")) == {0}
