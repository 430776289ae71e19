# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster DNS's objects: where kubelets send pods to, who has the image, when it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed import plan as hosts_plan
from testbed.cluster import config, dns, layout
from testbed.topology import parse_topology


@pytest.fixture
def cluster(tmp_path: Path) -> layout.Layout:
    document = {
        "name": "unit",
        "kubernetes": {"service_cidr": "10.99.0.0/16"},
        "hosts": [
            {"name": "cp1", "os": "debian12", "roles": ["control-plane"]},
            {"name": "n1", "os": "debian12", "roles": ["worker"]},
        ],
    }
    topology = parse_topology(document)
    return layout.plan(hosts_plan.make_testbed(topology, "unit", "10.89.99.0/24", tmp_path))


def of_kind(cluster: layout.Layout, kind: str) -> dict[str, Any]:
    (found,) = [one for one in dns.objects(cluster, "i:v1") if one["kind"] == kind]
    return found


def test_it_listens_where_every_kubelet_sends_its_pods(cluster: layout.Layout) -> None:
    service = of_kind(cluster, "Service")
    for node in cluster.nodes:
        told = yaml.safe_load(config.kubelet(cluster, node))
        assert told["clusterDNS"] == [service["spec"]["clusterIP"]] == ["10.99.0.10"]
        assert told["clusterDomain"] in of_kind(cluster, "ConfigMap")["data"]["Corefile"]


def test_it_runs_where_its_image_is(cluster: layout.Layout) -> None:
    pod = of_kind(cluster, "Deployment")["spec"]["template"]
    tainted = yaml.safe_load(config.kubelet(cluster, cluster.control_plane))["registerWithTaints"]
    assert pod["spec"]["nodeSelector"] == {config.CONTROL_PLANE_ROLE: ""}
    assert pod["spec"]["tolerations"] == tainted
    assert pod["metadata"]["labels"] == of_kind(cluster, "Service")["spec"]["selector"]


def test_where_the_api_server_has_each_object(cluster: layout.Layout) -> None:
    room = "/api/v1/namespaces/kube-system"
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    assert [dns.path(one) for one in dns.objects(cluster, "i:v1")] == [
        f"{room}/serviceaccounts/coredns",
        f"{rbac}/clusterroles/system:coredns",
        f"{rbac}/clusterrolebindings/system:coredns",
        f"{room}/configmaps/coredns",
        dns.DEPLOYMENT,
        f"{room}/services/kube-dns",
    ]


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        (1, {}, "its controller has not seen it yet"),
        (2, {"readyReplicas": 1, "observedGeneration": 1}, "its controller has not seen it yet"),
        (2, {"readyReplicas": 1, "observedGeneration": 2}, "its pod is not ready"),
        (1, {"updatedReplicas": 1, "observedGeneration": 1}, "its pod is not ready"),
        (1, {"updatedReplicas": 1, "readyReplicas": 1, "observedGeneration": 1}, ""),
    ],
)
def test_when_it_is_there(seen: int, status: dict[str, int], reason: str) -> None:
    assert dns.waiting_for({"metadata": {"generation": seen}, "status": status}) == reason


def test_a_deployment_that_is_not_there_is_waited_for() -> None:
    assert dns.waiting_for({}) == "its controller has not seen it yet"
