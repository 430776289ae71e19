# SPDX-License-Identifier: GPL-3.0-or-later
"""What is rendered, layout by layout."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils._inference import pods

from . import samples
from .samples import (
    KEDA_KINDS,
    LEADER,
    WORKER,
    Document,
    both,
    environment,
    of_kind,
    put,
    rendered,
    service,
)
from .test_documents import mended

GOLDEN = samples.DOCUMENTS / "004-objects.txt"
# Kinds whose schema Kubernetes itself has.
NATIVE = {
    "ConfigMap", "Service", "NetworkPolicy", "StatefulSet", "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
}  # fmt: skip
RELEASES = sorted(
    {tuple(map(int, v.split(".")[:2])) for v in kubernetes_validate.utils.all_versions()}
)
SUPPORTED = [f"{a}.{b}" for a, b in RELEASES if (1, 28) <= (a, b) <= (1, 34)]
NEWEST = f"{RELEASES[-1][0]}.{RELEASES[-1][1]}"
KEDA = {"mode": "keda", "prometheus": {"server": "http://p:9090", "query": "sum(load)"}}


def heterogeneous() -> Document:
    return put(service(workers=2, groups=2, scheduler__queue="q"), f"{WORKER}.image", "other:1")


SAMPLES: dict[str, tuple[Document, Document]] = {
    "single": (service(), {}),
    "queue, Volcano 1.10": (service(scheduler__queue="q"), {"volcano_version": "1.10.2"}),
    "queue, Volcano 1.12": (service(scheduler__queue="q"), {"volcano_version": "1.12.0"}),
    "split": (heterogeneous(), {}),
    "lws": (service(workers=3, groups=2, flexai__layout="lws"), {}),
    "keda": (
        service(groups=3, flexai__scaling=KEDA),
        {"kinds": KEDA_KINDS, "kubernetes_version": "1.31"},
    ),
    "keda, split": (put(heterogeneous(), "spec.flexai.scaling", KEDA), {}),
    "http": (
        service(flexai__scaling={"mode": "keda", "serverless": True, "http": {"hosts": ["a.b"]}}),
        {},
    ),
    "one pod": (service(workers=0), {}),
    "one pod, hpa": (
        service(workers=0, groups=4, flexai__scaling={"mode": "hpa", "metric": "m"}),
        {},
    ),
    "roce": (
        service(
            flexai__network={
                "profile": "roce",
                "annotations": {pods.NETWORKS: "macvlan-conf1"},
                "rdma_resource": "rdma/hca",
                "gid_index": 5,
                "traffic_class": 128,
            }
        ),
        {},
    ),
    "sglang": (
        service(
            flexai__engine={"name": "sglang", "version": "0.5.5"},
            flexai__parallelism={"tp": 4},
        ),
        {},
    ),
}


@pytest.mark.parametrize("version", [*SUPPORTED, NEWEST])
def test_kubernetes_knows_every_field(version: str) -> None:
    """Objects of one shape are asked about once."""
    seen: set[str] = set()
    for document, known in SAMPLES.values():
        for thing in rendered(document, known).objects:
            text = json.dumps(shape_of(thing), sort_keys=True)
            if thing["kind"] in NATIVE and text not in seen:
                seen.add(text)
                assert kubernetes_validate.validate(thing, version, strict=True)


def shape_of(thing: Any) -> Any:
    """Keys and types of an object, without its values."""
    if isinstance(thing, dict):
        return {key: shape_of(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return sorted({json.dumps(shape_of(item), sort_keys=True) for item in thing})
    return type(thing).__name__


def names(result: Any) -> list[tuple[str, str]]:
    return [(thing["kind"], thing["metadata"]["name"]) for thing in result.objects]


def test_one_group_of_two_pods_is_one_statefulset() -> None:
    result = rendered(service())
    assert result.layout == "single"
    (config_map, *rest) = names(result)
    assert config_map[0] == "ConfigMap"
    assert config_map[1].startswith("qwen-runtime-")
    assert rest == [
        ("Service", "qwen-hl"),
        ("Service", "qwen"),
        ("NetworkPolicy", "qwen"),
        ("StatefulSet", "qwen-g0"),
        ("PodDisruptionBudget", "qwen"),
    ]
    (stateful_set,) = of_kind(result, "StatefulSet")
    spec = stateful_set["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"]) == (2, "Parallel")
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["serviceName"] == "qwen-hl"
    (container,) = spec["template"]["spec"]["containers"]
    assert container["image"] == "vllm/vllm-openai:v0.20.0"
    assert container["command"] == ["/bin/bash", "/opt/flexai/run.sh"]
    assert "args" not in container


def test_members_find_each_other_before_they_are_ready_and_clients_find_leaders() -> None:
    headless, client = of_kind(rendered(service(groups=2)), "Service")
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"] is True
    assert headless["spec"]["selector"] == {"flexai.io/inferenceservice": "qwen"}
    assert client["spec"]["selector"] == {
        "flexai.io/inferenceservice": "qwen",
        "apps.kubernetes.io/pod-index": "0",
    }


def test_before_1_28_a_service_names_its_one_leader() -> None:
    result = rendered(service(groups=2), {"kubernetes_version": "1.27"})
    clients = {s["metadata"]["name"]: s["spec"]["selector"] for s in of_kind(result, "Service")[1:]}
    key = "statefulset.kubernetes.io/pod-name"
    assert {name: selector[key] for name, selector in clients.items()} == {
        "qwen": "qwen-g0-0",
        "qwen-g1": "qwen-g1-0",
    }
    assert any("1.28" in warning for warning in result.warnings)
    assert "LWS_WORKER_INDEX" not in environment(of_kind(result, "StatefulSet")[0])


def test_the_groups_variables_come_first_and_name_its_own_leader() -> None:
    for index, stateful_set in enumerate(of_kind(rendered(service(groups=2)), "StatefulSet")):
        found = environment(stateful_set)
        assert list(found)[:2] == ["LWS_WORKER_INDEX", "LWS_GROUP_SIZE"]
        assert found["LWS_LEADER_ADDRESS"] == f"qwen-g{index}-0.qwen-hl.serving.svc"
        assert found["LWS_GROUP_SIZE"] == "2"
        assert found["VLLM_HOST_IP"] == "$(POD_IP)"
        assert found["FLEXAI_BACKEND"] == "mp"
        assert found["FLEXAI_RENDEZVOUS_PORT"] == "29501"


def test_roles_differ_by_fragment_and_by_environment() -> None:
    document = service()
    put(document, f"{LEADER}.env", [{"name": "A", "value": "1"}, {"name": "B", "value": "it's"}])
    put(document, f"{WORKER}.env", [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}])
    result = rendered(document)
    assert result.layout == "single"
    data = of_kind(result, "ConfigMap")[0]["data"]
    assert data["leader.env"] == "export B='it'\"'\"'s'\n"
    assert data["worker.env"] == "export B=3\n"
    assert "--headless" in data["worker.sh"]
    assert "--headless" not in data["leader.sh"]
    assert environment(of_kind(result, "StatefulSet")[0])["A"] == "1"


def test_a_variable_that_only_the_kubelet_can_set_takes_two_statefulsets() -> None:
    document = service()
    put(document, f"{LEADER}.env", [{"name": "A", "value": "$(POD_IP):1"}])
    assert rendered(document).layout == "split"


def test_words_run_as_the_kubelet_would_run_them() -> None:
    assert pods.fragment(["a b", "$(X)/$HOME", "$$(Y)", ""]) == (
        "'a b' \"${X}\"'/$HOME' '$''(Y)' ''\n"
    )


def test_split_numbers_its_workers_from_one() -> None:
    result = rendered(heterogeneous())
    sets = of_kind(result, "StatefulSet")
    assert [(s["metadata"]["name"], s["spec"]["replicas"]) for s in sets] == [
        ("qwen-g0", 1), ("qwen-g0-w", 2), ("qwen-g1", 1), ("qwen-g1-w", 2),
    ]  # fmt: skip
    assert [s["spec"].get("ordinals") for s in sets[:2]] == [None, {"start": 1}]
    assert sets[1]["spec"]["template"]["spec"]["containers"][0]["image"] == "other:1"
    assert {environment(s)["LWS_LEADER_ADDRESS"] for s in sets[:2]} == {
        "qwen-g0-0.qwen-hl.serving.svc"
    }
    # One gang over both, on whichever Volcano.
    (group, _rest) = of_kind(result, "PodGroup")
    assert group["spec"] == {"minMember": 3, "queue": "q"}


def test_volcano_1_10_gets_the_podgroup_before_its_pods() -> None:
    result = rendered(service(scheduler__queue="q"), {"volcano_version": "1.10.2"})
    kinds = [thing["kind"] for thing in result.objects]
    assert kinds.index("PodGroup") < kinds.index("StatefulSet")
    template = of_kind(result, "StatefulSet")[0]["spec"]["template"]
    assert template["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "qwen-g0"
    assert template["spec"]["schedulerName"] == "volcano"
    assert "minResources" not in of_kind(result, "PodGroup")[0]["spec"]


def test_volcano_1_12_makes_the_podgroup_itself() -> None:
    known = {"volcano_version": "v1.12.0", "scheduler_name": "flexai-volcano"}
    result = rendered(service(scheduler__queue="q"), known)
    assert of_kind(result, "PodGroup") == []
    (stateful_set,) = of_kind(result, "StatefulSet")
    notes = stateful_set["metadata"]["annotations"]
    assert notes == {"scheduling.volcano.sh/group-min-member": "2"}
    template = stateful_set["spec"]["template"]
    assert template["metadata"]["annotations"]["scheduling.volcano.sh/queue-name"] == "q"
    assert template["spec"]["schedulerName"] == "flexai-volcano"


def test_keda_moves_whole_groups_and_later_groups_at_higher_load() -> None:
    scaling = {**KEDA, "min_groups": 1, "target_concurrency": 10}
    result = rendered(service(groups=3, flexai__scaling=scaling))
    scaled = of_kind(result, "ScaledObject")
    assert [s["metadata"]["name"] for s in scaled] == ["qwen-g1", "qwen-g2"]
    for thing in scaled:
        spec = thing["spec"]
        assert spec["idleReplicaCount"] == 0
        assert spec["minReplicaCount"] == spec["maxReplicaCount"] == 2
        # With one, KEDA wakes idle groups while Prometheus does not answer.
        assert "fallback" not in spec
        assert spec["initialCooldownPeriod"] == 1800
    assert [s["spec"]["triggers"][0]["metadata"]["activationThreshold"] for s in scaled] == [
        "10", "20",
    ]  # fmt: skip
    replicas = [s["spec"]["replicas"] for s in of_kind(result, "StatefulSet")]
    assert replicas == [2, 0, 0]


def test_a_split_group_scales_as_one() -> None:
    result = rendered(put(heterogeneous(), "spec.flexai.scaling", {**KEDA, "min_groups": 0}))
    sizes = {
        s["metadata"]["name"]: s["spec"]["maxReplicaCount"] for s in of_kind(result, "ScaledObject")
    }
    assert sizes == {"qwen-g0": 1, "qwen-g0-w": 2, "qwen-g1": 1, "qwen-g1-w": 2}


def test_the_engines_own_load_where_there_is_no_query() -> None:
    scaling = {"mode": "keda", "prometheus": {"server": "http://p:9090"}}
    result = rendered(service(groups=2, flexai__scaling=scaling))
    (trigger,) = of_kind(result, "ScaledObject")[0]["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        'sum(vllm:num_requests_running{namespace="serving",service="qwen"}) + '
        'sum(vllm:num_requests_waiting{namespace="serving",service="qwen"}) or vector(0)'
    )


def test_http_wakes_the_first_group() -> None:
    document, known = SAMPLES["http"]
    result = rendered(document, known)
    (route,) = of_kind(result, "InterceptorRoute")
    assert route["spec"]["target"] == {"service": "qwen", "port": 8000}
    (trigger,) = of_kind(result, "ScaledObject")[0]["spec"]["triggers"]
    assert trigger["type"] == "external-push"
    assert trigger["metadata"]["interceptorRoute"] == route["metadata"]["name"]


def test_groups_of_one_pod_that_scale_are_replicas_of_one_statefulset() -> None:
    document, known = SAMPLES["one pod, hpa"]
    result = rendered(document, known)
    (stateful_set,) = of_kind(result, "StatefulSet")
    assert environment(stateful_set)["LWS_LEADER_ADDRESS"] == "$(POD_NAME).qwen-hl.serving.svc"
    assert environment(stateful_set)["LWS_WORKER_INDEX"] == "0"
    (autoscaler,) = of_kind(result, "HorizontalPodAutoscaler")
    assert autoscaler["spec"]["maxReplicas"] == 4
    assert of_kind(result, "Service")[1]["spec"]["selector"] == {
        "flexai.io/inferenceservice": "qwen"
    }
    assert [group["leader"] for group in result.groups] == [f"qwen-g0-{i}" for i in range(4)]


@pytest.mark.parametrize(("live", "wanted"), [(0, 0), (1, 2), (2, 2), (9, 2)])
def test_a_live_group_stays_whole_or_empty(live: int, wanted: int) -> None:
    document = service(flexai__scaling={**KEDA, "min_groups": 0})
    result = rendered(document, live={"qwen-g0": {"replicas": live}})
    assert of_kind(result, "StatefulSet")[0]["spec"]["replicas"] == wanted


def test_without_scaling_the_live_size_does_not_matter() -> None:
    result = rendered(service(), live={"qwen-g0": {"replicas": 0}})
    assert of_kind(result, "StatefulSet")[0]["spec"]["replicas"] == 2


def test_what_cannot_be_changed_in_place_is_told() -> None:
    (wanted,) = of_kind(rendered(service()), "StatefulSet")
    assert rendered(service(), live={"qwen-g0": wanted["spec"]}).requires_recreate == []
    live = {"qwen-g0": {**wanted["spec"], "serviceName": "other"}}
    assert rendered(service(), live=live).requires_recreate == ["qwen-g0"]


def test_lws_gets_its_own_variables_and_both_templates() -> None:
    document, known = SAMPLES["lws"]
    result = rendered(document, known)
    (lws,) = of_kind(result, "LeaderWorkerSet")
    assert of_kind(result, "StatefulSet") == []
    template = lws["spec"]["leaderWorkerTemplate"]
    assert (lws["spec"]["replicas"], template["size"]) == (2, 4)
    (container,) = template["leaderTemplate"]["spec"]["containers"]
    assert {e["name"] for e in container["env"]} & {
        "LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS",
    } == set()  # fmt: skip
    # LWS makes a headless Service of the set's name, so the clients' must have another.
    assert [s["metadata"]["name"] for s in of_kind(result, "Service")] == ["qwen"]
    assert lws["metadata"]["name"] != "qwen"


def test_roce() -> None:
    document, known = SAMPLES["roce"]
    template = of_kind(rendered(document, known), "StatefulSet")[0]["spec"]["template"]
    assert template["metadata"]["annotations"][pods.NETWORKS] == "macvlan-conf1"
    (container,) = template["spec"]["containers"]
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert container["resources"]["limits"]["rdma/hca"] == "1"
    found = {e["name"]: e.get("value") for e in container["env"]}
    assert (found["NCCL_IB_GID_INDEX"], found["NCCL_IB_TC"]) == ("5", "128")
    assert found["NCCL_SOCKET_IFNAME"] == "eth0"


@pytest.mark.parametrize(
    ("ifname", "gloo"), [("eth1", "eth1"), ("=eth0", "eth0"), ("^lo,docker0", None)]
)
def test_gloo_takes_names_where_nccl_takes_patterns(ifname: str, gloo: str | None) -> None:
    result = rendered(service(flexai__network={"ifname": ifname}))
    found = environment(of_kind(result, "StatefulSet")[0])
    assert found["NCCL_SOCKET_IFNAME"] == ifname
    assert found.get("GLOO_SOCKET_IFNAME") == gloo


def test_the_users_own_setting_wins_over_the_profiles() -> None:
    document = both(service(), "env", [{"name": "NCCL_SOCKET_IFNAME", "value": "bond0"}])
    (stateful_set,) = of_kind(rendered(document), "StatefulSet")
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    values = [e["value"] for e in container["env"] if e["name"] == "NCCL_SOCKET_IFNAME"]
    assert values == ["bond0"]


def test_consumer_cards_have_no_peer_to_peer() -> None:
    found = environment(
        of_kind(rendered(service(flexai__gpu_profile="consumer")), "StatefulSet")[0]
    )
    assert (found["NCCL_P2P_DISABLE"], found["NCCL_IB_DISABLE"]) == ("1", "1")


def test_at_most_one_group_is_disturbed() -> None:
    (budget,) = of_kind(rendered(service(groups=3)), "PodDisruptionBudget")
    assert budget["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {"flexai.io/inferenceservice": "qwen"}},
    }


def test_only_members_reach_more_than_the_api() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]
    result = rendered(service(flexai__network_policy={"clients": peers}))
    (policy,) = of_kind(result, "NetworkPolicy")
    own = {"podSelector": {"matchLabels": {"flexai.io/inferenceservice": "qwen"}}}
    assert policy["spec"]["ingress"] == [
        {"from": [own]},
        {"from": peers, "ports": [{"port": 8000, "protocol": "TCP"}]},
    ]
    none = rendered(service(flexai__network_policy={"enabled": "no"}))
    assert of_kind(none, "NetworkPolicy") == []


def test_metrics_are_scraped_only_where_somebody_scrapes() -> None:
    assert of_kind(rendered(service()), "ServiceMonitor") == []
    (monitor,) = of_kind(rendered(service(), {"kinds": KEDA_KINDS}), "ServiceMonitor")
    client = of_kind(rendered(service()), "Service")[1]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= client["metadata"]["labels"].items()
    headless = of_kind(rendered(service()), "Service")[0]
    assert not wanted.items() <= headless["metadata"]["labels"].items()


def test_shared_memory_is_memory_and_bounded() -> None:
    (stateful_set,) = of_kind(rendered(service(flexai__shm_size="16Gi")), "StatefulSet")
    volumes = {v["name"]: v for v in stateful_set["spec"]["template"]["spec"]["volumes"]}
    memory = {"medium": "Memory", "sizeLimit": "16Gi"}
    assert volumes["flexai-shm"]["emptyDir"] == memory


def test_the_grace_period_covers_pre_stop_and_drain() -> None:
    document = service(flexai__drain={"seconds": 100, "prestop_seconds": 20})
    (stateful_set,) = of_kind(rendered(document), "StatefulSet")
    assert stateful_set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 150


def test_resource_policy_max_gives_both_roles_the_larger_amount() -> None:
    document = put(service(flexai__resource_policy="max"), f"{WORKER}.resources.limits.cpu", "16")
    result = rendered(document)
    assert result.layout == "single"
    (stateful_set,) = of_kind(result, "StatefulSet")
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["cpu"] == "16"
    assert any("both get 16" in warning for warning in result.warnings)


def test_amounts_written_otherwise_are_no_difference() -> None:
    document = put(service(), f"{WORKER}.resources.limits.memory", "65536Mi")
    assert rendered(document).layout == "single"


def test_where_heros_controller_reconciles_only_its_resource_is_written() -> None:
    document = service(groups=2)
    result = rendered(document, {"hero_controller": True})
    (resource,) = result.objects
    assert (resource["kind"], result.output) == ("InferenceService", "cr")
    assert "flexai" not in resource["spec"]
    assert resource["spec"]["servers"] == document["spec"]["servers"]
    assert any("spec.flexai" in warning for warning in result.warnings)
    assert rendered(document, {"hero_controller": True}, output="native").output == "native"
    assert rendered(document, output="cr").output == "cr"


def test_probes_of_the_users_are_replaced_and_said_so() -> None:
    document = both(service(), "livenessProbe", {"httpGet": {"path": "/", "port": 1}})
    result = rendered(document)
    (container,) = of_kind(result, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["exec"]["command"][-1] == "liveness"
    assert sum("replaced by probe.sh" in warning for warning in result.warnings) == 2


def test_the_mended_document_004_to_the_byte() -> None:
    """Whatever changes here changes every group in the field at the next run: a rollout of all.

    Write it anew with ``python -m unit.inference.test_objects``, and read the difference.
    """
    assert golden() == GOLDEN.read_text()


def golden() -> str:
    result = rendered(mended(), {"kubernetes_version": "1.28", "volcano_version": "1.10.2"})
    return yaml.safe_dump_all(result.objects, sort_keys=False, width=100)


if __name__ == "__main__":
    GOLDEN.write_text(golden())
