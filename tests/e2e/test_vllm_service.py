# SPDX-License-Identifier: GPL-3.0-or-later
"""Document 000's deployment by role vllm_service: a slice, a Service, a chat, and nothing left.

The engine is a stub (workload/openai_stub.py): the testbed's cards compute nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Demo
from e2e.platform import ROOT, Platform, Run, recap

NAMESPACE, NAME = "vllm-e2e", "qwen"
MODEL = "/srv/Qwen2.5-0.5B-Instruct"
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
            "vllm_service_image": "docker.io/library/xpu-workload:v1.0",
            "vllm_service_command": [
                "python3", f"{MODEL}/openai_stub.py", "Qwen2.5-0.5B-Instruct", "8000",
            ],
            "vllm_service_cores": 20,
            "vllm_service_memory_gib": 3,
            "vllm_service_cpu": "100m",
            "vllm_service_memory": "2Gi",
            "vllm_service_shm_gib": 1,
            "vllm_service_drain_s": 1,
            "vllm_service_start_timeout_s": 300,
        }  # fmt: skip

    def role(self, *arguments: str, check: bool = True, **more: Any) -> Run:
        book = ROOT / "tests/e2e/vllm_service.yml"
        return self.platform.play(book, {**self._variables, **more}, *arguments, check=check)

    def objects(self) -> str:
        """What the cluster has of the service."""
        kinds = "namespaces,deployments,services,pods"
        found = self.platform.kubectl("get", kinds, "-A", "-o", "name").output
        return "\n".join(line for line in found.splitlines() if NAME in line or NAMESPACE in line)


@pytest.fixture(scope="module")
def site(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    source = tmp_path_factory.mktemp("model")
    (source / "config.json").write_text(json.dumps(CONFIG))
    stub = ROOT / "tests/e2e/workload/openai_stub.py"
    (source / stub.name).write_bytes(stub.read_bytes())
    made = Site(demo.platform, source)
    yield made
    demo.platform.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")


def changed(done: Run) -> set[int]:
    counts = recap(done.output)
    assert counts, done.output
    return {host["changed"] for host in counts.values()}


def test_a_check_predicts_the_service_and_makes_nothing(site: Site) -> None:
    assert changed(site.role("--check", "--diff")) != {0}
    assert site.objects() == ""


def test_the_service_is_made_once_on_a_slice_of_its_size(site: Site) -> None:
    assert changed(site.role()) != {0}
    platform = site.platform
    (pod,) = json.loads(
        platform.kubectl("-n", NAMESPACE, "get", "pods", "-o", "json").output
    )["items"]  # fmt: skip
    assert pod["spec"]["nodeName"] in NODES
    grant = pod["metadata"]["annotations"]["huawei.com/vgpu-ids-new"].rstrip(":").split(",")
    assert grant[2:5] == ["GPU", str(3 * 1024), "20"]
    assert changed(site.role()) == {0}
    assert changed(site.role("--check")) == {0}


def test_it_answers_a_chat_through_its_service(site: Site) -> None:
    done = site.role(entry="validate")
    assert "You asked: 红楼梦是什么" in done.output


def test_somebody_elses_service_is_neither_taken_over_nor_taken_away(site: Site) -> None:
    kubectl = site.platform.kubectl
    kubectl("-n", NAMESPACE, "create", "service", "clusterip", "other", "--tcp=80")
    refused = site.role(vllm_service_name="other", check=False)
    assert refused.rc != 0 and changed(refused) == {0}
    assert f"Namespace {NAMESPACE} has Service other, which this role" in refused.output
    removed = site.role(vllm_service_state="absent")
    assert changed(removed) != {0}
    assert f"namespace {NAMESPACE}: holds" in removed.output and "Service other" in removed.output
    assert site.objects() == f"namespace/{NAMESPACE}"
    kubectl("-n", NAMESPACE, "delete", "service", "other")


def test_nothing_is_left_of_it(site: Site) -> None:
    for node in NODES:
        assert site.platform.on_host(node, "ls", MODEL, check=False).rc != 0
    assert changed(site.role(entry="uninstall")) != {0}
    assert site.objects() == ""
    assert changed(site.role(entry="uninstall")) == {0}
