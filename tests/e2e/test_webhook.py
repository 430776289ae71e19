# SPDX-License-Identifier: GPL-3.0-or-later
"""The admission webhook behind a real API server: most pods in a dry run, a few for real."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from testbed.recipes import kubernetes
from xpubuild.cache import Cache

from e2e.conftest import Demo
from e2e.platform import Platform

OPEN, RESTRICTED = "webhook-open", "webhook-restricted"
SHAPE = "flexai.io/vgpu-shape"
NUMBER, CORES, MEMORY = (f"huawei.com/vgpu-{part}" for part in ("number", "cores", "memory-1Gi"))
FORGED = "0,GPU-00000000-0000-0000-0000-000000000000,GPU,40960,100,0:"
WAIT_S = 180
# What level restricted demands of every pod, and all it gets from us.
HARMLESS = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def platform(demo: Demo) -> Iterator[Platform]:
    namespaces = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"pod-security.kubernetes.io/enforce": level},
            },
        }
        for name, level in ((OPEN, "privileged"), (RESTRICTED, "restricted"))
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": namespaces}
    demo.platform.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
    yield demo.platform
    demo.platform.kubectl("delete", "namespace", OPEN, RESTRICTED, "--wait=false")


def pod(
    name: str,
    *limits: dict[str, int],
    namespace: str = OPEN,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A pod with one container for each of *limits*, each of which idles on what it is given."""
    containers = [
        {
            "name": f"c{number}",
            "image": "docker.io/library/xpu-workload:v1.0",
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "3600"],
            "resources": {"limits": limit},
            "securityContext": HARMLESS,
        }
        for number, limit in enumerate(limits)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
        "spec": {"containers": containers, "terminationGracePeriodSeconds": 0},
    }


def create(platform: Platform, thing: dict[str, Any], *options: str) -> tuple[int, str, str]:
    """(exit code, what the API server stored, what it said beside it)."""
    program = kubernetes.build(Cache()) / "kubectl"
    done = subprocess.run(
        [
            program,
            f"--kubeconfig={platform.kubeconfig}",
            "create",
            "-f",
            "-",
            "-o",
            "json",
            *options,
        ],
        input=json.dumps(thing),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def admitted(platform: Platform, thing: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What a pod would become, and the warnings."""
    rc, out, err = create(platform, thing, "--dry-run=server")
    assert rc == 0, err
    return dict(json.loads(out)), err


def slices(container: dict[str, Any]) -> tuple[str | None, ...]:
    """number, cores and memory of a container; limits and requests must be the same."""
    given = container["resources"]
    names = (NUMBER, CORES, MEMORY)
    found = tuple(given["limits"].get(name) for name in names)
    assert found == tuple(given["requests"].get(name) for name in names)
    return found


@pytest.mark.parametrize(
    ("limits", "totals", "shape"),
    [
        (
            {NUMBER: 1, CORES: 20, MEMORY: 3},
            ("1", "20", "3"),
            {"number": 1, "cores": 20, "memoryGiB": 3},
        ),
        (
            {NUMBER: 2, CORES: 20, MEMORY: 3},
            ("2", "40", "6"),
            {"number": 2, "cores": 20, "memoryGiB": 3},
        ),
        ({NUMBER: 3, MEMORY: 2}, ("3", None, "6"), {"number": 3, "memoryGiB": 2}),
        ({NUMBER: 2}, ("2", "200", None), {"number": 2}),
        (
            {NUMBER: 2, "huawei.com/vgpu-memory.1Gi": 3},
            ("2", None, "6"),
            {"number": 2, "memoryGiB": 3},
        ),
    ],
)
def test_asks_become_totals_with_their_shape(
    platform: Platform,
    limits: dict[str, int],
    totals: tuple[str | None, ...],
    shape: dict[str, int],
) -> None:
    found, said = admitted(platform, pod("p", limits))
    assert slices(found["spec"]["containers"][0]) == totals
    assert json.loads(found["metadata"]["annotations"][SHAPE]) == {"c0": shape}
    assert found["spec"]["schedulerName"] == "volcano"
    assert found["spec"]["runtimeClassName"] == "flexai-xpu"
    assert said == ""


def test_every_container_is_normalised_and_limits_nobody_offers_become_annotations(
    platform: Platform,
) -> None:
    wide = {
        NUMBER: 2,
        "huawei.com/vgpu-type.A100": 1,
        "huawei.com/intra-bandwidth": 50,
    }
    thing = pod("p", {NUMBER: 1, CORES: 5}, {"cpu": 1}, wide)
    first = {**pod("i", {NUMBER: 2, CORES: 7})["spec"]["containers"][0], "name": "first"}
    sidecar = {**first, "name": "side", "restartPolicy": "Always"}
    thing["spec"]["initContainers"] = [first, sidecar]
    found, _ = admitted(platform, thing)
    spec = found["spec"]
    got = [
        slices(c) for c in [*spec["initContainers"], spec["containers"][0], spec["containers"][2]]
    ]
    assert got == [("2", "14", None), ("2", "14", None), ("1", "5", None), ("2", "200", None)]
    assert set(spec["containers"][2]["resources"]["limits"]) == {NUMBER, CORES}
    notes = found["metadata"]["annotations"]
    assert notes["flexai.io/vgpu-type"] == "A100"
    assert notes["flexai.io/intra-bandwidth"] == "50"
    assert set(json.loads(notes[SHAPE])) == {"first", "side", "c0", "c2"}


@pytest.mark.parametrize(
    ("limits", "notes", "reason"),
    [
        ({NUMBER: 1, CORES: 120}, {}, "is percent of one card, for each vGPU; 1 to 100"),
        ({CORES: 20}, {}, "add huawei.com/vgpu-number: 1"),
        ({NUMBER: 1, "huawei.com/vgpu-core": 20}, {}, 'Unsupported value: "huawei.com/vgpu-core"'),
        (
            {NUMBER: 1, CORES: 20},
            {"flexai.io/class": "gold"},
            '"guaranteed", "elastic", "best-effort"',
        ),
        (
            {NUMBER: 1, CORES: 20, MEMORY: 3},
            {"flexai.io/class": "best-effort"},
            "take out huawei.com/vgpu-cores",
        ),
        ({NUMBER: 1, MEMORY: 3}, {"flexai.io/class": "guaranteed"}, "needs huawei.com/vgpu-cores"),
    ],
)
def test_a_wrong_ask_is_refused_with_the_reason(
    platform: Platform, limits: dict[str, int], notes: dict[str, str], reason: str
) -> None:
    rc, _, said = create(platform, pod("p", limits, annotations=notes), "--dry-run=server")
    assert rc != 0
    assert 'admission webhook "mutate.vgpu.flexai.io" denied the request' in said
    assert reason in said


def test_a_pod_that_comes_a_second_time_is_the_same(platform: Platform) -> None:
    """As reinvoked, or copied from a running one."""
    once, _ = admitted(platform, pod("p", {NUMBER: 2, CORES: 20, MEMORY: 3}))
    again = pod("p", annotations=once["metadata"]["annotations"])
    again["spec"] = once["spec"]
    twice, said = admitted(platform, again)
    assert twice["spec"]["containers"] == once["spec"]["containers"]
    assert twice["metadata"]["annotations"] == once["metadata"]["annotations"]
    assert said == ""


def test_what_a_user_forges_is_removed_and_said(platform: Platform) -> None:
    forged = {
        "huawei.com/vgpu-ids-new": FORGED,
        "huawei.com/vgpu-node": "gpu1",
        SHAPE: '{"c0":{"number":2,"cores":90}}',
    }
    found, said = admitted(platform, pod("p", {NUMBER: 2, CORES: 20}, annotations=forged))
    assert found["metadata"]["annotations"] == {SHAPE: '{"c0":{"number":2,"cores":20}}'}
    assert said.count("Warning: annotation") == 3


def test_a_foreign_runtime_class_is_kept_with_a_warning(platform: Platform) -> None:
    thing = pod("p", {NUMBER: 1})
    thing["spec"]["runtimeClassName"] = "nvidia"
    found, said = admitted(platform, thing)
    assert found["spec"]["runtimeClassName"] == "nvidia"
    assert "Warning: runtimeClassName nvidia is kept" in said


def test_level_restricted_takes_our_own_pods_and_those_we_change(platform: Platform) -> None:
    found, _ = admitted(platform, pod("p", {NUMBER: 2, CORES: 20}, namespace=RESTRICTED))
    assert slices(found["spec"]["containers"][0]) == ("2", "40", None)
    # The API server judges the pods that are there against the level that a namespace would get.
    judged = platform.kubectl(
        "label", "--dry-run=server", "--overwrite", "namespace", "xpu",
        "pod-security.kubernetes.io/enforce=restricted",
    ).output  # fmt: skip
    assert "gpu-device-plugin" in judged
    assert "xpu-webhook" not in judged


def get(platform: Platform, namespace: str, name: str) -> dict[str, Any]:
    answer = platform.kubectl("-n", namespace, "get", "pod", name, "-o", "json")
    return dict(json.loads(answer.output))


def events(platform: Platform, namespace: str, name: str) -> str:
    answer = platform.kubectl(
        "-n", namespace, "get", "events", "--field-selector", f"involvedObject.name={name}",
        "-o", "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
    )  # fmt: skip
    return answer.output


def wait(platform: Platform, what: str, *condition: str) -> None:
    platform.kubectl("wait", *condition, f"--timeout={WAIT_S}s", what)


def remove(platform: Platform, namespace: str, *names: str) -> None:
    platform.kubectl("-n", namespace, "delete", "pod", "--ignore-not-found", *names)


def test_a_pod_for_real_in_a_restricted_namespace_and_its_updates(platform: Platform) -> None:
    thing = pod(
        "real",
        {NUMBER: 1, CORES: 20, MEMORY: 3},
        namespace=RESTRICTED,
        annotations={"huawei.com/vgpu-ids-new": FORGED},
    )
    rc, _, said = create(platform, thing)
    assert rc == 0, said
    try:
        wait(platform, "pod/real", "-n", RESTRICTED, "--for=condition=Ready")
        notes = get(platform, RESTRICTED, "real")["metadata"]["annotations"]
        assert "GPU-00000000" not in notes["huawei.com/vgpu-ids-new"]

        def annotate(text: str) -> tuple[int, str]:
            done = platform.kubectl(
                "-n", RESTRICTED, "annotate", "--overwrite", "pod", "real", text, check=False
            )
            return done.rc, done.output

        rc, said = annotate(f'{SHAPE}={{"c0":{{"number":1,"cores":90}}}}')
        assert rc != 0
        assert "stays as it was when the pod was created or bound" in said
        assert annotate("flexai.io/class=elastic")[0] != 0
        assert annotate("huawei.com/vgpu-ids-new-")[0] != 0
        assert annotate("mine=changes")[0] == 0
    finally:
        remove(platform, RESTRICTED, "real")


def scale(platform: Platform, replicas: int) -> None:
    platform.kubectl("-n", "xpu", "scale", "deployment/xpu-webhook", f"--replicas={replicas}")
    if replicas:
        platform.kubectl(
            "-n", "xpu", "rollout", "status", "deployment/xpu-webhook", f"--timeout={WAIT_S}s"
        )
    else:
        platform.kubectl(
            "-n", "xpu", "wait", "--for=delete", f"--timeout={WAIT_S}s",
            "pod", "-l", "app.kubernetes.io/component=webhook",
        )  # fmt: skip


@contextmanager
def down(platform: Platform) -> Iterator[None]:
    """Without any replica of the webhook; as many as before afterwards."""
    answer = platform.kubectl(
        "-n", "xpu", "get", "deployment/xpu-webhook", "-o", "jsonpath={.spec.replicas}"
    )
    scale(platform, 0)
    try:
        yield
    finally:
        scale(platform, int(answer.output))


def test_while_it_is_down_pods_bind_right_or_are_refused_with_the_reason(
    platform: Platform,
) -> None:
    try:
        with down(platform):
            one = pod("one", {NUMBER: 1, CORES: 20, MEMORY: 3})
            one["spec"] |= {"schedulerName": "volcano", "runtimeClassName": "flexai-xpu"}
            two = pod("two", {NUMBER: 2, CORES: 20, MEMORY: 3})
            two["spec"] |= {"nodeName": "gpu1", "runtimeClassName": "flexai-xpu"}
            for thing in (one, two):
                rc, out, said = create(platform, thing)
                assert rc == 0, said
                assert SHAPE not in json.loads(out)["metadata"].get("annotations", {})
            wait(platform, "pod/one", "-n", OPEN, "--for=condition=Ready")
            deadline = time.monotonic() + WAIT_S
            while "vgpu-number 2" not in events(platform, OPEN, "two"):
                assert time.monotonic() < deadline, events(platform, OPEN, "two")
                time.sleep(0.5)
            assert get(platform, OPEN, "two")["status"]["phase"] == "Pending"
        # Back again it is believed at once: its authority was kept.
        found, _ = admitted(platform, pod("p", {NUMBER: 2, CORES: 20}))
        assert SHAPE in found["metadata"]["annotations"]
    finally:
        remove(platform, OPEN, "one", "two")
