# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is there to what is wanted, and how a group is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._inference import apply, status
from ansible_collections.flexai.xpu.plugins.module_utils._inference.pods import SERVICE_LABEL

from .samples import KEDA_KINDS, Document, of_kind, put, rendered, service

NAMES = {("serving", "qwen")}


def defaulted(thing: Document) -> Document:
    """An object as the API server gives it back: with defaults, without what is empty."""
    live = copy.deepcopy(apply.marked(thing))
    live["metadata"].update({"uid": "u", "resourceVersion": "1", "managedFields": []})
    live["status"] = {"observedGeneration": 1}
    if live["kind"] == "StatefulSet":
        spec = live["spec"]["template"]["spec"]
        spec.update({"dnsPolicy": "ClusterFirst", "restartPolicy": "Always"})
        for entry in spec["containers"][0]["env"]:
            if entry.get("value") == "":
                del entry["value"]
    return live


def steps(wanted: list[Document], found: list[Document], **more: Any) -> list[str]:
    return [str(step) for step in apply.plan(wanted, found, NAMES, **more)]


def test_nothing_is_done_where_all_is_there() -> None:
    wanted = rendered(service()).objects
    assert steps(wanted, [defaulted(thing) for thing in wanted]) == []


def test_what_is_lacking_is_made_in_the_order_of_rendering() -> None:
    wanted = rendered(service(scheduler__queue="q")).objects
    assert [step.split()[1] for step in steps(wanted, [])] == [
        "ConfigMap", "Service", "Service", "NetworkPolicy", "PodGroup", "StatefulSet",
        "PodDisruptionBudget",
    ]  # fmt: skip


def test_what_somebody_changed_by_hand_is_put_right() -> None:
    wanted = rendered(service()).objects
    live = [defaulted(thing) for thing in wanted]
    (stateful_set,) = [thing for thing in live if thing["kind"] == "StatefulSet"]
    stateful_set["spec"]["replicas"] = 7
    assert steps(wanted, live) == ["apply StatefulSet serving/qwen-g0"]


def test_a_group_that_an_autoscaler_has_grown_is_left_as_it_is() -> None:
    prometheus = {"server": "http://p:9090", "query": "l"}
    scaling = {"mode": "keda", "min_groups": 1, "prometheus": prometheus}
    document, known = service(groups=2, flexai__scaling=scaling), {"kinds": KEDA_KINDS}
    found = [defaulted(thing) for thing in rendered(document, known).objects]
    sets = {
        thing["metadata"]["name"]: thing["spec"]
        for thing in found
        if thing["kind"] == "StatefulSet"
    }
    grown = next(name for name, spec in sets.items() if spec["replicas"] == 0)
    sets[grown]["replicas"] = max(spec["replicas"] for spec in sets.values())
    assert steps(rendered(document, known, live=sets).objects, found) == []


def test_a_field_that_is_no_longer_rendered_is_noticed() -> None:
    """Its value is still there and no other field differs: only the digest tells."""
    before = rendered(service(scheduler__queue="q"), {"volcano_version": "1.12"}).objects
    after = rendered(service(), {"volcano_version": "1.12"}).objects
    live = [defaulted(thing) for thing in before]
    assert "apply StatefulSet serving/qwen-g0" in steps(after, live)


def test_what_is_no_longer_rendered_goes_last_first() -> None:
    before = rendered(service(groups=3, scheduler__queue="q")).objects
    after = rendered(service(groups=1, scheduler__queue="q")).objects
    live = [defaulted(thing) for thing in before]
    assert steps(after, live) == [
        "delete StatefulSet serving/qwen-g1",
        "delete StatefulSet serving/qwen-g2",
        "delete PodGroup serving/qwen-g1",
        "delete PodGroup serving/qwen-g2",
    ]


def test_files_that_an_older_pod_has_mounted_stay() -> None:
    before = rendered(service()).objects
    after = rendered(service(flexai__engine__args=["--enforce-eager"])).objects
    live = [defaulted(thing) for thing in before]
    name = before[0]["metadata"]["name"]
    assert f"delete ConfigMap serving/{name}" in steps(after, live)
    assert f"delete ConfigMap serving/{name}" not in steps(after, live, keep={("serving", name)})


def test_which_steps_make_a_new_revision() -> None:
    before = rendered(service()).objects
    live = [defaulted(thing) for thing in before]
    for document, new in (
        (service(flexai__engine__args=["--enforce-eager"]), True),
        (service(workers=2), True),  # LWS_GROUP_SIZE
        (put(service(), "metadata.labels", {"team": "a"}), False),
    ):
        plan = apply.plan(rendered(document).objects, live, NAMES)
        assert any(apply.new_revision(step) for step in plan) is new


def test_other_services_objects_stay() -> None:
    other = put(service(), "metadata.name", "other")
    live = [defaulted(thing) for thing in rendered(other).objects]
    wanted = rendered(service()).objects
    assert not [step for step in steps(wanted, live) if step.startswith("delete")]
    assert len(steps([], live)) == 0


def test_what_a_controller_made_is_its_own() -> None:
    """KEDA hands our labels down to the HPA that it makes for a ScaledObject."""
    scaling = {"mode": "keda", "prometheus": {"server": "http://p:9090", "query": "l"}}
    document = service(groups=2, flexai__scaling=scaling)
    wanted = rendered(document, {"kinds": KEDA_KINDS}).objects
    (ours,) = [thing for thing in wanted if thing["kind"] == "ScaledObject"]
    owner = {"kind": "ScaledObject", "name": "qwen-g1", "controller": True}
    autoscaler: Document = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {**apply.marked(ours)["metadata"], "name": "keda-hpa-qwen-g1"},
    }
    live = [defaulted(thing) for thing in wanted]
    gone = "delete HorizontalPodAutoscaler serving/keda-hpa-qwen-g1"
    assert steps(wanted, [*live, autoscaler]) == [gone]
    autoscaler["metadata"]["ownerReferences"] = [owner]
    assert steps(wanted, [*live, autoscaler]) == []
    assert gone not in steps([], [*live, autoscaler])


def test_what_scales_goes_before_what_it_scales() -> None:
    scaling = {"mode": "keda", "prometheus": {"server": "http://p", "query": "load"}}
    made = rendered(service(groups=2, flexai__scaling=scaling)).objects
    done = steps([], [defaulted(thing) for thing in made])
    kinds = [step.split()[1] for step in done]
    assert kinds.index("ScaledObject") < kinds.index("StatefulSet") < kinds.index("Service")
    assert kinds[-1] == "ConfigMap"
    assert len(done) == len(made)


def test_what_cannot_be_changed_is_made_anew() -> None:
    wanted = rendered(service()).objects
    live = [defaulted(thing) for thing in wanted]
    assert steps(wanted, live, recreate={("serving", "qwen-g0")}) == [
        "delete StatefulSet serving/qwen-g0",
        "apply StatefulSet serving/qwen-g0",
    ]


def test_a_diff_shows_what_was_rendered_not_what_the_server_keeps() -> None:
    live = defaulted(rendered(service()).objects[0])
    shown = apply.shown(live)
    assert shown is not None
    assert set(shown["metadata"]) == {"name", "namespace", "labels", "annotations"}
    assert "status" not in shown


def test_every_object_has_a_collection() -> None:
    assert apply.collection("v1/Service", "a") == "/api/v1/namespaces/a/services"
    assert apply.collection("apps/v1/StatefulSet", "a") == "/apis/apps/v1/namespaces/a/statefulsets"
    for thing in rendered(service(scheduler__queue="q")).objects:
        assert apply.kind_of(thing) in apply.COLLECTIONS


# -- status --------------------------------------------------------------------------------------


def pod(name: str, revision: str = "new", **state: Any) -> Document:
    ready = state.pop("ready", True)
    container = {"restartCount": state.pop("restarts", 0), "state": {}, "lastState": {}, **state}
    return {
        "metadata": {
            "name": name,
            "labels": {SERVICE_LABEL: "qwen", status.REVISION: revision},
            "ownerReferences": [{"name": "qwen-g0", "controller": True}],
        },
        "spec": {"nodeName": "n"},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [container],
        },
    }


def workload(replicas: int = 2) -> Document:
    (found,) = of_kind(rendered(service()), "StatefulSet")
    return {
        **found,
        "spec": {**found["spec"], "replicas": replicas},
        "status": {"updateRevision": "new", "observedGeneration": 1},
    }


WAITS = {"waiting": {"reason": "CrashLoopBackOff"}}
ENDED = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2"}}
PHASES: dict[str, tuple[list[Document], int, str, str]] = {
    "all ready": ([pod("a"), pod("b")], 2, "Serving", ""),
    "scaled to zero": ([], 0, "Idle", ""),
    "not there yet": ([pod("a", ready=False)], 2, "Pending", ""),
    "loading": ([pod("a", ready=False), pod("b", ready=False)], 2, "Starting", ""),
    "of an older revision": ([pod("a", "old"), pod("b")], 2, "Outdated", ""),
    "broken": ([pod("a"), pod("b", ready=False, state=WAITS)], 2, "Failed", "CrashLoopBackOff"),
    "came back": (
        [pod("a"), pod("b", restarts=3, lastState=ENDED)],
        2,
        "Serving",
        "b: OOMKilled (137)",
    ),
}


@pytest.mark.parametrize("case", PHASES)
def test_a_groups_phase(case: str) -> None:
    pods, replicas, phase, reason = PHASES[case]
    (group,) = rendered(service()).groups
    row = status.of_group(group, pods, [workload(replicas)])
    assert (row["phase"], row["reason"]) == (phase, reason)


def test_a_group_beyond_the_live_replicas_rests() -> None:
    scaling = {"mode": "hpa", "metric": "m"}
    groups = rendered(service(workers=0, groups=3, flexai__scaling=scaling)).groups
    phases = [
        status.of_group(g, [pod(f"p{g['index']}")] if g["index"] < 1 else [], [workload(1)])
        for g in groups
    ]
    assert [row["phase"] for row in phases] == ["Serving", "Idle", "Idle"]


def test_a_pod_that_is_leaving_is_not_ready() -> None:
    leaving = pod("a")
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert not status.ready(leaving)


def test_stale_pods_are_named() -> None:
    assert status.stale([pod("a", "old"), pod("b")], [workload()]) == ["a"]


def test_the_table_has_a_line_for_each_group() -> None:
    group = {
        "group": "qwen-g0",
        "phase": "Serving",
        "ready": 2,
        "pods": 2,
        "restarts": 0,
        "tokens_per_second": 12.5,
    }
    address = "http://qwen.serving.svc:8000"
    service = {"namespace": "serving", "name": "qwen", "address": address}
    own = {"namespace": "a", "name": "b", "address": "", "groups": [], "output": "cr"}
    assert status.table([{**service, "groups": [group], "output": "native"}, own]) == [
        "service       group    phase    ready  restarts  tokens/s  reason  address",
        "serving/qwen  qwen-g0  Serving  2/2    0         12.5      -       http://qwen.serving.svc:8000",
        "a/b           -        cr       -      -         -         -       -",
    ]


METRICS = """\
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen"} 1200.0
vllm:generation_tokens_total{engine="1",model_name="qwen"} 1.5e+3
vllm:generation_tokens_created{engine="0"} 1.7e+09
"""


def test_tokens_of_all_engines_of_a_group_are_counted() -> None:
    assert status.generated(METRICS) == 2700
    assert status.generated("sglang:generation_tokens_total 7\n") == 7
    assert status.generated("up 1\n") is None


@pytest.mark.parametrize(
    ("before", "after", "tokens"),
    [(100, 150, 25.0), (None, 150, None), (100, None, None), (150, 100, None)],
)
def test_a_rate_is_none_where_nobody_can_tell(
    before: float | None, after: float | None, tokens: float | None
) -> None:
    assert status.rate(before, after, 2) == tokens
