# SPDX-License-Identifier: GPL-3.0-or-later
"""Document 000's installation and deployment by its own commands, against our chart.

The demo's nodes have driver, toolkit, runtime and images by then, as the document's do before its
chapter "拉起虚拟组件"; the release that role gpupool made is taken away first, and put back last.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed.hosts import Host, load
from xpubuild.cache import Cache
from xpubuild.recipes import charts, helm

from e2e.conftest import Demo
from e2e.platform import WORKLOAD, Platform, recap

# Takes the cluster's part away and back, several minutes of waiting.
pytestmark = pytest.mark.soak

NODE, SYSTEM = "gpu1", "debian"
# Taken from role xpu_runtime for this test.
UNKEPT = "gpu2"
NAMESPACE = "deepseek-test"
# As chapter "打包镜像" names them.
IMAGES = {
    "gpu-device-plugin": "docker.io/library/gpu-device-plugin:v1.0",
    "client-update": "docker.io/library/cuda-client-update:v1.0",
}
LIMIT_S = 180
LIMIT = f"--timeout={LIMIT_S}s"
PATCH = (
    '{"metadata":{"labels":{"app.kubernetes.io/managed-by":"helm"},'
    '"annotations":{"meta.helm.sh/release-name":"gpupool",'
    '"meta.helm.sh/release-namespace":"default"}}}'
)


class Operator:
    """The cluster's administrator, who types at the control-plane host."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.host: Host = load(platform.name).host("cp1")

    def types(self, line: str, check: bool = True) -> str:
        session = f"export KUBECONFIG=/etc/kubernetes/admin.conf; cd /root && {line}"
        done = self.platform.on_host("cp1", "sh", "-c", session, check=check)
        return done.output

    def pods(self, selector: str = "", where: str = "-A") -> list[dict[str, Any]]:
        words = f" --selector={shlex.quote(selector)}" if selector else ""
        items: list[dict[str, Any]] = json.loads(
            self.types(f"kubectl get pod {where}{words} -o json")
        )["items"]
        return items


def owner(platform: Platform, node: str) -> str:
    return platform.on_host(node, "cat", "/opt/xpu/owner", check=False).output.strip()


def copy_chart(host: Host) -> None:
    for path in charts.CHARTS.glob(f"{charts.NAME}/**/*"):
        if path.is_file():
            host.put(f"/root/install/helm/{path.relative_to(charts.CHARTS)}", path)


@pytest.fixture(scope="module")
def operator(demo: Demo) -> Iterator[Operator]:
    """A cluster without gpupool, and the document's files on its control-plane host."""
    somebody = Operator(demo.platform)
    somebody.host.put("/usr/local/bin/helm", helm.build(Cache()) / "helm", 0o755)
    # What ran on a slice would lose its library with the node's /opt/xpu.
    somebody.types(f"kubectl delete namespace slice-demo --ignore-not-found {LIMIT}")
    somebody.types(f"helm uninstall gpupool --wait {LIMIT}")
    somebody.types(f"kubectl delete namespace xpu {LIMIT}")
    somebody.types(f"kubectl label node {NODE} gpupool.com/gpu-ready-")
    copy_chart(somebody.host)
    yield somebody
    somebody.types(f"kubectl delete namespace {NAMESPACE} --ignore-not-found {LIMIT}")
    somebody.types(f"kubectl label node {NODE} node-type-")
    somebody.types(f"helm uninstall gpupool --ignore-not-found --wait {LIMIT}")
    somebody.types("rm -rf /usr/local/bin/helm /root/install /root/*.yaml /root/gpupool-*.tgz")
    demo.platform.playbook("site")
    assert owner(demo.platform, UNKEPT) == "xpu_runtime"


def test_the_chart_is_packed_and_installed_as_the_document_says(operator: Operator) -> None:
    operator.types("cd install/helm && helm package gpupool && mv gpupool-0.1.0.tgz /root")
    operator.types(f"kubectl patch runtimeclass nvidia --type=merge --patch {shlex.quote(PATCH)}")
    operator.types(f"kubectl label node {NODE} gpupool.com/gpu-ready=true")
    operator.types(
        "helm install gpupool gpupool-0.1.0.tgz "
        f'--set runtimeType="containerd" --set osType={SYSTEM}'
    )
    for name in IMAGES:
        operator.types(f"kubectl -n xpu rollout status daemonset/{name} {LIMIT}")
    for name, image in IMAGES.items():
        pods = operator.pods(f"app.kubernetes.io/name={name}")
        assert {(pod["spec"]["nodeName"], pod["status"]["phase"]) for pod in pods} == {
            (NODE, "Running"),
            (UNKEPT, "Running"),
        }
        assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {image}


def client_pod(operator: Operator, node: str) -> str:
    (name,) = (
        pod["metadata"]["name"]
        for pod in operator.pods("app.kubernetes.io/name=client-update")
        if pod["spec"]["nodeName"] == node and "deletionTimestamp" not in pod["metadata"]
    )
    return str(name)


def test_client_update_leaves_the_roles_nodes_alone(operator: Operator) -> None:
    said = operator.types(f"kubectl -n xpu logs {client_pod(operator, NODE)}")
    assert "role xpu_runtime looks after this node" in said
    assert owner(operator.platform, NODE) == "xpu_runtime"


def test_client_update_keeps_a_node_that_nobody_else_does(operator: Operator) -> None:
    """The same release as the role's, since both are given the same tarball."""
    current = ("readlink", "/opt/xpu/current")
    before = operator.platform.on_host(UNKEPT, *current).output
    operator.platform.on_host(UNKEPT, "rm", "-r", "/opt/xpu")
    operator.types(f"kubectl -n xpu delete pod {client_pod(operator, UNKEPT)}")
    deadline = time.monotonic() + LIMIT_S
    while owner(operator.platform, UNKEPT) != "client-update" and time.monotonic() < deadline:
        time.sleep(1)
    operator.types(f"kubectl -n xpu rollout status daemonset/client-update {LIMIT}")
    assert operator.platform.on_host(UNKEPT, *current).output == before
    operator.platform.on_host(UNKEPT, "test", "-e", "/opt/xpu/lib/libcuda_direct.so")


def test_the_documents_deployment_runs_on_a_slice(operator: Operator, tmp_path: Path) -> None:
    operator.types(f"kubectl label nodes {NODE} node-type=llm")
    operator.types(f"kubectl create namespace {NAMESPACE}")
    for kind in ("Deployment", "Service"):
        document = next(
            part
            for part in yaml.safe_load_all(WORKLOAD.read_text(encoding="utf-8"))
            if part["kind"] == kind
        )
        document["metadata"]["namespace"] = NAMESPACE
        if kind == "Deployment":
            document["spec"]["template"]["spec"]["nodeSelector"] = {"node-type": "llm"}
        file = f"{kind.lower()}.yaml"
        operator.host.put(f"/root/{file}", yaml.safe_dump(document).encode())
        operator.types(f"kubectl apply -f {file}")
    operator.types(f"kubectl -n {NAMESPACE} rollout status deployment/slice-demo {LIMIT}")
    (pod,) = operator.pods("app=slice-demo", f"-n {NAMESPACE}")
    name = pod["metadata"]["name"]
    assert pod["spec"]["nodeName"] == NODE
    assert "huawei.com/vgpu-cores" in operator.types(f"kubectl -n {NAMESPACE} describe pods {name}")
    operator.types(f"kubectl logs -n {NAMESPACE} {name}")
    monitor = f"kubectl -n {NAMESPACE} exec {name} -- /opt/xpu/bin/gpu-monitor -p 1"
    assert "limit 20%" in operator.types(monitor)


def test_the_role_does_not_take_a_release_that_somebody_installed(operator: Operator) -> None:
    refused = operator.platform.playbook("preflight", check=False)
    assert refused.rc != 0
    assert "release gpupool in default was not installed by flexai.xpu" in refused.output
    assert {host["changed"] for host in recap(refused.output).values()} == {0}


def test_uninstalling_leaves_nothing(operator: Operator) -> None:
    operator.types(f"kubectl delete namespace {NAMESPACE} {LIMIT}")
    operator.types(f"helm uninstall gpupool --wait {LIMIT}")
    assert operator.pods("app.kubernetes.io/part-of=gpupool") == []
    left = operator.types(
        "kubectl get namespaces,clusterroles,clusterrolebindings,daemonsets -A "
        "--selector=app.kubernetes.io/instance=gpupool -o name"
    )
    assert left.replace("No resources found", "").strip() == ""
