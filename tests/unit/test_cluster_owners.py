# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign owners in a cluster: per owner what is decided, and that ours is nobody else's."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _cluster_owners as owners
from ansible_collections.flexai.xpu.plugins.module_utils._cluster import (
    HANDLERS,
    LABELS_RECORD,
    OWNER,
)
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import cluster_owners

Object = dict[str, Any]
WANTED = owners.Wanted(
    nodes=("gpu1",),
    labels={"huawei.com/vgpu": "ready"},
    handlers=HANDLERS,
    gpupool=owners.Release("gpupool", "default"),
    volcano=owners.Release("volcano", "volcano-system"),
)


def node(
    name: str, offers: str = "", recorded: bool = False, labels: dict[str, str] | None = None
) -> Object:
    notes = {LABELS_RECORD: "{}"} if recorded else {}
    allocatable = {offers: "8"} if offers else {"nvidia.com/gpu": "0"}
    metadata = {"name": name, "labels": labels or {}, "annotations": notes}
    return {"metadata": metadata, "status": {"allocatable": allocatable}}


def workload(namespace: str, name: str, image: str) -> Object:
    pod = {"spec": {"containers": [{"image": image}]}}
    metadata = {"namespace": namespace, "name": name}
    return {"metadata": metadata, "spec": {"template": pod}}


def runtime_class(name: str, handler: str, ours: bool = False) -> Object:
    return {"metadata": {"name": name, "labels": OWNER if ours else {}}, "handler": handler}


def crd(release: str = "", namespace: str = "") -> Object:
    notes = {owners.HELM_NAME: release, owners.HELM_NAMESPACE: namespace} if release else {}
    return {"metadata": {"name": owners.PODGROUPS, "annotations": notes}}


def record(release: str, namespace: str, ours: bool) -> Object:
    labels = {"owner": "helm", "name": release, **(OWNER if ours else {})}
    return {"metadata": {"name": "s", "namespace": namespace, "labels": labels}}


def seen(**things: list[Object]) -> owners.Seen:
    empty: dict[str, list[Object]] = {field: [] for field in owners.Seen._fields}
    return owners.Seen(**{**empty, "nodes": [node("gpu1"), node("other")], **things})


OPERATOR = workload("gpu-operator", "gpu-operator", "nvcr.io/nvidia/gpu-operator:v25.3.0")
PLUGIN = workload("kube-system", "nvidia-dp", "nvcr.io/nvidia/k8s-device-plugin:v0.17.0")
ASCEND = workload("kube-system", "ascend-dp", "r/ascend-k8sdeviceplugin:v7.0.RC1")
MINDCLUSTER = workload("mindx-dl", "clusterd", "r/clusterd:v7.0.RC1")

# What stands there → component, action, stance, owner, a part of the reason.
CASES: dict[str, tuple[owners.Seen, tuple[str, str, str, str], str]] = {
    "gpu-operator on our nodes": (
        seen(nodes=[node("gpu1", "nvidia.com/gpu")], workloads=[OPERATOR, PLUGIN]),
        ("gpupool", "blocked", "refuse", "gpu-operator"),
        "hands out the cards of gpu1 as nvidia.com/gpu already; keep it off these nodes",
    ),
    "NVIDIA's plugin on our nodes": (
        seen(nodes=[node("gpu1", "nvidia.com/gpu")], workloads=[PLUGIN]),
        ("gpupool", "blocked", "refuse", "NVIDIA's device plugin"),
        "NVIDIA's device plugin (kube-system/nvidia-dp) hands out the cards of gpu1",
    ),
    "NVIDIA's plugin on other nodes": (
        seen(nodes=[node("gpu1"), node("other", "nvidia.com/gpu")], workloads=[PLUGIN]),
        ("gpupool", "ok", "coexist", "NVIDIA's device plugin"),
        "has other cards or nodes and stays as it is",
    ),
    "Ascend's plugin": (
        seen(workloads=[ASCEND]),
        ("gpupool", "ok", "coexist", "Ascend's device plugin"),
        "Ascend's device plugin (kube-system/ascend-dp)",
    ),
    "another plugin for slices": (
        seen(nodes=[node("gpu1", "huawei.com/vgpu-number")]),
        ("gpupool", "blocked", "refuse", "another plugin for slices"),
        "gpu1 offers huawei.com/vgpu-number already, and release gpupool in default is not there",
    ),
    "upstream's chart under our release's name": (
        seen(helm_records=[record("gpupool", "default", ours=False)]),
        ("gpupool", "blocked", "refuse", "release gpupool in default"),
        "release gpupool in default was not installed by flexai.xpu; `helm uninstall` it first",
    ),
    "a Volcano of another release": (
        seen(crds=[crd("vc", "batch")]),
        ("volcano", "ok", "coexist", "another Volcano"),
        "belongs to release vc in batch) and stays as it is; ours is a second scheduler beside it, "
        "which pods name as schedulerName flexai-volcano",
    ),
    "a Volcano without Helm": (
        seen(crds=[crd()]),
        ("volcano", "ok", "coexist", "another Volcano"),
        "belongs to no Helm release",
    ),
    "a foreign Volcano, and a foreign release of our second's name": (
        seen(crds=[crd()], helm_records=[record("flexai-volcano", "flexai-volcano", ours=False)]),
        ("volcano", "blocked", "refuse", "release flexai-volcano in flexai-volcano"),
        "was not installed by flexai.xpu; `helm uninstall` it first",
    ),
    "a foreign Volcano, and our second scheduler beside it": (
        seen(
            crds=[crd()],
            workloads=[workload("flexai-volcano", "s", "r/vc-scheduler:v1.10.0")],
            helm_records=[record("flexai-volcano", "flexai-volcano", ours=True)],
        ),
        ("volcano", "ok", "coexist", "another Volcano"),
        "stays as it is",
    ),
    "a scheduler of somebody else's on our CRDs": (
        seen(
            crds=[crd("volcano", "volcano-system")],
            workloads=[workload("batch", "s", "r/vc-scheduler:v1.9.0")],
            helm_records=[record("volcano", "volcano-system", ours=True)],
        ),
        ("volcano", "blocked", "refuse", "another Volcano"),
        "another Volcano runs already (batch/s) and has no CRDs of its own; remove it",
    ),
    "a Volcano that somebody installed under our release's name": (
        seen(
            crds=[crd("volcano", "volcano-system")],
            helm_records=[record("volcano", "volcano-system", ours=False)],
        ),
        ("volcano", "ok", "coexist", "another Volcano"),
        "(release volcano in volcano-system was not installed by flexai.xpu) and stays as it is",
    ),
    "MindCluster's Volcano": (
        seen(crds=[crd()], workloads=[MINDCLUSTER]),
        ("volcano", "ok", "coexist", "MindCluster"),
        "MindCluster is installed (CRD podgroups.scheduling.volcano.sh",
    ),
    "MindCluster without a Volcano": (
        seen(workloads=[MINDCLUSTER]),
        ("volcano", "ok", "coexist", "MindCluster"),
        "MindCluster (mindx-dl/clusterd) stays as it is",
    ),
    "a RuntimeClass with our handler": (
        seen(runtime_classes=[runtime_class("nvidia", "nvidia")]),
        ("runtime_classes", "ok", "adopt", "RuntimeClass nvidia"),
        "is somebody else's with the same handler; used as it is",
    ),
    "a RuntimeClass with another handler": (
        seen(runtime_classes=[runtime_class("nvidia", "nvidia-legacy")]),
        ("runtime_classes", "blocked", "refuse", "RuntimeClass nvidia"),
        "exists with handler nvidia-legacy, slices need nvidia",
    ),
    "a label that somebody set": (
        seen(nodes=[node("gpu1", labels={"huawei.com/vgpu": "theirs"})]),
        ("node_labels", "blocked", "refuse", "label huawei.com/vgpu"),
        "node gpu1 bears huawei.com/vgpu=theirs, set by somebody else",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_foreign_owner_is_found_and_decided(case: str) -> None:
    found, wanted, words = CASES[case]
    (decision,) = owners.decide(found, WANTED, LABELS_RECORD)
    step = decision.as_dict()
    assert tuple(step[key] for key in ("component", "action", "stance", "owner")) == wanted
    assert words in step["reason"]


OURS = {
    "nothing there yet": seen(),
    "all of it ours": seen(
        nodes=[node("gpu1", "huawei.com/vgpu-number", True, {"huawei.com/vgpu": "changed"})],
        workloads=[workload("volcano-system", "volcano-scheduler", "r/vc-scheduler:v1.10.2")],
        runtime_classes=[runtime_class(n, h, ours=True) for n, h in HANDLERS.items()],
        crds=[crd("volcano", "volcano-system")],
        helm_records=[
            record("gpupool", "default", ours=True),
            record("volcano", "volcano-system", ours=True),
        ],
    ),
    "others on nodes that are not ours": seen(
        nodes=[node("gpu1"), node("other", labels={"huawei.com/vgpu": "theirs"})],
        runtime_classes=[runtime_class("kata", "kata")],
        helm_records=[record("ingress", "web", ours=False)],
    ),
}


@pytest.mark.parametrize("case", OURS)
def test_what_is_ours_or_elsewhere_is_nothing_to_tell(case: str) -> None:
    assert owners.decide(OURS[case], WANTED, LABELS_RECORD) == []


PARAMS = {
    "nodes": ["gpu1"],
    "components": cluster_owners.COMPONENTS,
    "labels": {},
    "gpupool_release": "gpupool",
    "gpupool_namespace": "default",
    "volcano_release": "volcano",
    "volcano_namespace": "volcano-system",
    "volcano_second_name": "flexai-volcano",
}


@pytest.mark.parametrize(
    ("crds", "told"),
    [
        ([], ""),
        ([crd("volcano", "volcano-system")], ""),
        ([crd("vc", "batch")], f"CRD {owners.PODGROUPS} belongs to release vc in batch"),
    ],
)
def test_role_volcano_is_told_whether_a_foreign_one_is_there(
    monkeypatch: pytest.MonkeyPatch, crds: list[Object], told: str
) -> None:
    # A role that asks of Volcano alone is not stopped by what is wrong elsewhere.
    found = seen(crds=crds, runtime_classes=[runtime_class("nvidia", "x")])
    monkeypatch.setattr(cluster_owners, "observe", lambda _cluster: found)
    answer = cluster_owners.look(None, {**PARAMS, "components": ["volcano"]})  # type: ignore[arg-type]
    assert answer["foreign_volcano"] == told
    assert [one["component"] for one in answer["plan"]] == (["volcano"] if told else [])


def test_all_refusals_come_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record("gpupool", "default", ours=False)]
    found = seen(helm_records=records, runtime_classes=[runtime_class("nvidia", "x")])
    monkeypatch.setattr(cluster_owners, "observe", lambda _cluster: found)
    with pytest.raises(XpuError) as error:
        cluster_owners.look(None, PARAMS)  # type: ignore[arg-type]
    first, *lines = error.value.msg.splitlines()
    assert first == "Nothing was changed."
    assert [line.split(":")[1].strip() for line in lines] == [
        "runtime_classes is blocked",
        "gpupool is blocked",
    ]
