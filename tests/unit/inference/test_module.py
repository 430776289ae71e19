# SPDX-License-Identifier: GPL-3.0-or-later
"""Module inference_service: in which order it asks what of an API server.

The API here is a table of objects by path whose StatefulSets have their pods at once; what a real
one makes of the same calls is asked in tests/integration/test_inference_service.py.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._cluster import Cluster
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._inference.pods import SERVICE_LABEL
from ansible_collections.flexai.xpu.plugins.modules import inference_service as module

from .samples import SCRIPTS, WORKER, Document, put, service

KINDS = {
    "/apis/keda.sh/v1alpha1": ["ScaledObject"],
    "/apis/scheduling.volcano.sh/v1beta1": ["PodGroup"],
}
KEDA = {"mode": "keda", "prometheus": {"server": "http://p", "query": "l"}}


class Table(Cluster):
    """Objects by path."""

    def __init__(self) -> None:
        super().__init__(None, "table")
        self.objects: dict[str, Document] = {}
        self.deleted: list[str] = []
        self.controllers = True

    def get(self, path: str, **more: Any) -> Document | None:
        if path == "/version":
            return {"gitVersion": "v1.31.2"}
        if path in KINDS:
            return {"resources": [{"kind": kind} for kind in KINDS[path]]}
        return copy.deepcopy(self.objects.get(path))

    def list(self, path: str, **more: Any) -> list[Document]:
        self.control()
        if path.endswith("/queues"):
            return [{"metadata": {"name": "q"}, "status": {"state": "Open"}}]
        label = more.get("label_selector")
        found = [
            o
            for name, o in self.objects.items()
            if name.rpartition("/")[0] == path
            and (label is None or label in (o["metadata"].get("labels") or {}))
        ]
        return [{k: v for k, v in o.items() if k not in ("apiVersion", "kind")} for o in found]

    def apply(self, path: str, body: Document, manager: str, force: bool = False) -> Document:
        assert force == ("/statefulsets/" not in path)
        before = self.objects.get(path, {"metadata": {}})["metadata"].get("generation", 0)
        made = copy.deepcopy(body)
        made["metadata"]["generation"] = before + 1
        self.objects[path] = made
        return made

    def change(self, verb: str, path: str, body: Document | None = None) -> Document:
        assert verb == "delete"
        if self.objects.pop(path, None) is None:
            raise XpuError("not found", "none")
        self.deleted.append(path.rpartition("/")[2])
        return {}

    def control(self) -> None:
        """Pods of every StatefulSet, ready; a pod that has gone comes back as a new one."""
        kept = set()
        for thing in [o for o in self.objects.values() if o.get("kind") == "StatefulSet"]:
            if not self.controllers:
                break
            template, meta = thing["spec"]["template"], thing["metadata"]
            text = json.dumps(template, sort_keys=True)
            revision = hashlib.sha256(text.encode()).hexdigest()[:8]
            observed = {"observedGeneration": meta["generation"], "updateRevision": revision}
            thing["status"] = observed
            first = thing["spec"].get("ordinals", {}).get("start", 0)
            for index in range(first, first + thing["spec"]["replicas"]):
                name = f"{meta['name']}-{index}"
                path = f"/api/v1/namespaces/{meta['namespace']}/pods/{name}"
                kept.add(path)
                labels = {**template["metadata"]["labels"], "controller-revision-hash": revision}
                self.objects.setdefault(
                    path,
                    {
                        "metadata": {
                            "name": name, "namespace": meta["namespace"], "labels": labels,
                            "ownerReferences": [{"name": meta["name"], "controller": True}],
                        },
                        "spec": {"nodeName": "n", "volumes": template["spec"]["volumes"]},
                        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
                    },
                )  # fmt: skip
        for path in [p for p in self.objects if "/pods/" in p and p not in kept]:
            del self.objects[path]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(module, "POLL_S", 0)
    return Table()


def run(
    table: Table, services: list[Document], state: str = "present", check: bool = False, **more: Any
) -> Document:
    params = {
        "services": services, "scripts": SCRIPTS, "facts": {}, "output": "auto", "recreate": False,
        "rollout": True, "wait": True, "sample_s": 0, "timeout_s": 60, **more,
    }  # fmt: skip
    return module.STATES[state](table, params, check)


def changed() -> Document:
    return service(groups=2, flexai__engine__args=["--enforce-eager"])


def test_check_predicts_and_changes_nothing_and_a_second_run_is_silent(table: Table) -> None:
    predicted = run(table, [service(groups=2)], check=True)
    assert table.objects == {}
    done = run(table, [service(groups=2)])
    assert done["steps"] == predicted["steps"]
    assert [g["phase"] for g in done["services"][0]["groups"]] == ["Serving", "Serving"]
    again = run(table, [service(groups=2)])
    assert (again["changed"], again["steps"], again["diff"]) == (False, [], [])


def test_a_change_rolls_group_by_group_and_then_its_old_files_go(table: Table) -> None:
    run(table, [service(groups=2)])
    predicted = run(table, [changed()], check=True)
    table.deleted.clear()
    done = run(table, [changed()])
    assert done["steps"] == predicted["steps"]
    assert table.deleted[:4] == ["qwen-g0-0", "qwen-g0-1", "qwen-g1-0", "qwen-g1-1"]
    assert table.deleted[4].startswith("qwen-runtime-")
    assert not run(table, [changed()])["changed"]


def test_a_rollout_that_did_not_happen_is_made_up_for(table: Table) -> None:
    run(table, [service(groups=2)])
    run(table, [changed()], rollout=False, wait=False)
    report = run(table, [changed()], state="status")
    assert [row["phase"] for row in report["services"][0]["groups"]] == ["Outdated"] * 2
    assert "Outdated  2/2" in report["table"][1]
    done = run(table, [changed()])
    assert done["steps"][:2] == ["roll serving/qwen-g0", "roll serving/qwen-g1"]


def test_a_wait_that_is_in_vain_says_what_is_lacking(table: Table) -> None:
    table.controllers = False
    with pytest.raises(
        XpuError, match=r"After 0 s no controller has looked at StatefulSet qwen-g0"
    ):
        run(table, [service()], timeout_s=0)


def test_what_cannot_be_changed_in_place_takes_consent(table: Table) -> None:
    run(table, [service()])
    split = put(service(), f"{WORKER}.image", "other:1")
    before = copy.deepcopy(table.objects)
    with pytest.raises(XpuError, match=r"serving/qwen-g0 can't be changed in place"):
        run(table, [split])
    assert table.objects == before
    assert run(table, [split], recreate=True)["steps"][1:3] == [
        "delete StatefulSet serving/qwen-g0",
        "apply StatefulSet serving/qwen-g0",
    ]


def test_a_group_that_scales_keeps_its_size(table: Table) -> None:
    document = service(groups=3, flexai__scaling=KEDA, scheduler__queue="q")
    done = run(table, [document])
    assert [g["phase"] for g in done["services"][0]["groups"]] == ["Serving", "Idle", "Idle"]
    assert not run(table, [document])["changed"]


def test_absent_leaves_nothing_and_other_services(table: Table) -> None:
    other = put(service(), "metadata.name", "other")
    run(table, [service(groups=2), other])
    assert run(table, [service()], state="absent")["changed"]
    assert {path.rpartition("/")[2].partition("-")[0] for path in table.objects} == {"other"}
    assert not run(table, [service()], state="absent")["changed"]
    run(table, [other], state="absent")
    assert table.objects == {}


SERVICE_PATH = "/api/v1/namespaces/serving/services/qwen"


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("labels", "owner"),
    [({}, "written by helm, kubectl"), ({SERVICE_LABEL: "other"}, "part of service other")],
)
def test_an_object_of_somebody_else_is_named_and_never_taken(
    table: Table, labels: Document, owner: str, check: bool
) -> None:
    managers = [{"manager": "kubectl"}, {"manager": "helm"}]
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "qwen", "namespace": "serving", "labels": labels, "managedFields": managers,
        },
    }  # fmt: skip
    table.objects[SERVICE_PATH] = copy.deepcopy(theirs)
    with pytest.raises(XpuError) as error:
        run(table, [service()], check=check)
    assert f'Service serving/qwen: "{owner}"' in str(error.value)
    assert "label it flexai.io/inferenceservice=qwen" in str(error.value)
    assert table.objects == {SERVICE_PATH: theirs}


def test_an_object_that_was_labelled_is_taken_over(table: Table) -> None:
    meta = {"name": "qwen", "namespace": "serving", "labels": {SERVICE_LABEL: "qwen"}}
    table.objects[SERVICE_PATH] = {"apiVersion": "v1", "kind": "Service", "metadata": meta}
    assert "apply Service serving/qwen" in run(table, [service()])["steps"]


def test_two_services_that_want_one_object_are_told_so(table: Table) -> None:
    """The members of service qwen find each other by a name that another service may be called."""
    same = put(service(), "metadata.name", "qwen-hl")
    with pytest.raises(XpuError, match=r"part of service qwen"):
        run(table, [service(), same])
    assert table.objects == {}


def test_nothing_is_changed_when_one_of_the_services_is_wrong(table: Table) -> None:
    wrong = put(put(service(), "metadata.name", "other"), "spec.replcas", 1)
    with pytest.raises(XpuError, match=r"serving/other: spec\.replcas"):
        run(table, [service(), wrong])
    assert table.objects == {}


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("metadata.name", "qwen", "each service once"),
        ("metadata.name", None, "the service's name"),
        ("metadata.namespace", "../kube-system", "lower-case letters"),
    ],
)
def test_names_are_checked_before_anything_is_asked(
    table: Table, path: str, value: Any, text: str
) -> None:
    with pytest.raises(XpuError, match=text):
        run(table, [service(), put(service(), path, value)], state="absent")
