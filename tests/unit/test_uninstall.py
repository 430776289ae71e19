# SPDX-License-Identifier: GPL-3.0-or-later
"""Uninstallation: what is ours goes, what others own or use stays and is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _images
from ansible_collections.flexai.xpu.plugins.module_utils._cluster import OWNER
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.modules import (
    cluster_users,
    helm_chart,
    owned_namespace,
    plugin_annotations,
    slice_traces,
)

Object = dict[str, Any]
OURS, OTHER, CONFIG = "r/ours:v1", "r/other:v1", "sha256:c0"
RECORD = {OURS: "sha256:1"}

# -- images: record, what is there, who uses it → references, forgotten, left -------------------

REMOVALS: dict[str, tuple[dict[str, str], dict[str, list[str]], tuple[Any, ...]]] = {
    "with what the CRI plugin made beside it": (
        {OURS: "sha256:1", CONFIG: "sha256:1", OTHER: "sha256:2"},
        {"sha256:2": ["pod a/b"]},
        ((OURS, CONFIG), (OURS,), ()),
    ),
    "under another name it stays whole": (
        {OURS: "sha256:1", CONFIG: "sha256:1", OTHER: "sha256:1"},
        {},
        ((OURS,), (OURS,), ()),
    ),
    "in use": (
        {OURS: "sha256:1"},
        {"sha256:1": ["pod a/b", "pod a/b"]},
        ((), (), ("image r/ours:v1: used by pod a/b",)),
    ),
    "replaced since": (
        {OURS: "sha256:9"},
        {},
        (
            (),
            (OURS,),
            ("image r/ours:v1: another one (sha256:9) than we imported (sha256:1)",),
        ),
    ),
    "gone since": ({}, {}, ((), (OURS,), ())),
}


@pytest.mark.parametrize(("found", "using", "wanted"), REMOVALS.values(), ids=REMOVALS.keys())
def test_only_imported_and_unused_images_go(
    found: dict[str, str], using: dict[str, list[str]], wanted: tuple[Any, ...]
) -> None:
    assert _images.plan_removal(RECORD, found, using) == wanted


def container(name: str, image: str, sandbox: str) -> _images.Container:
    return _images.Container(name, image, sandbox)


def test_a_pod_that_runs_uses_the_images_of_its_ended_containers_too() -> None:
    containers = {
        "s1": container("pod a/runs", "pause", "s1"),
        "c1": container("pod a/runs", OURS, "s1"),
        "s2": container("pod a/over", "pause", "s2"),
        "c2": container("pod a/over", OTHER, "s2"),
    }
    running = _images.parse_running("TASK PID STATUS\ns1 10 RUNNING\ns2 11 STOPPED\n")
    found = {OURS: "sha256:1", OTHER: "sha256:2", "pause": "sha256:3"}
    assert _images.users(containers, running, found) == {
        "sha256:3": ["pod a/runs"],
        "sha256:1": ["pod a/runs"],
    }


# -- who is in the way -------------------------------------------------------------------------


def pod(name: str, phase: str = "Running", node: str = "gpu1", **spec: Any) -> Object:
    limits = {"huawei.com/vgpu-number": "1"}
    return {
        "metadata": {"namespace": "a", "name": name},
        "spec": {"nodeName": node, "containers": [{"resources": {"limits": limits}}], **spec},
        "status": {"phase": phase},
    }


def test_only_bound_and_unfinished_pods_hold_slices() -> None:
    pods = [
        pod("holds"),
        pod("waits", "Pending", node=""),
        pod("over", "Succeeded"),
        pod("bare", containers=[{"resources": {"limits": {"cpu": "1"}}}]),
    ]
    assert cluster_users.slice_holders(pods) == ["pod a/holds on gpu1"]


def test_what_rests_on_volcano_is_named_without_its_own_queues() -> None:
    queues = [{"metadata": {"name": name}} for name in ("default", "root", "mine")]
    pods = [pod("ours", schedulerName="volcano"), pod("theirs")]
    assert cluster_users.volcano_users(pods, {"queue": queues}) == ["pod a/ours", "queue mine"]


def test_what_rests_on_our_second_scheduler_are_pods_alone() -> None:
    pods = [
        pod("ours", schedulerName="flexai-volcano"),
        pod("over", "Succeeded", schedulerName="flexai-volcano"),
        pod("theirs", schedulerName="volcano"),
    ]
    assert cluster_users.scheduled_by(pods, "flexai-volcano") == ["pod a/ours"]
    params = {"of": "scheduler", "scheduler_name": "flexai-volcano", "force": False}
    with pytest.raises(XpuError, match="These rest on scheduler flexai-volcano: pod a/ours"):
        cluster_users.refuse(["pod a/ours"], params)


def test_users_stop_the_run_unless_forced() -> None:
    params = {"of": "slices", "force": False}
    with pytest.raises(XpuError, match=r"These hold slices: pod a/b. Nothing was changed") as error:
        cluster_users.refuse(["pod a/b"], params)
    assert "uninstall_force" in error.value.remedy
    forced = cluster_users.refuse(["pod a/b"], {**params, "force": True})
    assert forced["warnings"] == ["These hold slices: pod a/b."]
    assert cluster_users.refuse([], params)["warnings"] == []


# -- namespaces --------------------------------------------------------------------------------


def test_a_namespace_of_somebody_else_is_never_labelled() -> None:
    wanted = {"enforce": "privileged", **OWNER}
    theirs: Object = {"metadata": {"name": "xpu"}}
    ours: Object = {"metadata": {"name": "xpu", "labels": OWNER}}
    assert owned_namespace.labels_lacking(None, wanted) == wanted
    assert owned_namespace.labels_lacking(theirs, wanted) == {}
    assert owned_namespace.labels_lacking(ours, wanted) == {"enforce": "privileged"}


def test_what_every_namespace_has_does_not_keep_it() -> None:
    things = [
        ("ConfigMap", "kube-root-ca.crt"),
        ("ServiceAccount", "default"),
        ("Event", "e1"),
        ("Lease", "volcano"),
        ("Secret", "mine"),
    ]
    assert owned_namespace.content(things) == ["Secret mine"]


# -- helm, annotations, hosts ------------------------------------------------------------------


class Helm(helm_chart.Cluster):
    """Helm's records of a release, and whether it was told to uninstall."""

    def __init__(self, *labels: dict[str, str]) -> None:
        self._labels, self.uninstalled = labels, False

    def records(self) -> list[Object]:
        return [{"metadata": {"labels": labels}} for labels in self._labels]

    def uninstall(self) -> None:
        self.uninstalled = True


@pytest.mark.parametrize(
    ("helm", "gone", "left"),
    [
        (Helm(OWNER), True, []),
        (Helm({}), False, ["release v in n: not installed by flexai.xpu"]),
        (Helm(), False, []),
    ],
)
def test_only_a_release_that_we_installed_is_uninstalled(
    helm: Helm, gone: bool, left: list[str], tmp_path: Path
) -> None:
    (tmp_path / "helm").touch()
    params = {"release": "v", "namespace": "n", "helm": str(tmp_path / "helm")}
    predicted = helm_chart.absent(helm, params, True)
    assert (predicted["changed"], helm.uninstalled) == (gone, False)
    done = helm_chart.absent(helm, params, False)
    assert (done["changed"], done["left"], helm.uninstalled) == (gone, left, gone)


def test_annotations_stay_as_long_as_a_plugin_keeps_them() -> None:
    key = plugin_annotations.ANNOTATIONS[0]
    nodes: list[Object] = [
        {"metadata": {"name": "a", "annotations": {key: "0,GPU", "own": "1"}}},
        {"metadata": {"name": "b"}},
    ]
    plugin = {"metadata": {"name": "their-gpu-device-plugin"}}
    assert plugin_annotations.stale(nodes, [plugin]) == {}
    assert plugin_annotations.stale(nodes, []) == {"a": [key]}


@pytest.mark.parametrize("pods", ["run/xpu/pods", "etc/xpu"], ids=["now", "an older release"])
def test_traces_of_slices_go_when_no_pod_of_the_host_holds_one(tmp_path: Path, pods: str) -> None:
    host = Host(str(tmp_path))
    for path in (
        f"{pods}/uid-1/c",
        "etc/xpu",
        "run/xpu",
        "var/lib/xpu/slices",
        "etc/cdi",
        "var/lib/kubelet/pods/uid-1",
    ):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    (tmp_path / "etc/cdi/huawei.com-vgpu.yaml").touch()
    with pytest.raises(XpuError, match=r"hold slices .* uid-1"):
        slice_traces.converge(host, False, False)
    (tmp_path / "var/lib/kubelet/pods/uid-1").rmdir()
    (tmp_path / "etc/xpu/host/train").mkdir(parents=True)
    with pytest.raises(XpuError, match=r"slices of the host itself are registered: train\."):
        slice_traces.converge(host, False, False)
    assert slice_traces.converge(host, True, True)["warnings"]
    (tmp_path / "etc/xpu/host/train").rmdir()
    assert slice_traces.converge(host, False, True)["changed"]
    assert host.exists(f"/{pods}/uid-1")
    assert slice_traces.converge(host, False, False)["removed"] == list(slice_traces.TRACES)
    assert not slice_traces.converge(host, False, False)["changed"]
    gone = ("/etc/cdi", "/etc/xpu", "/run/xpu", "/var/lib/xpu")
    assert [host.exists(path) for path in gone] == [False] * len(gone)
