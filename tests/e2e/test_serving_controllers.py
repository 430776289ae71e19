# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups under the controllers that a site may have: KEDA's operator and metrics server, and LWS's
controller, built from their modules and run as they are shipped. Engines and Prometheus are stubs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testbed.hosts import load
from testbed.recipes import controllers
from testbed.recipes.controllers import KEDA, LWS, Controller
from xpubuild.cache import Cache

from e2e import groups
from e2e.conftest import Demo
from e2e.faults import CONTROL_PLANE, wait_for
from e2e.groups import PATIENCE_S, Document, Site, ready
from e2e.platform import Platform, Run, recap

NAMESPACE = "serving-controllers"
METRICS, LOAD = "prometheus", "/tmp/load"
AWAY = f"--timeout={PATIENCE_S}s"

pytestmark = pytest.mark.soak


@contextmanager
def installed(platform: Platform, controller: Controller) -> Iterator[None]:
    """A controller as its own manifests install it, gone afterwards."""
    built = controllers.build(Cache(), controller)
    archive = f"/var/lib/testbed/{controller.name}.tar"
    load(platform.name).host(CONTROL_PLANE).put(archive, built / controllers.ARCHIVE)
    platform.on_host(CONTROL_PLANE, "ctr", "-n", "k8s.io", "images", "import", archive)
    manifest = str(built / controllers.MANIFEST)
    platform.kubectl("apply", "--server-side", "--force-conflicts", "-f", manifest)
    try:
        for name in controller.deployments:
            rollout = ("rollout", "status", f"deployment/{name}", AWAY)
            platform.kubectl("-n", controller.namespace, *rollout)
        yield
    finally:
        platform.kubectl("delete", "--ignore-not-found", AWAY, "-f", manifest)
        platform.on_host(CONTROL_PLANE, "rm", archive)


@pytest.fixture(scope="module")
def space(demo: Demo) -> Iterator[Site]:
    with groups.site(demo.platform, NAMESPACE) as found:
        yield found


@pytest.fixture
def keda(space: Site) -> Iterator[Site]:
    """KEDA, and a Prometheus that knows no number yet."""
    with installed(space.platform, KEDA), prometheus(space):
        available = "--for=condition=Available"
        space.kubectl("wait", "apiservice/v1beta1.external.metrics.k8s.io", available, AWAY)
        yield space
        space.run(scaled(), state="absent")


@pytest.fixture
def lws(space: Site) -> Iterator[Site]:
    with installed(space.platform, LWS):
        document = json.dumps(sample_set())
        create = ("-n", NAMESPACE, "create", "--dry-run=server", "-f", "-")
        # Its webhook has to find a certificate first.
        wait_for(
            lambda: space.platform.kubectl(*create, stdin=document, check=False).rc == 0,
            "LWS's webhook answers",
            PATIENCE_S,
        )
        yield space
        space.run(by_lws(), state="absent")


@contextmanager
def prometheus(site: Site) -> Iterator[None]:
    spec = groups.template(["/stubs/stub_prometheus.py", "9090", LOAD])["spec"]
    labels = {"app": METRICS}
    pod = {"metadata": {"name": METRICS, "labels": labels}, "spec": spec}
    service = {
        "metadata": {"name": METRICS},
        "spec": {"selector": labels, "ports": [{"port": 9090}]},
    }
    for kind, thing in (("Pod", pod), ("Service", service)):
        text = json.dumps({"apiVersion": "v1", "kind": kind, **thing})
        site.kubectl("apply", "-f", "-", stdin=text)
    site.kubectl("wait", "pod", METRICS, "--for=condition=Ready", AWAY)
    yield
    site.kubectl("delete", f"pod/{METRICS}", f"service/{METRICS}", "--grace-period=0")


def bear(site: Site, requests: int) -> None:
    """What Prometheus says of the service's load from now on."""
    site.kubectl("exec", METRICS, "--", "sh", "-c", f"echo {requests} > {LOAD}")


# -- KEDA ----------------------------------------------------------------------------------------


def scaled() -> Document:
    """Two groups of two that come with load: the first above none, the second above ten."""
    server = f"http://{METRICS}.{NAMESPACE}:9090"
    scaling = {
        "mode": "keda",
        "serverless": True,
        "target_concurrency": 10,
        "polling_seconds": 2,
        "cooldown_seconds": 5,
        "prometheus": {"server": server, "query": "load"},
    }
    # KEDA lets a new group alone for as long as its model may take to load.
    probes = {"startup_seconds": 120}
    return groups.service(NAMESPACE, groups=2, scaling=scaling, probes=probes)


def inference(site: Site) -> Run:
    """The operator's playbook."""
    variables = {
        "inference_service_services": [scaled()],
        "inference_service_timeout_s": PATIENCE_S,
    }
    return site.platform.play("flexai.xpu.inference", variables)


def changed(done: Run) -> int:
    return sum(host["changed"] for host in recap(done.output).values())


def sizes(site: Site) -> dict[str, int]:
    return {one["metadata"]["name"]: one["spec"]["replicas"] for one in site.get("statefulsets")}


def await_sizes(site: Site, first: int, second: int) -> None:
    wanted = {"stub-g0": first, "stub-g1": second}

    def so() -> bool:
        return sizes(site) == wanted and site.serves(first + second)

    wait_for(so, f"the groups have {wanted} pods that serve", PATIENCE_S)


def test_keda_takes_groups_up_and_down_whole(keda: Site, tmp_path: Path) -> None:
    bear(keda, 0)
    assert changed(inference(keda)) > 0
    assert sizes(keda) == {"stub-g0": 0, "stub-g1": 0}
    with keda.watch("statefulsets", tmp_path) as watch:
        bear(keda, 5)
        await_sizes(keda, 2, 0)
        keda.await_answer("stub-g0-1")
        # The replicas are KEDA's: a second run leaves them alone.
        assert changed(inference(keda)) == 0
        bear(keda, 15)
        await_sizes(keda, 2, 2)
        assert changed(inference(keda)) == 0
        bear(keda, 5)
        await_sizes(keda, 2, 0)
        bear(keda, 0)
        await_sizes(keda, 0, 0)
        assert changed(inference(keda)) == 0
        assert sizes(keda) == {"stub-g0": 0, "stub-g1": 0}
        events = watch.events()
    steps: dict[str, list[int]] = {}
    for event in events:
        known = steps.setdefault(event.name, [])
        if known[-1:] != [event.object["spec"]["replicas"]]:
            known.append(event.object["spec"]["replicas"])
    # Never a part of one.
    assert steps == {"stub-g0": [0, 2, 0], "stub-g1": [0, 2, 0]}


def test_without_an_answer_of_prometheus_groups_stay_as_they_are(keda: Site) -> None:
    bear(keda, 5)
    inference(keda)
    await_sizes(keda, 2, 0)
    keda.kubectl("exec", METRICS, "--", "sh", "-c", f"echo nonsense > {LOAD}")

    def given_up() -> bool:
        """Whether KEDA says of both groups that it has no number."""
        states = [
            {c.get("reason") for c in one["status"].get("conditions", ()) if c["type"] == "Ready"}
            for one in keda.get("scaledobjects.keda.sh")
        ]
        return states == [{"TriggerError"}] * 2

    def asked() -> int:
        return len(keda.kubectl("logs", METRICS).splitlines())

    wait_for(given_up, "KEDA has no number", PATIENCE_S)
    # It has asked again and again by then, past any number of failures that it would act upon.
    before = asked()
    wait_for(lambda: asked() >= before + 20, "KEDA goes on asking", PATIENCE_S)
    await_sizes(keda, 2, 0)


# -- LeaderWorkerSet -----------------------------------------------------------------------------


def by_lws(**ours: Any) -> Document:
    return groups.service(NAMESPACE, groups=2, layout="lws", **ours)


def sample_set() -> Document:
    """The least that LWS's webhook takes."""
    pod = {"spec": {"containers": [{"name": "c", "image": "testbed.invalid/none"}]}}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "sample"},
        "spec": {"leaderWorkerTemplate": {"size": 1, "workerTemplate": pod}},
    }


LWS_GROUP = "leaderworkerset.sigs.k8s.io/group-index"


def of_group(site: Site, index: int) -> dict[str, Document]:
    pods = site.pods().items()
    return {name: p for name, p in pods if p["metadata"]["labels"][LWS_GROUP] == str(index)}


def uids(pods: dict[str, Document]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods.values()}


def test_lws_forms_groups_that_serve(lws: Site, tmp_path: Path) -> None:
    done = lws.run(by_lws())
    (report,) = done["services"]
    assert [group["phase"] for group in report["groups"]] == ["Serving", "Serving"]
    assert set(lws.pods()) == {"stub-g-0", "stub-g-0-1", "stub-g-1", "stub-g-1-1"}
    lws.await_answer("stub-g-1-1")
    assert not lws.run(by_lws())["changed"]

    # A member that goes: LWS makes it anew in its place, and its group forms again around it.
    before = lws.pods()
    lws.kubectl("delete", "pod", "stub-g-0-1", "--grace-period=0", "--force")

    def anew(wanted: int) -> bool:
        """Whether all serve, and so many of them are not what they were."""
        return lws.serves(4) and len(uids(lws.pods()) - uids(before)) == wanted

    wait_for(lambda: anew(1), "the group serves with a new member", PATIENCE_S)
    assert uids(of_group(lws, 1)) <= uids(before)
    lws.await_answer("stub-g-0")

    # Another revision: LWS takes one group after the other.
    with lws.watch("pods", tmp_path) as watch:
        lws.run(by_lws(drain={"seconds": 3, "prestop_seconds": 1}))
        wait_for(lambda: anew(4), "both groups are of the new revision", PATIENCE_S)
        events = watch.events()
    gone: list[str] = []
    pods: dict[str, Document] = {}
    for event in events:
        pods[event.name] = event.object
        index = event.object["metadata"]["labels"][LWS_GROUP]
        if event.kind == "DELETED" and index not in gone:
            gone.append(index)
            others = [n for n, p in pods.items() if p["metadata"]["labels"][LWS_GROUP] != index]
            assert all(ready(pods[name]) for name in others), (event.name, others)
    assert sorted(gone) == ["0", "1"]
