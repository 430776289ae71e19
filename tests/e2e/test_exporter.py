# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of slices on a real kubelet: metrics by the exporter, processes by PidsService."""

from __future__ import annotations

import json
import re
import time

from e2e.conftest import Demo
from e2e.platform import Platform

PATIENCE_S = 300.0
TOOL = "/opt/xpu/bin/xpu-client-tool"
LINE = re.compile(r"\d+ {0,10} \d+ {0,10}")


def exporters(platform: Platform) -> dict[str, str]:
    """Node → its exporter's pod."""
    labels = ("-n", "xpu", "get", "pods", "-l", "app.kubernetes.io/name=xpu-exporter", "-o", "json")
    pods = json.loads(platform.kubectl(*labels).output)["items"]
    return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods}


def scrape(platform: Platform, pod: str) -> str:
    path = f"/api/v1/namespaces/xpu/pods/{pod}:8082/proxy/metrics"
    return platform.kubectl("get", "--raw", path).output


def series(text: str, metric: str, **labels: str) -> list[float]:
    """The values of a metric's series that have these labels."""
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(f"{metric}{{") and all(word in line for word in wanted)
    ]


def node_of(platform: Platform, workload: str) -> str:
    namespace, _, name = workload.partition("/")
    where = ("-n", namespace, "get", "pod", name, "-o", "jsonpath={.spec.nodeName}")
    return platform.kubectl(*where).output.strip()


def test_every_node_with_cards_shows_them(demo: Demo) -> None:
    selector = ("get", "nodes", "-l", "gpupool.com/gpu-ready=true", "-o", "json")
    nodes = json.loads(demo.platform.kubectl(*selector).output)["items"]
    found = exporters(demo.platform)
    assert sorted(found) == sorted(node["metadata"]["name"] for node in nodes)
    for node, pod in found.items():
        text = scrape(demo.platform, pod)
        assert "\nxpu_exporter_up 1\n" in text
        healthy = series(text, "xpu_gpu_status", node_name=node)
        assert healthy
        assert set(healthy) == {1.0}
        assert series(text, "xpu_gpu_num", node_name=node) == [len(healthy)]
        assert len(series(text, "xpu_gpu_temperature", node_name=node)) == len(healthy)


def test_a_slice_is_shown_with_what_it_was_given_and_uses(demo: Demo, workload: str) -> None:
    namespace, _, name = workload.partition("/")
    pod = exporters(demo.platform)[node_of(demo.platform, workload)]
    labels = {"namespace": namespace, "pod": name}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = scrape(demo.platform, pod)
        if series(text, "xpu_vgpu_gpu_seconds_total", **labels) > [0.0]:
            break
        assert time.monotonic() < deadline, f"no use of {workload} is shown in\n{text}"
        time.sleep(2)
    assert series(text, "xpu_vgpu_core_limit_percent", **labels) == [20.0]
    assert series(text, "xpu_vgpu_memory_limit_bytes", **labels) == [3 * 1024.0**3]
    (held,) = series(text, "xpu_vgpu_memory_used_bytes", **labels)
    assert 0 < held < 3 * 1024**3
    assert series(text, "xpu_vgpu_processes", **labels) == [1.0]
    assert len(series(text, "xpu_vgpu_util", vgpu_core_limit="20", vgpu_mem_limit="3072")) >= 1


def test_a_container_has_its_processes_registered(demo: Demo, workload: str) -> None:
    told = demo.platform.in_pod(workload, TOOL, "--print").output
    assert told
    assert all(LINE.fullmatch(line) and len(line) == 23 for line in told.rstrip("\n").splitlines())
    assert demo.platform.in_pod(workload, "cat", "/etc/xpu/pids.config").output == told
    own = {line.split()[1] for line in told.splitlines()}
    assert "1" in own  # the container's first process, by its own pid


def test_a_container_learns_nothing_of_others(demo: Demo, workload: str) -> None:
    other = f"/kubepods.slice/cri-containerd-{'0' * 64}.scope"
    refused = demo.platform.in_pod(workload, TOOL, "--cgroup-path", other, check=False)
    assert refused.rc == 1
    assert "is not yours" in refused.output
    refused = demo.platform.in_pod(workload, TOOL, "--all", check=False)
    assert refused.rc == 1
    assert "only root in the host's pid namespace" in refused.output
    assert demo.platform.in_pod(workload, "ls", "/var/lib/xpu").output.split() == ["pids.sock"]


def test_root_of_the_host_sees_all_slices(demo: Demo, workload: str) -> None:
    node = node_of(demo.platform, workload)
    cards = json.loads(demo.platform.on_host(node, TOOL, "--all").output)
    slices = [slice for card in cards.values() for slice in card["VxpuDeviceList"]]
    assert workload in {f"{slice['Namespace']}/{slice['Pod']}" for slice in slices}
    assert {card["NodeName"] for card in cards.values()} == {node}
