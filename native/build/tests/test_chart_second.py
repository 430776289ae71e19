# SPDX-License-Identifier: Apache-2.0
"""Chart volcano-second: a scheduler beside a foreign Volcano, without what both could own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from xpubuild.cache import Cache
from xpubuild.recipes import charts, helm

CHART = charts.CHARTS / charts.SECOND
NAME = "flexai-volcano"
# Which objects of which API group our two programs may change.
CHANGED = {
    "scheduler": {
        "/pods", "/pods/status", "/pods/binding", "/events", "/persistentvolumeclaims",
        "/persistentvolumes", "scheduling.volcano.sh/queues", "scheduling.volcano.sh/podgroups",
    },
    "controllers": {"/pods", "/pods/finalizers", "/events", "scheduling.volcano.sh/podgroups"},
}  # fmt: skip
READING = {"get", "list", "watch"}


def render(*settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    program: Path = helm.build(Cache()) / "helm"
    return subprocess.run(
        [program, "template", NAME, CHART, "--namespace", NAME, *words],
        text=True, capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """What the chart makes, by ``kind/name``."""
    done = render()
    assert done.returncode == 0, done.stderr
    return {
        f"{document['kind']}/{document['metadata']['name']}": document
        for document in yaml.safe_load_all(done.stdout)
        if document
    }


def test_objects_are_what_the_api_server_takes(objects: dict[str, Any]) -> None:
    for document in objects.values():
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_nothing_is_there_that_a_cluster_has_once(objects: dict[str, Any]) -> None:
    kinds = {key.partition("/")[0] for key in objects}
    assert kinds == {
        "ConfigMap", "Deployment", "ServiceAccount",
        "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
    }  # fmt: skip
    for key, document in objects.items():
        assert document["metadata"]["name"].startswith(NAME), key
        assert document["metadata"].get("namespace", NAME) == NAME, key


@pytest.mark.parametrize("part", CHANGED)
def test_rights_end_where_the_other_volcano_begins(objects: dict[str, Any], part: str) -> None:
    rules = objects[f"ClusterRole/{NAME}-{part}"]["rules"]
    changed = {
        f"{group}/{kind}"
        for rule in rules
        if set(rule["verbs"]) - READING
        for group in rule["apiGroups"]
        for kind in rule["resources"]
    }
    assert changed == CHANGED[part]
    (queues,) = [r for r in rules if r["resources"] == ["queues"]] or [{"verbs": []}]
    # It is asked to be made at each start; one that is there stays as it is.
    assert set(queues["verbs"]) - READING <= {"create"}


@pytest.mark.parametrize("part", CHANGED)
def test_each_program_has_our_name_and_a_lock_of_its_own(
    objects: dict[str, Any], part: str
) -> None:
    spec = objects[f"Deployment/{NAME}-{part}"]["spec"]["template"]["spec"]
    arguments = spec["containers"][0]["args"]
    assert f"--scheduler-name={NAME}" in arguments
    assert "--leader-elect=true" in arguments
    # Without it the lock lies where another Volcano is at home, whatever the newer flag says.
    assert f"--lock-object-namespace={NAME}" in arguments
    assert f"--leader-elect-resource-name={NAME}-{part}" in arguments
    assert objects[f"Role/{NAME}-{part}"]["rules"][1]["resourceNames"] == [f"{NAME}-{part}"]
    assert spec["securityContext"]["runAsNonRoot"] is True


def test_only_podgroups_of_our_pods_are_made(objects: dict[str, Any]) -> None:
    spec = objects[f"Deployment/{NAME}-controllers"]["spec"]["template"]["spec"]
    assert "--controllers=+pg-controller" in spec["containers"][0]["args"]
    assert "--feature-gates=WorkLoadSupport=false" in spec["containers"][0]["args"]


@pytest.mark.parametrize(
    "setting",
    [
        "schedulerNam=x",
        "schedulerName=volcano",
        "schedulerName=default-scheduler",
        "image.tag=v1",
        "configuration=actions: allocate",
    ],
)
def test_what_would_harm_the_other_and_typos_are_refused(setting: str) -> None:
    done = render(setting)
    assert done.returncode != 0
    assert setting.partition("=")[0].split(".")[-1] in done.stderr
