# SPDX-License-Identifier: GPL-3.0-or-later
"""The services of documents 000 and 004 from playbooks/inference.yml, with running pods.

Their engine is the stub of tests/group (inventories/sandbox/services; document 003's, which takes a
node from our device plugin, is served in test_nvidia_plugin.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e import serving
from e2e.conftest import Demo
from e2e.platform import Platform, changed

NODE = "gpu1"
QUEUE = "a15155090721337344296789"
IMAGES = (
    "registry.cnbita.com:5000/heros-dev/python:3.9-slim",
    "registry.cn-hangzhou.aliyuncs.com/sea-wyq/python:3.9-amd64",
)
# What document 004 takes for granted.
GRANTED = [
    {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "Queue",
        "metadata": {"name": QUEUE},
        "spec": {"weight": 1},
    },
    {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "registry", "namespace": "default"},
        "stringData": {"password": "hunter2"},
    },
]


@pytest.fixture(scope="module")
def site(demo: Demo) -> Iterator[Platform]:
    """Nodes with the stub, the images that the documents name (all the workload's), a label."""
    platform, nodes = demo.platform, serving.nodes(demo.platform)
    serving.place(serving.stub(), nodes)
    images = ("ctr", "-n", "k8s.io", "images")
    for node in nodes:
        for image in IMAGES:
            platform.on_host(node.name, *images, "tag", "--force", serving.IMAGE, image)
    platform.kubectl("label", "node", NODE, "node-type=llm")
    for thing in GRANTED:
        platform.kubectl("apply", "-f", "-", stdin=json.dumps(thing))
    yield platform
    for service in ("document-000", "document-004"):
        variables: dict[str, Any] = {"inference_service_state": "absent"}
        serving.inference(platform, service, check=False, **variables)
    for thing in GRANTED:
        platform.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=json.dumps(thing))
    platform.kubectl("label", "node", NODE, "node-type-")
    for node in nodes:
        platform.on_host(node.name, *images, "rm", *IMAGES)
    serving.remove(nodes)


def pods(platform: Platform, namespace: str, service: str) -> dict[str, Any]:
    found = platform.kubectl(
        "-n", namespace, "get", "pods", "-l", f"flexai.io/inferenceservice={service}", "-o", "json"
    ).output
    return {pod["metadata"]["name"]: pod for pod in json.loads(found)["items"]}


def test_document_000s_8b_model_is_refused_with_the_memory_it_needs(site: Platform) -> None:
    model = "DeepSeek-R1-Distill-Llama-8B"
    refused = serving.inference(site, "document-000", serving_model=model, check=False)
    assert refused.rc != 0 and changed(refused) == {0}
    assert "limits.huawei.com/vgpu-memory-1Gi" in refused.output
    assert "weights 14.96 GiB" in refused.output


def test_document_000s_service_runs_on_its_slice(site: Platform) -> None:
    assert changed(serving.inference(site, "document-000")) != {0}
    (pod,) = pods(site, "deepseek-test", "deepseek-r1").values()
    assert pod["spec"]["nodeName"] == NODE
    grant = pod["metadata"]["annotations"]["huawei.com/vgpu-ids-new"].rstrip(":").split(",")
    assert grant[2:5] == ["GPU", str(3 * 1024), "20"]
    name = pod["metadata"]["name"]
    monitor = ("/opt/xpu/bin/gpu-monitor", "-p", "1", "-o", "json")
    (device,) = json.loads(site.in_pod(f"deepseek-test/{name}", *monitor).output)["vxpus"]
    assert (device["core_quota"], device["memory_quota"]) == (20, 3 << 30)
    served = ("deepseek-test", "deepseek-r1", "Qwen2.5-0.5B-Instruct")
    assert serving.chat(site, *served, "红楼梦是什么") == "xxxxxxxx"
    assert changed(serving.inference(site, "document-000")) == {0}


def test_document_004s_service_runs_as_one_gang_of_two_images(site: Platform) -> None:
    """Annotations, queue, images, amounts and the worker's command are the document's."""
    mended: dict[str, Any] = {"serving_pull_policy": "IfNotPresent"}
    assert changed(serving.inference(site, "document-004", **mended)) != {0}
    found = pods(site, "default", "simple-inference-service")
    assert [pod["spec"]["containers"][0]["image"] for _, pod in sorted(found.items())] == list(
        IMAGES
    )
    for pod in found.values():
        assert pod["spec"]["schedulerName"] == "volcano"
        assert pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "macvlan-conf1"
        assert pod["status"]["phase"] == "Running"
    group = json.loads(
        site.kubectl("-n", "default", "get", "podgroups.scheduling.volcano.sh", "-o", "json").output
    )["items"]
    assert [(one["spec"]["minMember"], one["spec"]["queue"]) for one in group] == [(2, QUEUE)]
    url = serving.address(site, "default", "simple-inference-service")
    assert "Directory listing" in serving.answer(site, f"{url}/")
    assert changed(serving.inference(site, "document-004", **mended)) == {0}
