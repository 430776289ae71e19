# SPDX-License-Identifier: GPL-3.0-or-later
"""What a topology becomes as a cluster: layout, files, units, and when nodes count as ready."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed import plan as hosts_plan
from testbed.cluster import config, layout, orders, state, units
from testbed.cluster.pki import Store
from testbed.errors import TestbedError
from testbed.hosts import Testbed
from testbed.topology import parse_topology

BINARIES = "/var/lib/testbed/kubernetes-0123"
PAUSE = orders.Image("testbed.invalid/pause:v1", "sha256:00", "/var/lib/p.tar")
DNS = orders.Image("testbed.invalid/coredns:v1", "sha256:01", "/var/lib/d.tar")
DELIVERED = orders.Delivered(BINARIES, PAUSE, DNS)


def make(tmp_path: Path, pod_cidr: str = "10.244.0.0/16", master_os: str = "debian12") -> Testbed:
    document = {
        "name": "unit",
        "kubernetes": {"pod_cidr": pod_cidr, "service_cidr": "10.96.0.0/16"},
        "hosts": [
            {"name": "cp1", "os": master_os, "roles": ["control-plane"]},
            {"name": "n1", "os": "debian12", "roles": ["worker"]},
            {"name": "dock1", "os": "debian12", "roles": ["docker"]},
            {"name": "n2", "os": "ubuntu2404", "roles": ["worker"]},
        ],
    }
    return hosts_plan.make_testbed(parse_topology(document), "unit", "10.89.99.0/24", tmp_path)


@pytest.fixture
def cluster(tmp_path: Path) -> layout.Layout:
    return layout.plan(make(tmp_path))


def test_nodes_are_the_hosts_with_a_node_role(cluster: layout.Layout) -> None:
    assert [(node.name, node.control_plane) for node in cluster.nodes] == [
        ("cp1", True),
        ("n1", False),
        ("n2", False),
    ]


def test_every_node_has_a_pod_subnet_of_its_own(cluster: layout.Layout) -> None:
    assert [node.pod_subnet for node in cluster.nodes] == [
        "10.244.0.0/24",
        "10.244.1.0/24",
        "10.244.2.0/24",
    ]


def test_well_known_service_addresses(cluster: layout.Layout) -> None:
    assert (cluster.api_service_ip, cluster.dns_service_ip) == ("10.96.0.1", "10.96.0.10")
    assert cluster.endpoint == "https://10.89.99.10:6443"


def test_a_pod_range_too_small_for_the_nodes_is_refused() -> None:
    with pytest.raises(TestbedError, match=r"10\.0\.0\.0/24 has no /24 for each of 2 nodes"):
        layout._pod_subnets("10.0.0.0/24", 2)
    assert layout._pod_subnets("10.0.0.0/23", 2) == ["10.0.0.0/24", "10.0.1.0/24"]


def test_a_control_plane_without_etcd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match="cp1 runs ubuntu2404, which has no etcd"):
        layout.plan(make(tmp_path, master_os="ubuntu2404"))


@pytest.mark.parametrize(("system", "cdi"), [("debian12", False), ("ubuntu2404", True)])
def test_containerd_speaks_cdi_where_its_version_can(system: str, cdi: bool) -> None:
    document = tomllib.loads(config.containerd(system, "testbed.invalid/pause:v1"))
    plugin = document["plugins"]["io.containerd.grpc.v1.cri"]
    assert plugin.get("enable_cdi", False) is cdi
    assert document["imports"] == ["/etc/containerd/conf.d/*.toml"]
    assert plugin["sandbox_image"] == "testbed.invalid/pause:v1"


def test_only_the_control_plane_is_tainted(cluster: layout.Layout) -> None:
    taints = {
        node.name: yaml.safe_load(config.kubelet(cluster, node))["registerWithTaints"]
        for node in cluster.nodes
    }
    assert taints["cp1"] == [{"key": config.CONTROL_PLANE_ROLE, "effect": "NoSchedule"}]
    assert taints["n1"] == taints["n2"] == []


def test_each_node_routes_to_its_peers_and_not_to_itself(cluster: layout.Layout) -> None:
    script = config.network_script(cluster, cluster.nodes[1])
    routes = [line for line in script.splitlines() if line.startswith("ip route")]
    assert routes == [
        "ip route replace 10.244.0.0/24 via 10.89.99.10",
        "ip route replace 10.244.2.0/24 via 10.89.99.13",
    ]


def order_of(cluster: layout.Layout, name: str, tmp_path: Path) -> dict[str, Any]:
    node = next(node for node in cluster.nodes if node.name == name)
    return orders.make_order(cluster, node, Store(tmp_path / "pki", "unit"), DELIVERED)


def test_a_unit_restarts_for_every_file_it_names(cluster: layout.Layout, tmp_path: Path) -> None:
    """A flag that points to a file of the order must be among what the unit restarts for."""
    for name in ("cp1", "n1"):
        document = order_of(cluster, name, tmp_path)
        for unit in [*document["first_units"], *document["units"]]:
            path = f"{units.UNIT_DIRECTORY}/{unit['name']}"
            if path not in document["files"]:
                continue
            text = base64.b64decode(document["files"][path]["data"]).decode()
            named = {file for file in document["files"] if file in text and "ca.key" not in file}
            assert named - set(unit["files"]) <= {f"{config.PKI}/ca.crt"}


def test_every_file_a_unit_reads_is_delivered(cluster: layout.Layout, tmp_path: Path) -> None:
    for name in ("cp1", "n1", "n2"):
        document = order_of(cluster, name, tmp_path)
        for unit in [*document["first_units"], *document["units"]]:
            there = set(document["files"]) | set(document["links"])
            assert set(unit["files"]) <= there, unit["name"]


def test_a_worker_gets_no_key_of_the_control_plane(cluster: layout.Layout, tmp_path: Path) -> None:
    keys = {path for path in order_of(cluster, "n1", tmp_path)["files"] if path.endswith(".key")}
    assert keys == {f"{config.PKI}/kubelet-server.key"}
    assert "/etc/kubernetes/admin.conf" not in order_of(cluster, "n1", tmp_path)["files"]


def test_secrets_are_for_root_alone(cluster: layout.Layout, tmp_path: Path) -> None:
    files = order_of(cluster, "cp1", tmp_path)["files"]
    open_secrets = [
        path
        for path, file in files.items()
        if path.endswith((".key", ".conf")) and file["mode"] != 0o600
    ]
    assert open_secrets == []


def test_the_same_order_comes_out_twice(cluster: layout.Layout, tmp_path: Path) -> None:
    first = json.dumps(order_of(cluster, "cp1", tmp_path), sort_keys=True)
    assert json.dumps(order_of(cluster, "cp1", tmp_path), sort_keys=True) == first


def node_object(name: str, status: str, boot_id: str) -> dict[str, Any]:
    condition = {"type": "Ready", "status": status, "message": "cni is not ready"}
    info = {
        "bootID": boot_id,
        "kubeletVersion": "v1",
        "containerRuntimeVersion": "containerd://1",
    }
    return {
        "metadata": {"name": name},
        "status": {"conditions": [condition], "nodeInfo": info},
    }


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [
        ([], "not registered"),
        ([node_object("n1", "True", "old")], "has not reported since its host booted"),
        ([node_object("n1", "False", "now")], "cni is not ready"),
        ([node_object("n1", "Unknown", "now")], "cni is not ready"),
        ([{"metadata": {"name": "n1"}}], "has not reported since its host booted"),
    ],
)
def test_why_a_node_is_waited_for(nodes: list[dict[str, Any]], missing: str) -> None:
    states = [state.read_node(node) for node in nodes]
    assert state.waiting_for({"n1": "now"}, states) == {"n1": missing}


def test_ready_in_the_present_boot_is_ready() -> None:
    states = [state.read_node(node_object("n1", "True", "now"))]
    assert state.waiting_for({"n1": "now"}, states) == {}


# -- other engines than the system's own containerd ------------------------------------------

ENGINES = {"cri-dockerd": "/var/lib/testbed/cri", "containerd-2": "/var/lib/testbed/c2"}


@pytest.fixture
def mixed(tmp_path: Path) -> layout.Layout:
    document = {
        "name": "unit",
        "hosts": [
            {"name": "cp1", "os": "debian12", "roles": ["control-plane"]},
            {"name": "d1", "os": "debian12", "roles": ["worker", "cri-dockerd"]},
            {"name": "c2", "os": "ubuntu2404", "roles": ["worker", "containerd-2"]},
        ],
    }
    topology = parse_topology(document)
    return layout.plan(hosts_plan.make_testbed(topology, "unit", "10.89.99.0/24", tmp_path))


def mixed_order(cluster: layout.Layout, name: str, tmp_path: Path) -> dict[str, Any]:
    node = next(node for node in cluster.nodes if node.name == name)
    delivered = dataclasses.replace(DELIVERED, engines=ENGINES)
    return orders.make_order(cluster, node, Store(tmp_path / "pki", "unit"), delivered)


def text_of(order: dict[str, Any], path: str) -> str:
    return base64.b64decode(order["files"][path]["data"]).decode()


def test_a_kubelet_of_docker_speaks_to_cri_dockerd(mixed: layout.Layout, tmp_path: Path) -> None:
    order = mixed_order(mixed, "d1", tmp_path)
    kubelet = yaml.safe_load(text_of(order, "/etc/kubernetes/kubelet.yaml"))
    unit = text_of(order, "/etc/systemd/system/cri-docker.service")
    assert kubelet["containerRuntimeEndpoint"] == "unix:///run/cri-dockerd.sock"
    assert f"--container-runtime-endpoint={kubelet['containerRuntimeEndpoint']}" in unit
    assert order["links"]["/usr/bin/cri-dockerd"] == "/var/lib/testbed/cri/cri-dockerd"
    assert [image["engine"] for image in order["images"]] == ["docker"]


def test_dockers_node_forwards_pods_and_containerds_does_not_ask(mixed: layout.Layout) -> None:
    scripts = {node.name: config.network_script(mixed, node) for node in mixed.nodes}
    assert "iptables -w -P FORWARD ACCEPT" in scripts["d1"]
    assert all("FORWARD" not in scripts[name] for name in ("cp1", "c2"))


def test_containerd_2_takes_the_packages_place_with_its_own_format(
    mixed: layout.Layout, tmp_path: Path
) -> None:
    order = mixed_order(mixed, "c2", tmp_path)
    document = tomllib.loads(text_of(order, "/etc/containerd/config.toml"))
    assert document["version"] == 3
    assert document["imports"] == ["/etc/containerd/conf.d/*.toml"]
    runtime = document["plugins"]["io.containerd.cri.v1.runtime"]
    assert runtime["enable_cdi"] is runtime["restrict_oom_score_adj"] is True
    assert order["links"]["/usr/bin/containerd"] == "/var/lib/testbed/c2/containerd"
    containerd = next(u for u in order["first_units"] if u["name"] == "containerd.service")
    assert "/usr/bin/containerd" in containerd["files"]  # restarted with the other program


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ('{"process":{"oomScoreAdj":-998}}', '{"process":{"oomScoreAdj":0}}'),
        ('{"process":{"oomScoreAdj":1000}}', '{"process":{"oomScoreAdj":1000}}'),
        ('{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"]}', '{"bounding":["CAP_CHOWN"]}'),
    ],
)
def test_dockers_runc_asks_for_nothing_that_a_host_can_t_give(
    tmp_path: Path, given: str, wanted: str
) -> None:
    program = tmp_path / "runc"
    program.write_text(config.runc_wrapper().replace("/usr/sbin/runc", "echo"))
    for asked in (["create", "--bundle", str(tmp_path)], ["exec", "--process", f"{tmp_path}/p"]):
        file = tmp_path / ("p" if "exec" in asked else "config.json")
        file.write_text(given)
        argv = ["sh", str(program), "--root", "/r", *asked, "id"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert file.read_text() == wanted
        assert done.stdout.split() == argv[2:]
