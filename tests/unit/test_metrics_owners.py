# SPDX-License-Identifier: GPL-3.0-or-later
"""Who exports metrics already, by pods as the API server gives them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._cluster import Cluster, Object
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import metrics_owners

NODES = ["gpu1", "gpu2"]


def pod(
    name: str,
    *,
    node: str | None = "gpu1",
    image: str = "app",
    host_network: bool = False,
    labels: dict[str, str] | None = None,
    phase: str = "Running",
    **port: int,
) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"image": image, "ports": [port] if port else None}]}
    if node:
        spec["nodeName"] = node
    if host_network:
        spec["hostNetwork"] = True
    meta = {"namespace": "ns", "name": name, "labels": labels}
    return {"metadata": meta, "spec": spec, "status": {"phase": phase}}


def params(**more: Any) -> dict[str, Any]:
    return {"nodes": NODES, "port": 8082, "host_network": False, "kinds": [], **more}


OURS = pod(
    "xpu-exporter-x",
    image="docker.io/library/xpu-exporter:v1.0",
    host_network=True,
    labels=dict(metrics_owners.OURS),
    containerPort=8082,
)
FOREIGN = pod(
    "npu", image="registry/npu-exporter:v6", host_network=True, containerPort=8082, node="gpu2"
)


def test_a_foreign_exporter_is_named_and_stays() -> None:
    found = metrics_owners.judge([OURS, FOREIGN, pod("app")], [], params())
    assert found["changed"] is False
    assert found["exporters"] == ["ns/npu on gpu2"]
    assert found["warnings"] == ["exports metrics of cards too, and stays as it is: ns/npu on gpu2"]


def test_our_own_exporter_is_in_nobodys_way() -> None:
    assert metrics_owners.judge([OURS], [], params(host_network=True))["exporters"] == []


@pytest.mark.parametrize(
    "holder",
    [
        FOREIGN,
        pod("by-host-port", hostPort=8082, containerPort=9100),
        pod("by-network", host_network=True, containerPort=8082),
    ],
)
def test_a_port_of_the_node_that_is_taken_is_refused_by_name(holder: dict[str, Any]) -> None:
    with pytest.raises(XpuError) as refused:
        metrics_owners.judge([OURS, holder], [], params(host_network=True))
    assert holder["metadata"]["name"] in str(refused.value)
    assert "8082" in str(refused.value)
    assert "monitoring_port" in str(refused.value)
    metrics_owners.judge([holder], [], params())  # in a network of its own there is room


@pytest.mark.parametrize(
    "other",
    [
        pod("its-own-network", containerPort=8082),
        pod("another-port", host_network=True, containerPort=8083),
        pod("another-node", host_network=True, containerPort=8082, node="cpu1"),
        pod("unplaced", host_network=True, containerPort=8082, node=None),
        pod("finished", host_network=True, containerPort=8082, phase="Succeeded"),
        pod("portless", host_network=True),
    ],
)
def test_what_takes_no_port_of_our_nodes_is_not_in_the_way(other: dict[str, Any]) -> None:
    assert metrics_owners.judge([other], [], params(host_network=True))["exporters"] == []


def test_objects_that_the_cluster_does_not_know_are_refused_with_the_remedy() -> None:
    definitions = [{"metadata": {"name": "servicemonitors.monitoring.coreos.com"}}]
    wanted = params(kinds=["ServiceMonitor", "PrometheusRule"])
    with pytest.raises(XpuError) as refused:
        metrics_owners.judge([], definitions, wanted)
    assert "no PrometheusRule;" in str(refused.value)
    assert "monitoring_alerts" in str(refused.value)
    definitions.append({"metadata": {"name": "prometheusrules.monitoring.coreos.com"}})
    assert metrics_owners.judge([], definitions, wanted)["exporters"] == []


class FakeCluster(Cluster):
    def __init__(self) -> None:
        self.asked: list[str] = []

    def list(self, path: str, **more: Any) -> list[Object]:
        self.asked.append(path)
        return []


def test_the_cluster_is_asked_for_what_is_needed() -> None:
    for kinds, paths in (([], 1), (["ServiceMonitor"], 2)):
        cluster = FakeCluster()
        if kinds:
            with pytest.raises(XpuError):
                metrics_owners.look(cluster, params(kinds=kinds))
        else:
            metrics_owners.look(cluster, params(kinds=kinds))
        assert len(cluster.asked) == paths
