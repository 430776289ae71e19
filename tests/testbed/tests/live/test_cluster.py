# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed's Kubernetes, running: pods across nodes, reboots, damage mended, strangers refused.

Needs root and whatever ``python -m testbed`` installs. The first run on a machine builds host
images and Kubernetes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from testbed import cluster, down, machine, up
from testbed.cluster import pki
from testbed.cluster.config import kubeconfig
from testbed.cluster.layout import plan
from testbed.cluster.orders import admin
from testbed.errors import TestbedError
from testbed.hosts import Host, Testbed
from testbed.recipes import hosts as images
from testbed.recipes import kubernetes, pause
from testbed.topology import read_topology
from xpubuild import oci
from xpubuild.cache import Cache

TOPOLOGY = Path(__file__).parents[2] / "topologies/cluster.yaml"
# Two runs of this suite on one machine must not take each other's hosts away.
NAME = f"cluster-{os.getpid()}"
SHELL = "testbed.invalid/shell:v1"
WORKERS = ("n1", "n2")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="hosts are privileged containers: root")


def quiet(_: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def cache() -> Cache:
    """The user's cache, with everything a cluster needs in it, so that times below are honest."""
    machine.prepare()
    cache = Cache()
    kubernetes.build(cache)
    pause.build(cache)
    for system in ("debian12", "ubuntu2404"):
        images.build(cache, system)
    return cache


@pytest.fixture(scope="module")
def testbed(cache: Cache) -> Iterator[Testbed]:
    """A testbed with its cluster."""
    try:
        made = up.hosts_up(read_topology(TOPOLOGY), NAME, None, cache, quiet)
        cluster.up(made, cache, quiet)
        yield made
    finally:
        down.remove(NAME)


def kubectl(testbed: Testbed, *argv: str, input: str | None = None, check: bool = True) -> str:
    """kubectl on the machine, with the kubeconfig that users get."""
    program = kubernetes.build(Cache()) / "kubectl"
    done = subprocess.run(
        [str(program), f"--kubeconfig={testbed.state_dir / 'kubeconfig'}", *argv],
        input=input,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout + ("" if check else done.stderr)


def shell_pod(node: str) -> dict[str, Any]:
    """A pod with the node's own Debian or Ubuntu userland, which saves a 300 MB image."""
    container = {
        "name": "shell",
        "image": SHELL,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", 'echo "up on $NODE"; exec python3 -m http.server 8080'],
        "env": [{"name": "NODE", "value": node}],
        "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
    }
    spec = {
        "nodeName": node,
        # As a StatefulSet names its pods.
        "hostname": f"shell-{node}",
        "subdomain": "shells",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "usr", "hostPath": {"path": "/usr"}}],
    }
    metadata = {"name": f"shell-{node}", "labels": {"app": "shell"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def pods(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A ready pod on each worker, and a service over them: ``{pod: address}``."""
    archive = tmp_path_factory.mktemp("image") / "shell.tar"
    root: dict[str, oci.Source] = {"/usr": oci.Directory(), "/tmp": oci.Directory(0o1777)}
    root |= {f"/{name}": oci.Link(f"usr/{name}") for name in ("bin", "lib", "lib64", "sbin")}
    oci.write_archive(archive, SHELL, [root], oci.Config())
    for node in WORKERS:
        host = testbed.host(node)
        host.put("/var/lib/testbed/shell.tar", archive)
        host.exec(["ctr", "-n", "k8s.io", "images", "import", "/var/lib/testbed/shell.tar"])
        kubectl(testbed, "apply", "-f", "-", input=json.dumps(shell_pod(node)))
    ports = [{"port": 80, "targetPort": 8080}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shell"},
        "spec": {"selector": {"app": "shell"}, "ports": ports},
    }
    headless = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shells"},
        "spec": {"clusterIP": "None", "selector": {"app": "shell"}},
    }
    for thing in (service, headless):
        kubectl(testbed, "apply", "-f", "-", input=json.dumps(thing))
    return wait_for_pods(testbed)


def fresh(pod: dict[str, Any], host: Host) -> bool:
    """Ready, with a container started since *host* booted: before that the API tells the past."""
    conditions = {entry["type"]: entry["status"] for entry in pod["status"].get("conditions", [])}
    states = [entry["state"] for entry in pod["status"].get("containerStatuses", [])]
    started = [state["running"]["startedAt"] for state in states if "running" in state]
    booted = host.exec(["stat", "--format=%Y", "/run/flexai-testbed/boot_id"]).stdout
    since = datetime.fromtimestamp(int(booted), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return conditions.get("Ready") == "True" and bool(started) and min(started) >= since


def wait_for_pods(testbed: Testbed) -> dict[str, str]:
    """Wait until the shell pods run; their addresses, which a reboot changes."""
    deadline = time.monotonic() + 90
    while True:
        items = json.loads(kubectl(testbed, "get", "pods", "-o", "json"))["items"]
        late = [
            item["metadata"]["name"]
            for item in items
            if not fresh(item, testbed.host(item["spec"]["nodeName"]))
        ]
        if not late and len(items) == len(WORKERS):
            return {item["metadata"]["name"]: item["status"]["podIP"] for item in items}
        assert time.monotonic() < deadline, kubectl(testbed, "describe", "pods", *late)
        time.sleep(0.5)


def fetch(testbed: Testbed, pod: str, address: str) -> str:
    """What *pod* gets from ``http://address/etc/hostname``."""
    program = f"import urllib.request as u; print(u.urlopen('http://{address}/etc/hostname', timeout=5).read().decode())"  # noqa: E501
    return kubectl(testbed, "exec", pod, "--", "python3", "-c", program).strip()


def start_times(testbed: Testbed) -> dict[str, str]:
    """When each unit the cluster lives on was started, on every node."""
    names = ["containerd", "kubelet", "kube-proxy", "kube-apiserver", "etcd"]
    argv = ["systemctl", "show", "--property=Id,InactiveExitTimestampMonotonic", *names]
    return {node.name: testbed.host(node.name).exec(argv).stdout for node in plan(testbed).nodes}


def test_status_names_every_node_with_its_versions(testbed: Testbed) -> None:
    document = cluster.status(testbed)
    assert document["api"] == "ready"
    found = {
        node["name"]: (node["ready"], node["kubelet"], node["runtime"].rpartition(".")[0])
        for node in document["nodes"]
    }
    assert found == {
        "cp1": (True, f"v{kubernetes.VERSION}", "containerd://1.6"),
        "n1": (True, f"v{kubernetes.VERSION}", "containerd://1.6"),
        "n2": (True, f"v{kubernetes.VERSION}", "containerd://1.7"),
    }


def test_kubelet_offers_its_sockets_to_device_plugins(testbed: Testbed) -> None:
    for node in WORKERS:
        for path in ("device-plugins", "pod-resources"):
            testbed.host(node).exec(["test", "-S", f"/var/lib/kubelet/{path}/kubelet.sock"])


def test_exec_and_logs(testbed: Testbed, pods: dict[str, str]) -> None:
    assert kubectl(testbed, "logs", "shell-n1").splitlines()[0] == "up on n1"
    release = kubectl(testbed, "exec", "shell-n2", "--", "cat", "/usr/lib/os-release")
    assert "Ubuntu 24.04" in release


def test_pods_reach_each_other_and_the_service_from_every_node(
    testbed: Testbed, pods: dict[str, str]
) -> None:
    service = kubectl(testbed, "get", "service", "shell", "-o", "jsonpath={.spec.clusterIP}")
    for source in pods:
        for target, address in pods.items():
            assert fetch(testbed, source, f"{address}:8080") == target
        assert fetch(testbed, source, service) in pods


def resolve(testbed: Testbed, pod: str, name: str) -> str:
    """The address that *pod* is told for *name*, or the error."""
    program = f"import socket; print(socket.gethostbyname({name!r}))"
    said = kubectl(testbed, "exec", pod, "--", "python3", "-c", program, check=False)
    return said.partition("command terminated")[0].strip().splitlines()[-1]


def test_names_of_the_cluster_resolve_from_every_node(
    testbed: Testbed, pods: dict[str, str]
) -> None:
    service = kubectl(testbed, "get", "service", "shell", "-o", "jsonpath={.spec.clusterIP}")
    for source in pods:
        wanted = {"shell": service, "shell.default.svc": service}
        wanted |= {f"{pod}.shells.default.svc": address for pod, address in pods.items()}
        deadline = time.monotonic() + 90
        # The server hears of a new Service no earlier than everybody else.
        while (found := {name: resolve(testbed, source, name) for name in wanted}) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        # An answer, and not the silence of a server that nobody reaches.
        assert "Name or service not known" in resolve(testbed, source, "example.org")


def test_a_pod_keeps_its_address_across_nodes(testbed: Testbed, pods: dict[str, str]) -> None:
    fetch(testbed, "shell-n1", f"{pods['shell-n2']}:8080")
    assert pods["shell-n1"] in kubectl(testbed, "logs", "shell-n2", "--tail=3")


def test_second_up_changes_and_restarts_nothing(testbed: Testbed, cache: Cache) -> None:
    before = start_times(testbed)
    told: list[str] = []
    cluster.up(testbed, cache, told.append)
    assert [line for line in told if "changes" in line] == []
    assert start_times(testbed) == before


def test_damage_is_mended_and_an_administrators_edit_stands(testbed: Testbed, cache: Cache) -> None:
    host = testbed.host("n1")
    edited = host.get("/etc/containerd/config.toml") + b"# edited by the site\n"
    host.put("/etc/containerd/config.toml", edited)
    host.exec(["rm", "/etc/kubernetes/kubelet.yaml"])
    host.exec(["systemctl", "disable", "--now", "kubelet.service"])
    cluster.up(testbed, cache, quiet)
    assert host.exec(["systemctl", "is-enabled", "kubelet.service"]).stdout == "enabled\n"
    assert host.get("/etc/containerd/config.toml") == edited


def test_a_stranger_is_refused(testbed: Testbed, tmp_path: Path) -> None:
    """A certificate of another authority, which a client could only make itself."""
    stranger = pki.make_authority(f"{NAME} testbed", datetime.now(UTC))
    pair = pki.issue(stranger, admin(), datetime.now(UTC))
    authority = (testbed.state_dir / "pki/ca.crt").read_bytes()
    path = tmp_path / "kubeconfig"
    path.write_text(kubeconfig(plan(testbed), "stranger", authority, pair))
    answer = kubectl(testbed, f"--kubeconfig={path}", "get", "nodes", check=False)
    assert "Unauthorized" in answer or "must be logged in" in answer


def reboot(testbed: Testbed, host: Host) -> None:
    before, after = up.reboot(host)
    assert before != after
    cluster.wait_ready(testbed, quiet)


@pytest.mark.parametrize("name", ["n2", "cp1"])
def test_the_cluster_comes_back_from_a_reboot_by_itself(
    testbed: Testbed, pods: dict[str, str], name: str
) -> None:
    reboot(testbed, testbed.host(name))
    again = wait_for_pods(testbed)
    assert fetch(testbed, "shell-n1", f"{again['shell-n2']}:8080") == "shell-n2"
    assert fetch(testbed, "shell-n2", f"{again['shell-n1']}:8080") == "shell-n1"


def test_a_dead_kubelet_is_told_by_name(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    host = testbed.host("n1")
    host.exec(["systemctl", "stop", "kubelet.service"])
    try:
        kubectl(testbed, "delete", "node", "n1")
        monkeypatch.setattr(cluster, "READY_SECONDS", 1)
        with pytest.raises(TestbedError, match="n1: not registered"):
            cluster.wait_ready(testbed, quiet)
    finally:
        host.exec(["systemctl", "start", "kubelet.service"])
        monkeypatch.undo()
        cluster.wait_ready(testbed, quiet)


def test_status_of_a_stopped_api_server_says_so(testbed: Testbed) -> None:
    host = testbed.host("cp1")
    host.exec(["systemctl", "stop", "kube-apiserver.service"])
    try:
        assert "Connection refused" in cluster.status(testbed)["api"]
    finally:
        host.exec(["systemctl", "start", "--no-block", "kube-apiserver.service"])
        cluster.wait_ready(testbed, quiet)
