# SPDX-License-Identifier: GPL-3.0-or-later
"""The device plugin on a real kubelet: shapes, classes, node annotations, evictions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.conftest import Demo
from e2e.platform import Platform

NAMESPACE = "device-plugin"
HOST = "gpu1"  # two cards of 40 GiB
NUMBER, CORES, MEMORY = (f"huawei.com/vgpu-{part}" for part in ("number", "cores", "memory-1Gi"))
PATIENCE_S = 300
POLL_S = 1.0


def manifest(name: str, limits: dict[str, int], pod_class: str = "") -> dict[str, Any]:
    """A pod on ``HOST`` that idles on what it is given."""
    container = {
        "name": "app",
        "image": "docker.io/library/xpu-workload:v1.0",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": {"limits": limits},
    }
    notes = {"flexai.io/class": pod_class} if pod_class else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": notes},
        "spec": {
            "containers": [container],
            "nodeName": HOST,
            "terminationGracePeriodSeconds": 0,
        },
    }


PODS = (
    # The node's sums have room for it, no card has.
    manifest("starving", {NUMBER: 1, CORES: 5, MEMORY: 45}),
    manifest("pair", {NUMBER: 2, CORES: 7, MEMORY: 2}, "elastic"),
    manifest("idle", {NUMBER: 1, MEMORY: 1}, "best-effort"),
)


@pytest.fixture(scope="module")
def platform(demo: Demo) -> Iterator[Platform]:
    on = demo.platform
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    on.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
    account = ("-n", NAMESPACE, "get", "serviceaccount", "default")
    wait_for("a service account", lambda: on.kubectl(*account, check=False).rc == 0)
    listed = {"apiVersion": "v1", "kind": "List", "items": PODS}
    on.kubectl("create", "-f", "-", stdin=json.dumps(listed))
    yield on
    on.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def wait_for(what: str, holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        time.sleep(POLL_S)
    return found


def running(platform: Platform, name: str) -> str:
    """The UID of a pod, once it runs."""
    platform.kubectl(
        "-n", NAMESPACE, "wait", "--for=condition=Ready", f"--timeout={PATIENCE_S}s", f"pod/{name}"
    )
    path = "jsonpath={.metadata.uid}"
    return platform.kubectl("-n", NAMESPACE, "get", "pod", name, "-o", path).output


def shares(platform: Platform, uid: str) -> list[dict[str, Any]]:
    """What the node ledger says a pod holds."""
    text = platform.on_host(HOST, "cat", "/var/lib/xpu/ledger.json").output
    return [
        share
        for held in json.loads(text)["slices"]
        if held["owner"]["pod_uid"] == uid
        for share in held["shares"]
    ]


def notes_of(platform: Platform, node: str) -> dict[str, str]:
    document = json.loads(platform.kubectl("get", "node", node, "-o", "json").output)
    return dict(document["metadata"]["annotations"])


def test_several_slices_of_a_container_lie_on_different_cards_each_with_its_quota(
    platform: Platform,
) -> None:
    held = shares(platform, running(platform, "pair"))
    assert len({share["uuid"] for share in held}) == 2
    assert {(share["cores_percent"], share["memory_mib"]) for share in held} == {(7, 2048)}
    assert {(share["mode"], share["weight"]) for share in held} == {("elastic", 7)}
    seen = platform.kubectl(
        "-n", NAMESPACE, "exec", "pair", "--", "/opt/xpu/bin/gpu-monitor", "-o", "json", "-p", "1"
    ).output
    quotas = {(one["core_quota"], one["memory_quota"]) for one in json.loads(seen)["vxpus"]}
    assert quotas == {(7, 2048 << 20)}


def test_best_effort_reserves_no_cores(platform: Platform) -> None:
    (share,) = shares(platform, running(platform, "idle"))
    assert (share["cores_percent"], share["memory_mib"]) == (0, 1024)
    assert share["mode"] == "priority"
    assert "weight" not in share


def test_the_node_says_what_it_has_and_what_is_bound(platform: Platform) -> None:
    uid = running(platform, "pair")
    held = {share["uuid"]: share for share in shares(platform, uid)}

    def bound() -> bool:
        said = notes_of(platform, HOST)["flexai.io/node-vgpu-slices"]
        return all(
            f"{uid},app,{card},{share['vid']},7,2048:" in said for card, share in held.items()
        )

    wait_for("the slices in the annotation", bound)
    said = notes_of(platform, HOST)
    cards = said["huawei.com/node-vgpu-register"].removesuffix(":").split(":")
    assert len(cards) == 2
    assert all(card.split(",")[5] == "true" for card in cards)
    rows = [row.split(",") for row in said["huawei.com/node-gpu-topology"].split(";")]
    assert [rows[0][0], rows[1][1]] == ["0", "0"]
    assert rows[0][1] == rows[1][0]
    assert int(rows[0][1]) > 0
    used = said["huawei.com/node-vgpu-used"].removesuffix(":").split(":")
    assert {card.split(",")[1] for card in used} >= set(held)


def test_a_pod_that_finds_no_room_is_evicted_and_told_what_was_free(platform: Platform) -> None:
    def gone() -> bool:
        return platform.kubectl("-n", NAMESPACE, "get", "pod", "starving", check=False).rc != 0

    wait_for("the eviction", gone)
    events = json.loads(
        platform.kubectl("-n", NAMESPACE, "get", "events", "-o", "json").output,
    )["items"]
    said = [event for event in events if event["reason"] == "NoRoomForSlice"]
    assert [event["involvedObject"]["name"] for event in said] == ["starving"]
    assert "container app found no room for" in said[0]["message"]
    assert "MiB free (too little memory)" in said[0]["message"]
