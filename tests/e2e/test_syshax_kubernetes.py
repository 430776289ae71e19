# SPDX-License-Identifier: GPL-3.0-or-later
"""sysHAX's objects before a real API server: it takes them all, and calls the engines' pods
Guaranteed, which is what the kubelet's static CPU manager asks for before it gives whole cores.

Nothing is started: images and accelerators are the site's.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.filter.syshax_manifests import syshax_manifests

from e2e.conftest import Demo
from e2e.platform import Platform

OPTIONS = {
    "model": "/home/models/ds-32b",
    "op_mode": "fused",
    "settings": {"decider.max_num_seqs": 64},
    "gpu": {"image": "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-gpu:0.2.1"},
    "cpu": {"image": "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-cpu:0.2.1"},
}


def stored(platform: Platform, thing: dict[str, Any]) -> dict[str, Any]:
    """What the API server would store of *thing*, every field known and valid."""
    words = ["create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"]
    return dict(json.loads(platform.kubectl(*words, stdin=yaml.safe_dump(thing)).output))


@pytest.mark.parametrize(
    ("layout", "deployments"),
    [
        ({}, {"syshax", "syshax-conductor"}),
        (
            {"layout": "two-pods", "node": "gpu1"},
            {"syshax-gpu", "syshax-cpu", "syshax-conductor"},
        ),
    ],
    ids=["one-pod", "two-pods"],
)
def test_the_api_server_takes_engines_and_conductor(
    demo: Demo, layout: dict[str, Any], deployments: set[str]
) -> None:
    rendered = syshax_manifests(
        OPTIONS, cpus=32, conductor_image="registry.example/syshax:1", **layout
    )
    found = [stored(demo.platform, thing) for thing in rendered]
    assert {o["metadata"]["name"] for o in found if o["kind"] == "Deployment"} == deployments
    for deployment in (o for o in found if o["kind"] == "Deployment"):
        template = deployment["spec"]["template"]
        name = deployment["metadata"]["name"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        }
        assert stored(demo.platform, pod)["status"]["qosClass"] == "Guaranteed"
