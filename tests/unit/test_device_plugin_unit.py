# SPDX-License-Identifier: GPL-3.0-or-later
"""The device plugin as a unit: never beside a DaemonSet, and one unit file in two places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import device_plugin_cover as cover

ROOT = Path(__file__).resolve().parents[2]
Object = dict[str, Any]
READY = {"gpupool.com/gpu-ready": "true"}
UNIT = {**READY, "flexai.io/device-plugin": "unit"}


def keeping_off(*expressions: Object) -> Object:
    terms = [{"matchExpressions": list(expressions)}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}


CHARTS = keeping_off({"key": "flexai.io/device-plugin", "operator": "NotIn", "values": ["unit"]})


def daemon_set(image: str = "docker.io/library/gpu-device-plugin:v1.0", **spec: Any) -> Object:
    pod = {"containers": [{"image": image}], **spec}
    metadata = {"namespace": "xpu", "name": "gpu-device-plugin"}
    return {"metadata": metadata, "spec": {"template": {"spec": pod}}}


def node(labels: dict[str, str]) -> Object:
    return {"metadata": {"name": "gpu1", "labels": labels}}


CASES: dict[str, tuple[dict[str, str], Object, bool]] = {
    "everywhere": ({}, daemon_set(), True),
    "by node selector": (READY, daemon_set(nodeSelector=READY), True),
    "left out by node selector": ({}, daemon_set(nodeSelector=READY), False),
    "the chart's, without the label": (
        READY,
        daemon_set(nodeSelector=READY, affinity=CHARTS),
        True,
    ),
    "the chart's, with the label": (UNIT, daemon_set(nodeSelector=READY, affinity=CHARTS), False),
    "with the label, but without the affinity": (UNIT, daemon_set(nodeSelector=READY), True),
    "another registry, by digest": (
        READY,
        daemon_set("r.example:5000/x/gpu-device-plugin@sha256:1"),
        True,
    ),
    "another registry and tag": (READY, daemon_set("r.example:5000/x/gpu-device-plugin:2"), True),
    "another program": (READY, daemon_set("docker.io/nvidia/k8s-device-plugin:v0.17.4"), False),
    "In": (
        {"a": "1"},
        daemon_set(affinity=keeping_off({"key": "a", "operator": "In", "values": ["1"]})),
        True,
    ),
    "not In": (
        {},
        daemon_set(affinity=keeping_off({"key": "a", "operator": "In", "values": ["1"]})),
        False,
    ),
    "Exists": (
        {"a": ""},
        daemon_set(affinity=keeping_off({"key": "a", "operator": "Exists"})),
        True,
    ),
    "DoesNotExist": (
        {"a": ""},
        daemon_set(affinity=keeping_off({"key": "a", "operator": "DoesNotExist"})),
        False,
    ),
    "an operator we don't judge": (
        {},
        daemon_set(affinity=keeping_off({"key": "a", "operator": "Gt", "values": ["1"]})),
        True,
    ),
}


@pytest.mark.parametrize(("labels", "found", "covers"), CASES.values(), ids=CASES)
def test_a_daemon_set_covers_a_node(labels: dict[str, str], found: Object, covers: bool) -> None:
    if not covers:
        cover.examine(node(labels), "gpu1", [found], [])
        return
    with pytest.raises(XpuError) as refused:
        cover.examine(node(labels), "gpu1", [found], [])
    assert "DaemonSet xpu/gpu-device-plugin runs gpu-device-plugin on node gpu1" in str(
        refused.value
    )
    assert "kubectl label node gpu1 flexai.io/device-plugin=unit" in str(refused.value)


def test_a_pod_that_is_still_there_is_waited_for() -> None:
    chart = daemon_set(affinity=CHARTS)
    pod = {
        "metadata": {
            "namespace": "xpu",
            "name": "gpu-device-plugin-x",
            "ownerReferences": [{"kind": "DaemonSet"}],
        },
        "spec": chart["spec"]["template"]["spec"],
    }
    with pytest.raises(XpuError, match="Pod xpu/gpu-device-plugin-x"):
        cover.examine(node(UNIT), "gpu1", [chart], [pod])
    pod["metadata"]["ownerReferences"] = []
    assert cover.examine(node(UNIT), "gpu1", [chart], [pod]) == ["xpu/gpu-device-plugin"]


def test_a_node_of_another_name_is_named() -> None:
    with pytest.raises(XpuError, match="no node gpu1"):
        cover.examine(None, "gpu1", [], [])


def test_the_role_has_the_unit_that_the_program_is_released_with() -> None:
    name = "gpu-device-plugin.service"
    role = (ROOT / "roles/device_plugin_unit/files" / name).read_text("utf-8")
    assert role == (ROOT / "native/cluster/units" / name).read_text("utf-8")
