# SPDX-License-Identifier: GPL-3.0-or-later
"""Beside a Volcano of somebody else's ours is a second scheduler, and all of the other's stays.

The foreign one is upstream's chart as a stranger would install it, with plain ``helm``, under a
name and in a namespace of his own, before the cluster has anything of ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from testbed.artefacts import publish_all
from xpubuild.cache import Cache
from xpubuild.recipes import helm, volcano

from e2e.faults import wait_for
from e2e.mixed import IMAGE
from e2e.platform import ROOT, Platform, must, recap

# A testbed of its own, from bare hosts and back.
pytestmark = pytest.mark.soak

TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "beside.yaml"
MANIFEST = ROOT / "build" / "artefacts" / "manifest.yml"
FOREIGN, THEIRS = "theirs", "batch-system"
OURS = "flexai-volcano"
PODS = "two-volcanos"
PATIENCE_S = 300
# What a stranger's Volcano consists of, and what must be as it was; status is its own business.
OBJECTS = (
    "customresourcedefinitions,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,"
    "validatingwebhookconfigurations,queues.scheduling.volcano.sh,deployments,configmaps,"
    "serviceaccounts,services"
)
CLUSTER_WIDE = "clusterroles,clusterrolebindings,namespaces"
SLICE = {
    "huawei.com/vgpu-number": "1",
    "huawei.com/vgpu-cores": "20",
    "huawei.com/vgpu-memory-1Gi": "2",
}


def install_foreign(platform: Platform) -> None:
    """``helm install theirs volcano-1.10.0.tgz``, with the images that are on the nodes."""
    cache = Cache()
    chart = next((volcano.build(cache) / "chart").glob("volcano-*.tgz"))
    listed = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["artefacts"]
    (image,) = (one["image"] for one in listed if one["name"] == "vc-scheduler")
    registry, _, rest = image.rpartition("/")
    values = {
        "basic.image_registry": registry,
        "basic.scheduler_image_name": rest.partition(":")[0],
        "basic.controller_image_name": "vc-controller-manager",
        "basic.image_tag_version": rest.partition(":")[2],
        "basic.image_pull_policy": "IfNotPresent",
        "custom.admission_enable": "false",
    }
    must(
        [
            str(helm.build(cache) / "helm"), f"--kubeconfig={platform.kubeconfig}",
            "install", FOREIGN, str(chart), "--namespace", THEIRS, "--create-namespace", "--wait",
            *(word for item in values.items() for word in ("--set", "=".join(item))),
        ]
    )  # fmt: skip
    queue = ("get", "queues.scheduling.volcano.sh", "default")
    wait_for(lambda: platform.kubectl(*queue, check=False).rc == 0, "the other's queue is there")


@pytest.fixture(scope="module")
def foreign() -> Iterator[tuple[Platform, dict[str, Any]]]:
    """A testbed with a Volcano of somebody else's and nothing of ours; and what there is of it."""
    platform = Platform("beside")
    down = [sys.executable, "-m", "testbed", "down", "--name", platform.name]
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    subprocess.run(down, cwd=ROOT, check=True)
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", platform.name])
    try:
        # Brings the images. Without its cluster's part the site isn't ready, which it says.
        platform.playbook("site", "--tags", "nodes", check=False)
        install_foreign(platform)
        yield platform, theirs(platform)
    finally:
        subprocess.run(down, cwd=ROOT, check=True)


def theirs(platform: Platform) -> dict[str, Any]:
    """All that isn't ours of kinds that a Volcano consists of, less status and its bookkeeping."""
    listed = json.loads(platform.kubectl("get", OBJECTS, "-A", "-o", "json").output)["items"]
    found = {}
    for thing in listed:
        meta = thing["metadata"]
        where = meta.get("namespace", "")
        known = meta["name"].startswith(FOREIGN) or "volcano.sh" in meta["name"] or where == THEIRS
        if known or thing["kind"] == "Queue":
            kept = {key: part for key, part in thing.items() if key not in ("status", "metadata")}
            marks = {key: meta.get(key) for key in ("uid", "generation", "labels", "annotations")}
            # The Deployment controller counts rollouts there.
            (marks["annotations"] or {}).pop("deployment.kubernetes.io/revision", None)
            found[f"{thing['kind']} {where}/{meta['name']}"] = {**kept, **marks}
    return found


def create(platform: Platform, *things: dict[str, Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(things)}
    platform.kubectl("-n", PODS, "create", "-f", "-", stdin=json.dumps(listed))


def pod(name: str, limits: dict[str, str], **spec: Any) -> dict[str, Any]:
    container = {
        "name": "c0",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": {"limits": limits},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, **spec},
    }


def gang(name: str, scheduler: str, limits: dict[str, str]) -> dict[str, Any]:
    template = pod(name, limits, restartPolicy="Never")
    return {
        "apiVersion": "batch.volcano.sh/v1alpha1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "schedulerName": scheduler,
            "queue": "default",
            "minAvailable": 2,
            "tasks": [
                {
                    "name": "t",
                    "replicas": 2,
                    "template": {"metadata": template["metadata"], "spec": template["spec"]},
                }
            ],
        },
    }


def runs(platform: Platform, name: str, count: int) -> list[dict[str, Any]]:
    """The pods of that name, once all of them run."""

    def there() -> list[dict[str, Any]]:
        told = platform.kubectl("-n", PODS, "get", "pods", "-l", f"app={name}", "-o", "json")
        found: list[dict[str, Any]] = json.loads(told.output)["items"]
        return found

    def so() -> bool:
        return [one["status"].get("phase") for one in there()] == ["Running"] * count

    wait_for(so, f"{count} pods of {name} run", PATIENCE_S)
    return there()


def bound_by(platform: Platform, name: str) -> set[str]:
    """Who says in an event that he gave the pods their nodes."""
    told = platform.kubectl("-n", PODS, "get", "events", "-o", "json").output
    return {
        event.get("reportingComponent") or event["source"]["component"]
        for event in json.loads(told)["items"]
        if event["reason"] == "Scheduled"
        and event["involvedObject"]["kind"] == "Pod"
        and event["involvedObject"]["name"].startswith(name)
    }


def test_ours_comes_beside_it_and_changes_nothing_of_it(
    foreign: tuple[Platform, dict[str, Any]],
) -> None:
    platform, before = foreign
    done = platform.playbook("site")
    assert "ours is a second scheduler beside it" in done.output
    assert platform.verdict()["ready"]
    assert theirs(platform) == before
    listed = platform.kubectl("-n", OURS, "get", "deployments", "-o", "name").output.split()
    assert sorted(listed) == [
        f"deployment.apps/{OURS}-{one}" for one in ("controllers", "scheduler")
    ]
    leases = platform.kubectl("-n", OURS, "get", "leases", "-o", "name").output.split()
    assert sorted(leases) == [
        f"lease.coordination.k8s.io/{OURS}-{one}" for one in ("controllers", "scheduler")
    ]
    assert {host["changed"] for host in recap(platform.playbook("cluster").output).values()} == {0}


def test_each_schedules_its_own(foreign: tuple[Platform, dict[str, Any]]) -> None:
    platform, before = foreign
    platform.kubectl("create", "namespace", PODS)
    account = ("-n", PODS, "get", "serviceaccount", "default")
    wait_for(lambda: platform.kubectl(*account, check=False).rc == 0, "a service account is there")
    create(
        platform,
        pod("slice", SLICE),  # names no scheduler: the webhook does
        pod("plain", {"cpu": "10m"}, schedulerName="volcano"),
        gang("our-gang", OURS, SLICE),
        gang("their-gang", "volcano", {"cpu": "10m"}),
    )
    (ours,) = runs(platform, "slice", 1)
    assert ours["spec"]["schedulerName"] == OURS
    assert ours["metadata"]["annotations"]["huawei.com/vgpu-ids-new"]
    for one in runs(platform, "our-gang", 2):
        assert one["metadata"]["annotations"]["huawei.com/vgpu-ids-new"]
    runs(platform, "plain", 1)
    runs(platform, "their-gang", 2)
    for name, who in (
        ("slice", OURS), ("our-gang", OURS), ("plain", "volcano"), ("their-gang", "volcano"),
    ):  # fmt: skip
        assert bound_by(platform, name) == {who}, name
    assert theirs(platform) == before


def state_of_theirs(platform: Platform) -> dict[str, Any]:
    """PodGroups by their versions, and what queues are said to give out."""
    kinds = "podgroups.scheduling.volcano.sh,queues.scheduling.volcano.sh"
    listed = json.loads(platform.kubectl("get", kinds, "-A", "-o", "json").output)["items"]
    return {
        f"{thing['kind']}/{thing['metadata']['name']}": (
            # A queue's other numbers are counted by the other's controllers, which are there.
            thing.get("status", {}).get("allocated")
            if thing["kind"] == "Queue"
            else thing["metadata"]["resourceVersion"]
        )
        for thing in listed
    }


def test_without_the_other_ours_writes_nothing_of_what_is_the_others(
    foreign: tuple[Platform, dict[str, Any]],
) -> None:
    """While the other's scheduler is away nobody touches what waits for it, and ours goes on."""
    platform, _ = foreign

    def scale(count: int) -> None:
        platform.kubectl(
            "-n", THEIRS, "scale", f"deployment/{FOREIGN}-scheduler", f"--replicas={count}"
        )
        pods = ("-n", THEIRS, "get", "pods", "-l", "app=volcano-scheduler", "-o", "name")
        wait_for(
            lambda: len(platform.kubectl(*pods).output.split()) == count,
            f"{count} pods of the other's scheduler are there",
        )

    scale(0)
    try:
        already = len(state_of_theirs(platform))
        lonely = pod("lonely", {"cpu": "10m"}, schedulerName="volcano")
        create(platform, gang("waits", "volcano", {"cpu": "10m"}), lonely)
        wait_for(
            lambda: len(state_of_theirs(platform)) == already + 2,
            "those who wait have their PodGroups",
        )
        before = state_of_theirs(platform)
        create(platform, pod("later", SLICE))  # it takes a session of ours, at the least
        runs(platform, "later", 1)
        after = state_of_theirs(platform)
        assert {name: after.get(name) for name in before} == before
    finally:
        scale(1)
    runs(platform, "waits", 2)


def test_uninstall_removes_ours_alone(foreign: tuple[Platform, dict[str, Any]]) -> None:
    platform, _ = foreign
    before = theirs(platform)  # scaling is a new generation
    refused = platform.playbook("uninstall", check=False)
    assert refused.rc != 0
    assert f"rest on scheduler {OURS}" in refused.output or "hold slices" in refused.output
    platform.kubectl("delete", "namespace", PODS, f"--timeout={PATIENCE_S}s")
    platform.playbook("uninstall")
    assert theirs(platform) == before
    left = platform.kubectl("get", CLUSTER_WIDE, "-o", "name").output.split()
    assert [name for name in left if OURS in name] == []
    create_after = pod("after", {"cpu": "10m"}, schedulerName="volcano")
    platform.kubectl("create", "namespace", PODS)
    account = ("-n", PODS, "get", "serviceaccount", "default")
    wait_for(lambda: platform.kubectl(*account, check=False).rc == 0, "a service account is there")
    create(platform, create_after)
    wait_for(lambda: bound_by(platform, "after") == {"volcano"}, "the other schedules on")
