# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: bare hosts become sliced GPUs, a pod gets its 20 %, and a second run is silent."""

from __future__ import annotations

import json
import time
from typing import Any

from e2e import snapshot
from e2e.conftest import Demo
from e2e.platform import Platform, recap

GIB = 1 << 30
SHARE_PERCENT = 20
TOLERANCE_PERCENT = 2
MONITOR = "/opt/xpu/bin/gpu-monitor"
ASK = ("python3", "/workload/gpu_load.py", "ask")


def hosts(platform: Platform) -> list[dict[str, Any]]:
    state = json.loads(platform.state_file.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = state["hosts"]
    return found


def test_every_host_and_the_cluster_are_ready(demo: Demo) -> None:
    verdict: Any = demo.platform.verdict()
    with_cards = {host["name"] for host in hosts(demo.platform) if host["cards"]}
    assert {node["name"] for node in verdict["nodes"]} == with_cards | {"cluster"}
    states = {
        f"{node['name']} {part['name']}": part["state"]
        for node in verdict["nodes"]
        for part in node["components"]
    }
    assert set(states.values()) <= {"ok", "changed"}, states
    assert verdict["ready"]


def test_the_pod_gets_its_share_and_no_more(demo: Demo, workload: str) -> None:
    report = json.loads(demo.platform.in_pod(workload, MONITOR, "-p", "10", "-o", "json").output)
    (device,) = report["vxpus"]
    assert device["core_quota"] == SHARE_PERCENT
    assert device["memory_quota"] == 3 * GIB
    assert abs(device["core_exact"] - SHARE_PERCENT) <= TOLERANCE_PERCENT


def test_the_cards_own_books_agree(demo: Demo, workload: str) -> None:
    """The simulator counts busy time by itself; the library under test has no part in it."""
    namespace, _, name = workload.partition("/")
    node = demo.platform.kubectl(
        "-n", namespace, "get", "pod", name, "-o", "jsonpath={.spec.nodeName}"
    ).output.strip()

    def look() -> tuple[int, int]:
        ledger = json.loads(demo.platform.on_host(node, "simgpu", "ledger", "--json").output)
        busy = sum(process["busy_ns"] for process in ledger["processes"])
        return busy, ledger["monotonic_ns"]

    busy, began = look()
    time.sleep(10)
    busy_after, ended = look()
    share = 100 * (busy_after - busy) / (ended - began)
    assert abs(share - SHARE_PERCENT) <= TOLERANCE_PERCENT


def test_memory_over_the_quota_is_refused_and_the_pod_keeps_running(
    demo: Demo, workload: str
) -> None:
    refused = demo.platform.in_pod(workload, *ASK, "allocate", "4GiB", check=False)
    assert refused.rc == 1, refused.output
    assert "CUDA_ERROR_OUT_OF_MEMORY" in refused.output
    granted = demo.platform.in_pod(workload, *ASK, "allocate", "2GiB", check=False)
    assert granted.rc == 0, granted.output
    demo.platform.in_pod(workload, *ASK, "free")
    namespace, _, name = workload.partition("/")
    pod = json.loads(
        demo.platform.kubectl("-n", namespace, "get", "pod", name, "-o", "json").output
    )
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_the_scheduler_wrote_the_card_with_the_bind(demo: Demo, workload: str) -> None:
    namespace, _, name = workload.partition("/")
    pod = json.loads(
        demo.platform.kubectl("-n", namespace, "get", "pod", name, "-o", "json").output
    )
    grant = pod["metadata"]["annotations"]["huawei.com/vgpu-ids-new"].rstrip(":").split(",")
    assert grant[2:5] == ["GPU", str(3 * 1024), str(SHARE_PERCENT)]


def test_a_second_run_changes_nothing(demo: Demo, workload: str) -> None:
    names = [host["name"] for host in hosts(demo.platform)]

    def on_host(host: str, *command: str) -> str:
        return demo.platform.on_host(host, *command).output

    before = {name: snapshot.take(on_host, name) for name in names}
    second = demo.platform.playbook("site")
    counts = recap(second.output)
    assert counts, second.output
    assert {host: found["changed"] for host, found in counts.items()} == dict.fromkeys(counts, 0)
    for name in names:
        assert snapshot.differences(before[name], snapshot.take(on_host, name)) == []
    verdict: Any = demo.platform.verdict()
    assert {part["state"] for node in verdict["nodes"] for part in node["components"]} == {"ok"}


def test_validate_tries_slices_from_inside(demo: Demo) -> None:
    done = demo.platform.playbook("validate")
    assert "checked from inside pods" in done.output
