# SPDX-License-Identifier: Apache-2.0
"""Chart gpupool, rendered by the Helm that the collection ships."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from xpubuild.cache import Cache
from xpubuild.recipes import charts, helm

CHART = charts.CHARTS / charts.NAME
RUNTIMES = ("containerd", "docker")
SYSTEMS = {
    "centos": "/usr/lib64",
    "rhel": "/usr/lib64",
    "openeuler": "/usr/lib64",
    "ubuntu": "/usr/lib/x86_64-linux-gnu",
    "debian": "/usr/lib/x86_64-linux-gnu",
}


@pytest.fixture(scope="module")
def program() -> Path:
    return helm.build(Cache()) / "helm"


def render(program: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [program, "template", "gpupool", CHART, *words], text=True, capture_output=True, check=False
    )


def objects(program: Path, *settings: str) -> dict[str, Any]:
    # The webhook's objects are judged by test_chart_webhook.py.
    done = render(program, "webhook.enabled=false", *settings)
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


def plugin(rendered: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def test_lint_is_strictly_clean(program: Path) -> None:
    done = subprocess.run(
        [program, "lint", "--strict", CHART], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("runtime", "system"), list(itertools.product(RUNTIMES, SYSTEMS)))
def test_every_runtime_and_system_renders(program: Path, runtime: str, system: str) -> None:
    rendered = objects(program, f"runtimeType={runtime}", f"osType={system}")
    assert sorted(rendered) == ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "ServiceAccount"]
    volumes = {volume["name"]: volume for volume in plugin(rendered)["volumes"]}
    assert volumes["driver"]["hostPath"]["path"] == SYSTEMS[system]


def test_rights_are_the_two_that_are_used(program: Path) -> None:
    rules = objects(program)["ClusterRole"]["rules"]
    assert [(rule["resources"], rule["verbs"]) for rule in rules] == [
        (["pods"], ["get"]),
        (["nodes"], ["patch"]),
    ]


def test_host_paths_are_the_same_inside(program: Path) -> None:
    """CDI entries name host paths, so what the plugin writes must lie at the same path."""
    spec = plugin(objects(program))
    hosts = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert set(hosts) == set(mounts)
    moved = {name for name in hosts if hosts[name] != mounts[name]}
    assert moved == {"driver"}


def test_pids_are_the_hosts(program: Path) -> None:
    """NVML's are, and the plugin compares them with those of the slices' processes."""
    spec = plugin(objects(program))
    assert spec["hostPID"] is True
    assert "--on-misuse=report" in spec["containers"][0]["args"]
    killing = plugin(objects(program, "onMisuse=kill"))
    assert "--on-misuse=kill" in killing["containers"][0]["args"]


def test_a_new_digest_under_the_same_tag_rolls_the_pods(program: Path) -> None:
    def annotations(*settings: str) -> dict[str, str]:
        template = objects(program, *settings)["DaemonSet"]["spec"]["template"]
        return dict(template["metadata"]["annotations"])

    digest = f"sha256:{'ab' * 32}"
    assert "gpupool.com/image-digest" not in annotations()
    rolled = annotations(f"gpuDevicePlugin.image.digest={digest}")
    assert rolled["gpupool.com/image-digest"] == digest


def test_the_image_is_a_full_reference(program: Path) -> None:
    container = plugin(objects(program, "basic.swr_addr=registry.site:5000/xpu"))["containers"][0]
    assert container["image"] == "registry.site:5000/xpu/gpu-device-plugin:v1.0"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("osTyp=ubuntu", "osTyp"),
        ("osType=windows", "osType"),
        ("runtimeType=crio", "runtimeType"),
        ("deviceSplitCount=0", "deviceSplitCount"),
        ("onMisuse=evict", "onMisuse"),
        ("gpuDevicePlugin.image.tag=v1.0", "tag"),
        ("basic.namespace=Not_A_Name", "namespace"),
    ],
)
def test_a_wrong_value_is_refused_by_name(program: Path, setting: str, named: str) -> None:
    done = render(program, setting)
    assert done.returncode != 0
    assert named in done.stderr


def test_packing_is_reproducible_and_installable(program: Path, tmp_path: Path) -> None:
    first = charts.build(Cache(tmp_path / "a")) / f"gpupool-{charts.version()}.tgz"
    second = charts.build(Cache(tmp_path / "b")) / first.name
    assert first.read_bytes() == second.read_bytes()
    assert first.name == "gpupool-0.1.0.tgz"
    done = subprocess.run(
        [program, "template", "gpupool", first], text=True, capture_output=True, check=False
    )
    assert done.stdout == render(program).stdout
