# SPDX-License-Identifier: Apache-2.0
"""The admission webhook in chart gpupool, rendered by the Helm that the collection ships."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from xpubuild.cache import Cache
from xpubuild.recipes import charts, helm
from xpubuild.toolchain import REPOSITORY

CHART = charts.CHARTS / charts.NAME
# The oldest that the chart admits, and the newest whose schemas we have.
VERSIONS = (
    "1.28",
    max(kubernetes_validate.utils.all_versions(), key=lambda v: int(v.split(".")[1])),
)
HOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
OBJECT = "gpupool-xpu-webhook"


@pytest.fixture(scope="module")
def program() -> Path:
    return helm.build(Cache()) / "helm"


def render(program: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [program, "template", "gpupool", CHART, *words], text=True, capture_output=True, check=False
    )


def objects(program: Path, *settings: str) -> dict[str, dict[str, Any]]:
    """The webhook's objects by ``kind/name``."""
    done = render(program, *settings)
    assert done.returncode == 0, done.stderr
    return {
        f"{document['kind']}/{document['metadata']['name']}": document
        for document in yaml.safe_load_all(done.stdout)
        if document
        and document["metadata"]["labels"].get("app.kubernetes.io/component") == "webhook"
    }


def pod(rendered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(rendered["Deployment/xpu-webhook"]["spec"]["template"]["spec"])


def test_its_objects_are_these_and_none_when_it_is_off(program: Path) -> None:
    assert sorted(objects(program)) == [
        f"ClusterRole/{OBJECT}",
        f"ClusterRoleBinding/{OBJECT}",
        "Deployment/xpu-webhook",
        f"MutatingWebhookConfiguration/{OBJECT}",
        "PodDisruptionBudget/xpu-webhook",
        "Role/xpu-webhook",
        "RoleBinding/xpu-webhook",
        "Secret/xpu-webhook-authority",
        "Service/xpu-webhook",
        "ServiceAccount/xpu-webhook",
        f"ValidatingWebhookConfiguration/{OBJECT}",
    ]
    assert objects(program, "webhook.enabled=false") == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_strictly_what_kubernetes_knows(program: Path, version: str) -> None:
    more = ("webhook.networkPolicy.enabled=true", "webhook.networkPolicy.apiServers={10.0.0.1/32}")
    for name, document in objects(program, *more).items():
        assert kubernetes_validate.validate(document, version, strict=True), name


def test_its_rights_are_its_own_objects_by_name(program: Path) -> None:
    rendered = objects(program)
    assert rendered["Role/xpu-webhook"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["xpu-webhook-authority"],
            "verbs": ["get", "update"],
        }
    ]
    assert rendered[f"ClusterRole/{OBJECT}"]["rules"] == [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
            "resourceNames": [OBJECT],
            "verbs": ["get", "patch"],
        }
    ]
    arguments = pod(rendered)["containers"][0]["args"]
    assert f"--configuration={OBJECT}" in arguments
    assert "--secret=xpu-webhook-authority" in arguments


def test_its_pod_is_what_level_restricted_wants(program: Path) -> None:
    spec = pod(objects(program))
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "volumes" not in spec


@pytest.mark.parametrize("kind", HOOKS)
def test_it_is_asked_about_few_pods_and_holds_none_up(program: Path, kind: str) -> None:
    (hook,) = objects(program)[f"{kind}/{OBJECT}"]["webhooks"]
    assert hook["failurePolicy"] == "Ignore"
    assert hook["timeoutSeconds"] <= 2
    assert hook["sideEffects"] == "None"
    (selector,) = hook["namespaceSelector"]["matchExpressions"]
    assert selector["operator"] == "NotIn"
    assert selector["values"] == ["xpu", "kube-system"]
    assert [rule["resources"] for rule in hook["rules"]] == [["pods"]]
    assert hook["matchConditions"]
    # Helm must not take out what the webhook writes.
    assert "caBundle" not in hook["clientConfig"]


def test_every_annotation_that_the_program_guards_reaches_it(program: Path) -> None:
    """The chart's conditions and the program name the same ones."""
    source = "".join(
        (REPOSITORY / "native/cluster/webhook" / name).read_text()
        for name in ("normalise.go", "validate.go")
    )
    guarded = set(re.findall(r'"((?:flexai\.io|huawei\.com)/[a-z-]+)"', source))
    assert len(guarded) == 9
    for kind in HOOKS:
        (hook,) = objects(program)[f"{kind}/{OBJECT}"]["webhooks"]
        expression = hook["matchConditions"][0]["expression"]
        assert (
            set(re.findall(r'"((?:flexai\.io|huawei\.com)/[a-z]+-?[a-z-]+[a-z])"', expression))
            == guarded
        )


def test_one_replica_has_no_budget_so_that_its_node_can_be_drained(program: Path) -> None:
    assert "PodDisruptionBudget/xpu-webhook" not in objects(program, "webhook.replicas=1")


def test_what_the_site_chooses_reaches_the_program(program: Path) -> None:
    rendered = objects(
        program, "webhook.schedulerName=own", "webhook.runtimeClassName=", "basic.namespace=gpus"
    )
    arguments = pod(rendered)["containers"][0]["args"]
    assert "--scheduler-name=own" in arguments
    assert "--runtime-class=" in arguments
    (hook,) = rendered[f"{HOOKS[0]}/{OBJECT}"]["webhooks"]
    assert hook["clientConfig"]["service"]["namespace"] == "gpus"
    assert "gpus" in hook["namespaceSelector"]["matchExpressions"][0]["values"]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ((), "flexai-xpu"),
        (("runtimeType=containerd",), "flexai-xpu"),
        (("runtimeType=docker",), "flexai-xpu-docker"),
        (("runtimeType=docker", "webhook.runtimeClassName=flexai-xpu"), "flexai-xpu"),
    ],
)
def test_the_runtime_class_is_one_that_the_nodes_can_serve(
    program: Path, settings: tuple[str, ...], wanted: str
) -> None:
    """cri-dockerd refuses every handler but docker; who names a class gets that one."""
    arguments = pod(objects(program, *settings))["containers"][0]["args"]
    assert f"--runtime-class={wanted}" in arguments


def test_a_new_digest_under_the_same_tag_rolls_its_pods_alone(program: Path) -> None:
    before = objects(program)
    after = objects(program, f"webhook.image.digest=sha256:{'ab' * 32}")
    assert {name for name in before if before[name] != after[name]} == {"Deployment/xpu-webhook"}


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("webhook.replica=3", "replica"),
        ("webhook.replicas=0", "replicas"),
        ("webhook.timeoutSeconds=31", "timeoutSeconds"),
        ("webhook.schedulerName=Not_A_Name", "schedulerName"),
        ("webhook.failurePolicy=Fail", "failurePolicy"),
        ("webhook.networkPolicy.enabled=true", "apiServers"),
    ],
)
def test_a_wrong_value_is_refused_by_name(program: Path, setting: str, named: str) -> None:
    done = render(program, setting)
    assert done.returncode != 0
    assert named in done.stderr
