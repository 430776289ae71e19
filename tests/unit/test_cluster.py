# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure logic of the cluster path: what is planned, judged and said."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._artefacts import Artefact
from ansible_collections.flexai.xpu.plugins.module_utils._cluster import HANDLERS, Cluster
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import (
    cluster_verdict,
    helm_chart,
    node_images,
    node_labels,
    slice_check,
)
from ansible_collections.flexai.xpu.plugins.plugin_utils import _verdicts

Object = dict[str, Any]

# -- helm_chart ------------------------------------------------------------------------------

RELEASE = helm_chart.Release("deployed", "a: 1\n")


@pytest.mark.parametrize(
    ("found", "rendered", "drift", "wanted"),
    [
        (helm_chart.Release(), "a: 1", "", "not installed"),
        (RELEASE, "\na: 1", "", ""),
        (RELEASE, "a: 2", "", "chart or values changed"),
        (RELEASE, "a: 1", "-replicas: 1", "live objects were changed"),
        (helm_chart.Release("failed", "a: 1"), "a: 1", "", "the release is failed"),
        (
            helm_chart.Release("pending-upgrade", "a: 1"),
            "a: 1",
            "",
            "the release is pending-upgrade",
        ),
    ],
)
def test_helm_acts_only_on_a_difference(
    found: helm_chart.Release, rendered: str, drift: str, wanted: str
) -> None:
    assert helm_chart.difference(found, rendered, drift) == wanted


def crd(**annotations: str) -> Object:
    return {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "podgroups", "annotations": annotations},
    }


OURS = {"meta.helm.sh/release-name": "volcano", "meta.helm.sh/release-namespace": "volcano-system"}


@pytest.mark.parametrize(
    ("objects", "wanted"),
    [
        ([], []),
        ([crd(**OURS)], []),
        ([crd()], ["CustomResourceDefinition podgroups (no Helm release)"]),
        (
            [crd(**{**OURS, "meta.helm.sh/release-namespace": "other"})],
            ["CustomResourceDefinition podgroups (release volcano in other)"],
        ),
    ],
)
def test_a_foreign_installation_is_named(objects: list[Object], wanted: list[str]) -> None:
    assert helm_chart.foreign(objects, "volcano", "volcano-system") == wanted


# -- node_images -----------------------------------------------------------------------------


def test_images_are_compared_by_digest() -> None:
    image = Artefact(
        "a", "v1", "x86_64", "image", "a.tar", "a.tar", "0" * 64, "", "r/a:v1", "sha256:1"
    )
    assert node_images.missing({"r/a:v1": "sha256:1"}, [image]) == []
    assert node_images.missing({"r/a:v1": "sha256:2"}, [image]) == [image]
    assert node_images.missing({}, [image]) == [image]


# -- node_labels -----------------------------------------------------------------------------


def node(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}}


def test_only_lacking_labels_are_patched() -> None:
    found = {"a": node("a", ready="true", own="1"), "b": node("b", ready="no")}
    steps = node_labels.plan_labels(found, ["a", "b"], {"ready": "true"})
    (step,) = steps
    assert step.path == "/api/v1/nodes/b"
    assert step.body is not None
    assert step.body["metadata"]["labels"] == {"ready": "true"}
    assert step.body["metadata"]["annotations"] == {node_labels.RECORD: '{"ready": ["true", "no"]}'}


def recorded_node(name: str, record: str, **labels: str) -> Object:
    metadata = {"name": name, "labels": labels, "annotations": {node_labels.RECORD: record}}
    return {"metadata": metadata}


def test_a_label_set_again_keeps_the_record_of_what_was_there_before_us() -> None:
    found = {"a": recorded_node("a", '{"ready": ["true", "no"]}', ready="lost")}
    (step,) = node_labels.plan_labels(found, ["a"], {"ready": "yes"})
    assert step.body is not None
    assert step.body["metadata"]["annotations"] == {node_labels.RECORD: '{"ready": ["yes", "no"]}'}


def test_removal_takes_back_what_is_ours_and_names_the_rest() -> None:
    nodes = {
        "ours": recorded_node("ours", '{"new": ["1", null], "old": ["1", "0"]}', new="1", old="1"),
        "since": recorded_node("since", '{"new": ["1", null]}', new="2"),
        "theirs": node("theirs", new="1"),
    }
    classes = {
        "nvidia": {"metadata": {"name": "nvidia"}, "handler": "nvidia"},
        "flexai-xpu": node_labels.runtime_class("flexai-xpu"),
    }
    steps, left = node_labels.plan_removal(nodes, classes)
    gone = {node_labels.RECORD: None}
    assert [(step.verb, step.path, step.body) for step in steps] == [
        (
            "patch",
            "/api/v1/nodes/ours",
            {"metadata": {"labels": {"new": None, "old": "0"}, "annotations": gone}},
        ),
        ("patch", "/api/v1/nodes/since", {"metadata": {"labels": {}, "annotations": gone}}),
        ("delete", "/apis/node.k8s.io/v1/runtimeclasses/flexai-xpu", None),
    ]
    assert left == [
        "label new of node since: changed since",
        "RuntimeClass nvidia: not made by flexai.xpu",
    ]
    assert node_labels.plan_removal({"theirs": nodes["theirs"]}, {}) == ([], [])


def test_a_host_without_a_node_is_named() -> None:
    with pytest.raises(XpuError, match="has no node gpu9; it has a") as error:
        node_labels.plan_labels({"a": node("a")}, ["gpu9"], {})
    assert "node_labels_node_name" in error.value.remedy


def test_runtime_classes_absent_ours_foreign_and_clashing() -> None:
    ours = {name: node_labels.runtime_class(name) for name in HANDLERS}
    foreign = {name: {"metadata": {"name": name}, "handler": h} for name, h in HANDLERS.items()}
    assert [step.what for step in node_labels.plan_runtime_classes({})] == [
        "RuntimeClass nvidia",
        "RuntimeClass flexai-xpu",
        "RuntimeClass flexai-xpu-docker",
    ]
    assert node_labels.plan_runtime_classes(ours) == []
    assert node_labels.plan_runtime_classes(foreign) == []
    ours["nvidia"]["metadata"]["annotations"] = {}
    (step,) = node_labels.plan_runtime_classes(ours)
    assert (step.verb, step.what) == ("patch", "RuntimeClass nvidia")
    foreign["nvidia"]["handler"] = "runc"
    with pytest.raises(XpuError, match="nvidia exists with handler runc, slices need nvidia"):
        node_labels.plan_runtime_classes(foreign)


# -- cluster_verdict -------------------------------------------------------------------------

ALLOCATABLE = dict.fromkeys(cluster_verdict.RESOURCES, "20")


def gpu_node(name: str, **allocatable: str) -> Object:
    metadata = {
        "name": name,
        "labels": {"gpupool.com/gpu-ready": "true"},
        "annotations": {cluster_verdict.REGISTER: "0,GPU-a,20,40960,GPU-A100,true,0:"},
    }
    return {"metadata": metadata, "status": {"allocatable": {**ALLOCATABLE, **allocatable}}}


def daemon_set(ready: int = 2, wanted: int = 2) -> Object:
    return {
        "metadata": {"name": "gpu-device-plugin", "generation": 1},
        "status": {"desiredNumberScheduled": wanted, "numberReady": ready, "observedGeneration": 1},
    }


@pytest.mark.parametrize(
    ("sets", "nodes", "inside", "state", "reason"),
    [
        ([daemon_set()], [gpu_node("a"), gpu_node("b")], None, "ok", ""),
        ([daemon_set()], [gpu_node("a"), gpu_node("b")], [], "ok", "checked from inside pods"),
        (
            [daemon_set()],
            [gpu_node("a"), gpu_node("b")],
            ["pod x sees 2"],
            "failed",
            "pod x sees 2",
        ),
        ([], [gpu_node("a"), gpu_node("b")], None, "absent", "no DaemonSet gpu-device-plugin"),
        (
            [daemon_set(ready=1)],
            [gpu_node("a"), gpu_node("b")],
            None,
            "failed",
            "gpu-device-plugin has 1 of 2 pods ready",
        ),
        (
            [daemon_set()],
            [gpu_node("a"), gpu_node("b", **{"huawei.com/vgpu-cores": "0"})],
            None,
            "failed",
            "no allocatable slices on b",
        ),
        ([daemon_set()], [gpu_node("a")], None, "failed", "no allocatable slices on b"),
        # Nothing scheduled is nothing ready: the DaemonSet selects no node.
        (
            [daemon_set(0, 0)],
            [gpu_node("a"), gpu_node("b")],
            None,
            "failed",
            "gpu-device-plugin has 0 of 0 pods ready",
        ),
    ],
)
def test_gpupool_is_judged_by_what_nodes_offer(
    sets: list[Object], nodes: list[Object], inside: list[str] | None, state: str, reason: str
) -> None:
    part = cluster_verdict.judge_gpupool(sets, nodes, ["a", "b"], inside)
    assert (part.state, part.reason) == (state, reason)


@pytest.mark.parametrize(
    ("available", "state", "reason"),
    [(2, "ok", ""), (1, "failed", "xpu-webhook has 1 of 2 pods ready")],
)
def test_gpupool_is_ready_when_its_webhook_is(available: int, state: str, reason: str) -> None:
    webhook = {
        "metadata": {"name": "xpu-webhook", "generation": 1},
        "spec": {"replicas": 2},
        "status": {"availableReplicas": available, "observedGeneration": 1},
    }
    nodes = [gpu_node("a"), gpu_node("b")]
    part = cluster_verdict.judge_gpupool([daemon_set()], nodes, ["a", "b"], None, [webhook])
    assert (part.state, part.reason) == (state, reason)


def deployment(role: str, available: int = 1) -> Object:
    return {
        "metadata": {"name": role, "namespace": "v", "labels": {"app": role}, "generation": 1},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": "r/s:v1"}]}}},
        "status": {"availableReplicas": available, "observedGeneration": 1},
    }


def configuration(text: str) -> Object:
    return {
        "metadata": {"name": "c", "namespace": "v"},
        "data": {cluster_verdict.SCHEDULER_CONFIGURATION: text},
    }


@pytest.mark.parametrize(
    ("deployments", "text", "state", "reason"),
    [
        ([("volcano-scheduler", 1), ("volcano-controller", 1)], "- name: huawei-xpu", "ok", ""),
        (
            [("volcano-scheduler", 1), ("volcano-controller", 1)],
            "- name: binpack",
            "failed",
            "the scheduler's configuration does not name huawei-xpu",
        ),
        (
            [("volcano-scheduler", 0), ("volcano-controller", 1)],
            "- name: huawei-xpu",
            "failed",
            "volcano-scheduler has 0 of 1 pods ready",
        ),
        ([], "", "absent", "no Deployment labelled app=volcano-scheduler"),
    ],
)
def test_volcano_is_judged(
    deployments: list[tuple[str, int]], text: str, state: str, reason: str
) -> None:
    part = cluster_verdict.judge_volcano(
        [deployment(*given) for given in deployments], [configuration(text)]
    )
    assert (part.state, part.reason) == (state, reason)


def test_beside_a_foreign_volcano_ours_is_judged() -> None:
    def there(namespace: str, thing: Object) -> Object:
        return {**thing, "metadata": {**thing["metadata"], "namespace": namespace}}

    roles = ("volcano-scheduler", "volcano-controller")
    foreign = [there("a-foreign", deployment(role, available=0)) for role in roles]
    ours = [there("flexai-volcano", deployment(role)) for role in roles]
    texts = [
        there("a-foreign", configuration("- name: binpack")),
        there("flexai-volcano", configuration("- name: huawei-xpu")),
    ]
    assert cluster_verdict.judge_volcano(foreign + ours, texts).state == "ok"
    alone = cluster_verdict.judge_volcano([*foreign, ours[0]], texts)
    assert "no Deployment labelled app=volcano-controller in flexai-volcano" in alone.reason


# -- slice_check -----------------------------------------------------------------------------

PARAMS = {
    "image": "r/w:v1",
    "pull_secret": "",
    "cores": 5,
    "memory_gib": 1,
    "scheduler_name": "flexai-volcano",
    "timeout_s": 1,
}
SLICED = slice_check.Trial("a", True, "flexai-xpu")
BARE = slice_check.Trial("a", False)
PLACED = {"cards": 1, "placement": "0,GPU-1,GPU,1024,5,0:"}
GOOD = {**PLACED, "monitor": {"vxpus": [{"core_quota": 5, "memory_quota": 1 << 30}]}}


@pytest.mark.parametrize(
    ("trial", "seen", "wanted"),
    [
        (SLICED, GOOD, []),
        (BARE, {"cards": 0}, []),
        (BARE, {"cards": 2}, ["pod bare-default-a sees 2 cards without a slice"]),
        (SLICED, {**GOOD, "cards": 2}, ["pod slice-a sees 2 cards, its slice is on one"]),
        (SLICED, PLACED, ["pod slice-a: gpu-monitor shows nothing"]),
        (
            SLICED,
            {**GOOD, "placement": ""},
            [
                "pod slice-a was bound without huawei.com/vgpu-ids-new; "
                "vc-scheduler has not loaded huawei-xpu"
            ],
        ),
        (SLICED, {"error": "is Pending: no room"}, ["pod slice-a: is Pending: no room"]),
        (
            SLICED,
            {**PLACED, "monitor": {"vxpus": [{"core_quota": 100, "memory_quota": 1 << 30}]}},
            ["pod slice-a has a quota of 100 % and 1073741824 bytes, not (5, 1073741824)"],
        ),
    ],
)
def test_what_pods_see(trial: slice_check.Trial, seen: Object, wanted: list[str]) -> None:
    assert slice_check.problems(trial, seen, PARAMS) == wanted


def test_only_the_pod_with_a_slice_is_given_to_our_scheduler() -> None:
    names = [slice_check.pod(one, PARAMS)["spec"].get("schedulerName") for one in (SLICED, BARE)]
    assert names == ["flexai-volcano", None]


def test_pods_without_a_slice_ask_for_every_card_by_environment() -> None:
    for trial in slice_check.trials({"a": "flexai-xpu"}):
        spec = slice_check.pod(trial, PARAMS)["spec"]
        (container,) = spec["containers"]
        assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container["env"]
        assert ("resources" in container) == trial.sliced


class MadeCluster(Cluster):
    """Remembers what it is told to make; *objects* are there before, by path."""

    def __init__(self, objects: dict[str, Object]) -> None:
        self.objects = objects
        self.made: list[tuple[str, str, Object | None]] = []

    def get(self, path: str, **more: Any) -> Object | None:
        return self.objects.get(path)

    def change(self, verb: str, path: str, body: Object | None = None) -> Object:
        self.made.append((verb, path, body))
        return {}


PULLING = {**PARAMS, "pull_secret": "xpu/site"}
SITE_SECRET: Object = {
    "apiVersion": "v1",
    "kind": "Secret",
    "type": "kubernetes.io/dockerconfigjson",
    "metadata": {"name": "site", "namespace": "xpu", "uid": "u", "resourceVersion": "7"},
    "data": {".dockerconfigjson": "e30="},
}


def test_the_pull_secret_is_copied_into_the_pods_namespace_and_named_by_every_pod() -> None:
    cluster = MadeCluster({"/api/v1/namespaces/xpu/secrets/site": SITE_SECRET})
    with slice_check.Run(cluster, PULLING) as run:
        run.start(BARE)
    (namespace, secret, pod, deleted) = cluster.made
    name = (namespace[2] or {})["metadata"]["name"]
    assert secret[:2] == ("post", f"/api/v1/namespaces/{name}/secrets")
    assert secret[2] == {**SITE_SECRET, "metadata": {"name": "pull"}}
    assert (pod[2] or {})["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert deleted[:2] == ("delete", f"/api/v1/namespaces/{name}")
    assert "imagePullSecrets" not in slice_check.pod(BARE, PARAMS)["spec"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("xpu/other", "There is no secret other in namespace xpu"),
        ("site", "pull_secret is 'site', which names no secret"),
    ],
)
def test_without_its_pull_secret_nothing_is_made(source: str, said: str) -> None:
    cluster = MadeCluster({})
    with (
        pytest.raises(XpuError, match=said),
        slice_check.Run(cluster, {**PULLING, "pull_secret": source}),
    ):
        pass
    assert cluster.made == []


# -- site_verdict ----------------------------------------------------------------------------


def test_a_host_without_a_verdict_is_not_left_out() -> None:
    lost = _verdicts.node_entry("a", {"unreachable": True, "msg": "no route"})
    assert not lost["ready"]
    assert lost["components"][0]["reason"] == "unreachable: no route"


def test_a_broken_off_change_keeps_the_cluster_from_being_ready() -> None:
    fine = {"name": "volcano", "wanted": "", "found": "", "state": "ok", "reason": ""}
    (entry,) = _verdicts.cluster_entries({"components": [fine]}, "helm: rc 1")
    assert not entry["ready"]
    assert _verdicts.cluster_entries({"components": [fine]}, "")[0]["ready"]
    assert _verdicts.cluster_entries(None, "") == []
