# SPDX-License-Identifier: GPL-3.0-or-later
"""Inference services against a real API server and StatefulSet controller.

A testbed's control plane with Volcano's, KEDA's and LWS's own resources; kwok keeps nodes that have
accelerators and says of their pods that they run. What pods do inside is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
from bench.fake_nodes import TOPOLOGY, running, wait
from e2e.platform import ROOT, Platform, must, recap
from kubernetes import client, config
from testbed.recipes import crds, kwok
from unit.inference.samples import SCRIPTS, Document, put, service
from xpubuild.cache import Cache

PLAYBOOK = Path(sysconfig.get_path("scripts")) / "ansible-playbook"
MODULE = "ansible_collections.flexai.xpu.plugins.modules.inference_service"
NODES, GPUS = 8, 8
NAMESPACE = "serving"
RUNNING = "status.phase=Running"
KEDA = {"mode": "keda", "min_groups": 1, "prometheus": {"server": "http://p:9090", "query": "l"}}
# What Hero's platform has: the resource, and the controller that reconciles it.
HERO = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "inferenceservices.system.hero.ai"},
    "spec": {
        "group": "system.hero.ai",
        "scope": "Namespaced",
        "names": {"kind": "InferenceService", "plural": "inferenceservices"},
        "versions": [
            {
                "name": "v1alpha1", "served": True, "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object", "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}  # fmt: skip
CONTROLLER = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "inference-controller", "namespace": "default"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "c"}},
        "template": {
            "metadata": {"labels": {"app": "c"}},
            "spec": {"containers": [{"name": "c", "image": "hero/inference-controller:v1.2.4"}]},
        },
    },
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


def fake_node(name: str) -> Document:
    room = {"cpu": "64", "memory": "512Gi", "pods": "250", "nvidia.com/gpu": str(GPUS)}
    return {
        "metadata": {
            "name": name,
            "labels": {"type": "kwok", "kubernetes.io/hostname": name},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "status": {"capacity": room, "allocatable": room},
    }


class Site:
    """The cluster, and the module as an operator's playbook calls it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.api: Any = client.CoreV1Api(config.new_client_from_config(str(platform.kubeconfig)))

    def run(self, services: list[Document], check: bool = False, **options: Any) -> dict[str, Any]:
        """One execution of the module, as Ansible starts it; ``diff`` is there in any case."""
        arguments = {
            "kubeconfig": str(self.platform.kubeconfig),
            "services": services,
            "scripts": SCRIPTS,
            "timeout_s": 300,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            **options,
        }
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def play(self, directory: Path, playbook: str, **variables: Any) -> str:
        """A playbook of the collection, on an inventory of one control plane."""
        inventory = directory / "inventory.ini"
        inventory.write_text("[flexai_control_plane]\ncp ansible_connection=local\n")
        file = directory / "variables.json"
        file.write_text(
            json.dumps({"flexai_kubeconfig": str(self.platform.kubeconfig), **variables})
        )
        done = subprocess.run(
            [str(PLAYBOOK), f"flexai.xpu.{playbook}", "-i", str(inventory), "-e", f"@{file}"],
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.platform.kubectl(*arguments, stdin=stdin).output

    def pods(self) -> dict[str, str]:
        """Each pod's UID."""
        found = self.api.list_namespaced_pod(NAMESPACE).items
        return {pod.metadata.name: pod.metadata.uid for pod in found}

    def left(self) -> list[str]:
        """Whatever bears our label."""
        kinds = (
            "configmaps,services,networkpolicies,statefulsets,poddisruptionbudgets,pods,"
            "podgroups.scheduling.volcano.sh,scaledobjects.keda.sh,"
            "leaderworkersets.leaderworkerset.x-k8s.io"
        )
        label = ("-l", "flexai.io/inferenceservice", "-n", NAMESPACE)
        return self.kubectl("get", kinds, *label, "-o", "name", "--ignore-not-found").split()


def say_again(api: Any, ended: threading.Event) -> None:
    """A kubelet's part that kwok leaves out: a pod that runs is ready, whatever the node controller
    has made of it while it had not heard of its node for long enough."""
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    while not ended.wait(0.5):
        with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
            for pod in api.list_namespaced_pod(NAMESPACE, field_selector=RUNNING).items:
                said = {one.type: one.status for one in pod.status.conditions or ()}
                if said.get("Ready") == "False":
                    api.patch_namespaced_pod_status(pod.metadata.name, NAMESPACE, ready)


@contextmanager
def kubelets(api: Any) -> Iterator[None]:
    """:func:`say_again`, for as long as it is needed."""
    ended = threading.Event()
    thread = threading.Thread(target=say_again, args=(api, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    name = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-inference"
    platform, scratch = Platform(name), tmp_path_factory.mktemp("kwok")
    testbed = [sys.executable, "-m", "testbed"]
    try:
        must([*testbed, "up", str(TOPOLOGY), "--name", name])
        found = Site(platform)
        for path in sorted(crds.build(Cache()).glob("*.yaml")):
            found.kubectl("apply", "--server-side", "-f", str(path))
        found.kubectl("create", "namespace", NAMESPACE)
        for index in range(NODES):
            found.api.create_node(fake_node(f"node-{index}"))
        program = kwok.build(Cache()) / "kwok"
        selector = "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"
        command = (program, f"--kubeconfig={platform.kubeconfig}", selector)
        with running(scratch / "kwok.log", *command), kubelets(Site(platform).api):
            yield found
    finally:
        subprocess.run([*testbed, "down", "--name", name], cwd=ROOT, check=True)


@pytest.fixture
def clean(site: Site) -> Iterator[Site]:
    yield site
    leaving = [put(service(), "metadata.name", name) for name in ("qwen", "other")]
    site.run(leaving, state="absent")


def test_a_service_comes_serves_stays_and_goes(clean: Site) -> None:
    document = service(groups=2)
    predicted = clean.run([document], check=True)
    assert predicted["changed"], predicted
    assert clean.left() == []
    done = clean.run([document])
    assert done["steps"] == predicted["steps"], done
    (report,) = done["services"]
    assert [group["phase"] for group in report["groups"]] == ["Serving", "Serving"]
    assert report["address"] == "http://qwen.serving.svc:8000"
    assert set(clean.pods()) == {f"qwen-g{g}-{p}" for g in range(2) for p in range(2)}
    again = clean.run([document])
    assert (again["changed"], again["steps"], again["diff"]) == (False, [], []), again
    gone = clean.run([document], state="absent")
    assert gone["changed"]
    assert clean.left() == []
    assert not clean.run([document], state="absent")["changed"]


def test_pods_bear_what_the_leaders_service_selects(clean: Site) -> None:
    clean.run([service(groups=2)])
    selector = "flexai.io/inferenceservice=qwen,apps.kubernetes.io/pod-index=0"
    found = clean.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "name").split()
    assert found == ["pod/qwen-g0-0", "pod/qwen-g1-0"]


def test_a_change_rolls_group_by_group(clean: Site) -> None:
    clean.run([service(groups=2)])
    before = clean.pods()
    changed = service(groups=2, flexai__engine__args=["--enforce-eager"])
    predicted = clean.run([changed], check=True)
    done = clean.run([changed])
    assert done["steps"] == predicted["steps"]
    rolled = [step for step in done["steps"] if step.startswith("roll")]
    assert rolled == ["roll serving/qwen-g0", "roll serving/qwen-g1"], done
    assert not set(before.values()) & set(clean.pods().values())
    # The second group's pods are no older than the end of the first's roll.
    times: dict[str, list[Any]] = {"g0": [], "g1": []}
    for pod in clean.api.list_namespaced_pod(NAMESPACE).items:
        (started,) = [c for c in pod.status.conditions if c.type == "Ready"]
        group = pod.metadata.name.split("-")[1]
        stamp = started.last_transition_time if group == "g0" else pod.metadata.creation_timestamp
        times[group].append(stamp)
    assert max(times["g0"]) <= min(times["g1"])
    assert not clean.run([changed])["changed"]
    # The files of the former revision have gone.
    maps = [name for name in clean.left() if name.startswith("configmap/")]
    assert len(maps) == 1


def test_an_interrupted_rollout_is_completed(clean: Site) -> None:
    clean.run([service(groups=2)])
    changed = service(groups=2, flexai__engine__args=["--enforce-eager"])
    assert "roll" not in " ".join(clean.run([changed], rollout=False, wait=False)["steps"])

    def phases() -> list[str]:
        (report,) = clean.run([changed], state="status")["services"]
        return [group["phase"] for group in report["groups"]]

    # The controller has to see the new revision first.
    wait(lambda: phases() == ["Outdated", "Outdated"], "both groups are outdated")
    # Their pods have the former files mounted.
    assert len([name for name in clean.left() if name.startswith("configmap/")]) == 2
    done = clean.run([changed])
    assert done["steps"][:2] == ["roll serving/qwen-g0", "roll serving/qwen-g1"]
    assert done["steps"][2].startswith("delete ConfigMap serving/qwen-runtime-")


def test_what_is_no_longer_rendered_goes_and_other_services_stay(clean: Site) -> None:
    other = put(service(workers=0), "metadata.name", "other")
    clean.run([service(groups=3), other])
    done = clean.run([service(groups=1)])
    assert done["steps"] == [
        "delete StatefulSet serving/qwen-g1",
        "delete StatefulSet serving/qwen-g2",
    ]
    assert "statefulset.apps/other-g0" in clean.left()


def test_what_somebody_changed_by_hand_is_put_right(clean: Site) -> None:
    clean.run([service()])
    patch = json.dumps({"spec": {"maxUnavailable": 2}})
    clean.kubectl("patch", "poddisruptionbudget", "qwen", "-n", NAMESPACE, "--type=merge", "-p",
                  patch)  # fmt: skip
    assert clean.run([service()], check=True)["steps"] == ["apply PodDisruptionBudget serving/qwen"]


def test_a_service_of_somebody_else_stays_as_it_is(clean: Site) -> None:
    clean.kubectl("create", "service", "clusterip", "qwen", "-n", NAMESPACE, "--tcp=80")
    try:
        refused = clean.run([service()])
        assert 'Service serving/qwen: "written by kubectl-create"' in refused["msg"], refused
        assert clean.left() == []
        gone = clean.run([service()], state="absent")
        assert not gone["changed"], gone
    finally:
        clean.kubectl("delete", "service", "qwen", "-n", NAMESPACE)


def test_groups_that_scale_keep_their_live_size_and_are_never_a_part(clean: Site) -> None:
    document = service(groups=2, flexai__scaling=KEDA)
    done = clean.run([document])
    assert [g["phase"] for g in done["services"][0]["groups"]] == ["Serving", "Idle"], done
    # What KEDA does when the second group's load is there.
    clean.kubectl("scale", "statefulset", "qwen-g1", "-n", NAMESPACE, "--replicas=2")
    wait(lambda: len(clean.pods()) == 4, "the second group is whole")
    again = clean.run([document])
    assert (again["changed"], len(clean.pods())) == (False, 4), again


def test_volcanos_podgroup_is_accepted_before_its_pods(clean: Site) -> None:
    queue = {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "Queue",
        "metadata": {"name": "research"},
        "spec": {"weight": 1},
    }
    document = service(scheduler__queue="research")
    refused = clean.run([document])
    assert "does not exist" in refused["msg"]
    assert clean.left() == []
    clean.kubectl("apply", "-f", "-", stdin=json.dumps(queue))
    done = clean.run([document], wait=False, rollout=False)  # nobody schedules here
    kinds = [step.split()[1] for step in done["steps"]]
    assert kinds.index("PodGroup") < kinds.index("StatefulSet")
    assert "podgroup.scheduling.volcano.sh/qwen-g0" in clean.left()


def test_what_cannot_be_changed_in_place_takes_consent(clean: Site) -> None:
    clean.run([service()])
    clean.kubectl("delete", "statefulset", "qwen-g0", "-n", NAMESPACE)
    found = clean.run([service()], check=True)["diff"]
    (wanted,) = [d["after"] for d in found if d["after"] and d["after"]["kind"] == "StatefulSet"]
    put(wanted, "spec.serviceName", "somewhere-else")
    clean.kubectl("apply", "-f", "-", stdin=json.dumps(wanted))
    refused = clean.run([service()])
    assert "recreate: true" in refused["msg"]
    done = clean.run([service()], recreate=True)
    assert done["steps"][:2] == [
        "delete StatefulSet serving/qwen-g0",
        "apply StatefulSet serving/qwen-g0",
    ]


def test_where_heros_controller_is_only_its_resource_is_written(clean: Site) -> None:
    clean.run([service()])
    for thing in (HERO, CONTROLLER):
        clean.kubectl("apply", "-f", "-", stdin=json.dumps(thing))
    clean.kubectl("wait", "--for=condition=Established", "crd/inferenceservices.system.hero.ai")
    try:
        done = clean.run([service()])
        assert "apply InferenceService serving/qwen" in done["steps"], done
        wait(lambda: clean.left() == [], "our native objects have gone")
        assert not clean.run([service()])["changed"]
        clean.run([service()], state="absent")
        found = clean.kubectl("get", "inferenceservices.system.hero.ai", "-A", "-o", "name")
        assert found.split() == []
    finally:
        clean.kubectl("delete", "deployment", "inference-controller", "-n", "default")
        clean.kubectl("delete", "crd", "inferenceservices.system.hero.ai")


def test_a_hundred_unchanged_services_are_one_look(clean: Site) -> None:
    """``make bench-apply`` measures it; here it only has to be so."""
    names = [f"s{index}" for index in range(20)]
    documents = [put(service(workers=0, gpus=1), "metadata.name", name) for name in names]
    assert clean.run(documents, wait=False)["changed"]
    again = clean.run(documents, wait=False)
    assert (again["changed"], len(again["services"])) == (False, 20), again
    clean.run(documents, state="absent")
    assert clean.left() == []


def test_the_playbooks_have_them_and_show_them(clean: Site, tmp_path: Path) -> None:
    report = tmp_path / "status.json"
    variables = {
        "inference_service_services": [service()],
        "inference_service_status_file": str(report),
    }
    assert recap(clean.play(tmp_path, "inference", **variables))["cp"]["changed"] > 0
    assert recap(clean.play(tmp_path, "inference", **variables))["cp"]["changed"] == 0
    shown = clean.play(tmp_path, "inference_status", **variables)
    assert "serving/qwen  qwen-g0  Serving  2/2" in shown
    (found,) = json.loads(report.read_text())
    assert [group["phase"] for group in found["groups"]] == ["Serving"]
    variables["inference_service_state"] = "absent"
    clean.play(tmp_path, "inference", **variables)
    assert clean.left() == []
