# SPDX-License-Identifier: GPL-3.0-or-later
"""sysHAX on Kubernetes: the API server takes every object and calls the engines' pods Guaranteed,
which is what the kubelet's static CPU manager asks for before it gives whole cores; and conductor
and engines run there, hand a request over, and say so by their own counters.

The conductor is the image of the artefact manifest, as the site's nodes have it. Neither node has
an accelerator to compute on: the one that prefills is a stand-in. Engines are mock engines in the
short form, which count a transfer where their partner said that it holds the blocks, and two real
vLLM servers with a random model in the long one (``-m soak``, 5 GB of memory).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.filter.syshax_manifests import syshax_manifests
from ansible_collections.flexai.xpu.plugins.module_utils import _syshax_proof as proof
from testbed.hosts import Host, load
from xpubuild.recipes import images

from e2e import real_engines
from e2e.conftest import Demo
from e2e.platform import ROOT, Platform
from e2e.real_engines import PLACE

OPTIONS = {
    "model": "/home/models/ds-32b",
    "op_mode": "fused",
    "settings": {"decider.max_num_seqs": 64},
    "gpu": {"image": "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-gpu:0.2.1"},
    "cpu": {"image": "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-cpu:0.2.1"},
}


def stored(platform: Platform, thing: dict[str, Any]) -> dict[str, Any]:
    """What the API server would store of *thing*, every field known and valid."""
    words = ["create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"]
    return dict(json.loads(platform.kubectl(*words, stdin=yaml.safe_dump(thing)).output))


@pytest.mark.parametrize(
    ("layout", "deployments"),
    [
        ({}, {"syshax", "syshax-conductor"}),
        (
            {"layout": "two-pods", "node": "gpu1"},
            {"syshax-gpu", "syshax-cpu", "syshax-conductor"},
        ),
    ],
    ids=["one-pod", "two-pods"],
)
def test_the_api_server_takes_engines_and_conductor(
    demo: Demo, layout: dict[str, Any], deployments: set[str]
) -> None:
    rendered = syshax_manifests(
        OPTIONS, cpus=32, conductor_image="registry.example/syshax:1", **layout
    )
    found = [stored(demo.platform, thing) for thing in rendered]
    assert {o["metadata"]["name"] for o in found if o["kind"] == "Deployment"} == deployments
    for deployment in (o for o in found if o["kind"] == "Deployment"):
        template = deployment["spec"]["template"]
        name = deployment["metadata"]["name"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        }
        assert stored(demo.platform, pod)["status"]["qosClass"] == "Guaranteed"


NAMESPACE = "syshax-e2e"
CONDUCTOR = f"{images.REGISTRY}/syshax-conductor:{images.TAG}"
PYTHON = f"{images.REGISTRY}/xpu-workload:{images.TAG}"
ENGINES = ("gpu", "cpu")
PATIENCE_S = 600
# Document 002's request by the conductor's Service, and both engines' counters before and after it.
ASK = """
import json, sys, time, urllib.error, urllib.request
way, conductor, *engines = sys.argv[1:]
def metrics(engine):
    with urllib.request.urlopen(engine + "/metrics", timeout=60) as page:
        return page.read().decode()
def state():
    try:
        with urllib.request.urlopen(conductor + "/readyz", timeout=60) as page:
            return json.load(page)
    except urllib.error.HTTPError as unready:
        return json.load(unready)
# A pair hands over once it was tried, which is soon after both of it came alive.
ends = time.monotonic() + 300
while not state()["handoff"].get("gpu>cpu", {}).get("dialect") and time.monotonic() < ends:
    time.sleep(0.5)
body = {"model": "ds-32b", "messages": [{"role": "user", "content": "介绍一下openEuler。" * 40}],
        "stream": True, "max_tokens": 24}
request = urllib.request.Request(conductor + "/v1/chat/" + way, json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
before = [metrics(engine) for engine in engines]
with urllib.request.urlopen(request, timeout=600) as answer:
    said = [answer.status, answer.headers["x-syshax-route"], answer.read().decode()]
after = [metrics(engine) for engine in engines]
print(json.dumps({"said": said, "before": before, "after": after, "ready": state()}))
"""


class Deployment:
    """Engines and conductor in a namespace of their own."""

    def __init__(
        self, platform: Platform, gpu: dict[str, Any], cpu: dict[str, Any], **more: Any
    ) -> None:
        self.platform = platform
        self.options = {
            "accelerator": "stand-in",
            "generation": "v1",
            "models_dir": PLACE,
            "model": real_engines.MODEL,
            "served_name": "ds-32b",
            "settings": {"heartbeat.interval": 1, "handoff.probe_timeout": 120},
            "start_timeout": PATIENCE_S,
            "gpu": gpu,
            "cpu": cpu,
            **more,
        }

    def render(self, **settings: Any) -> list[dict[str, Any]]:
        # Both nodes have two cores and give some away already.
        small: dict[str, Any] = {
            "cpus": 1, "gpu_cpus": "500m", "gpu_resources": {}, "gpu_memory": "3Gi",
            "cpu_memory": "3Gi", "shared_memory": "256Mi",
            "conductor_resources": {"cpu": "100m", "memory": "256Mi"},
        }  # fmt: skip
        options = {**self.options, "settings": {**self.options["settings"], **settings}}
        return syshax_manifests(options, namespace=NAMESPACE, conductor_image=CONDUCTOR, **small)

    def apply(self, objects: list[dict[str, Any]]) -> None:
        self.platform.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def start(self) -> None:
        """The testbed's cluster has no DNS, so the conductor is told its Services' addresses."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        self.apply([namespace, *(o for o in self.render() if o["kind"] == "Service")])
        hosts = {f"services.{role}.host": self.address(role)[0] for role in ENGINES}
        self.apply(self.render(**hosts))
        for name in ("syshax", "syshax-conductor"):
            done = self.kubectl(
                "rollout", "status", f"deployment/{name}", f"--timeout={PATIENCE_S}s", check=False
            )
            assert done.rc == 0, self.kubectl("describe", "pods").output[-4000:]

    def address(self, service: str) -> tuple[str, int]:
        found = self.kubectl("get", "service", f"syshax-{service}", "-o", "json").output
        spec = json.loads(found)["spec"]
        return spec["clusterIP"], spec["ports"][0]["port"]

    def kubectl(self, *words: str, check: bool = True) -> Any:
        return self.platform.kubectl("-n", NAMESPACE, *words, check=check)

    def stop(self) -> None:
        self.platform.kubectl(
            "delete", "namespace", NAMESPACE, "--ignore-not-found", f"--timeout={PATIENCE_S}s"
        )

    def ask(self, way: str) -> tuple[proof.Answer, proof.Proof, dict[str, Any]]:
        """The document's request from a pod; the role's own judgement of it, and /readyz."""
        urls = [f"http://{ip}:{port}" for ip, port in map(self.address, ("conductor", *ENGINES))]
        words = ("exec", "deploy/syshax-conductor", "--", "python3", "-c", ASK, way, *urls)
        done = self.kubectl(*words)
        told = json.loads(done.output.strip().splitlines()[-1])
        answer = proof.read_stream(*told["said"])
        before, after = (
            [proof.read_counters(text) for text in told[when]] for when in ("before", "after")
        )
        moved = [late.since(early) for early, late in zip(before, after, strict=True)]
        return answer, proof.judge(answer, *moved), told["ready"]


def nodes(demo: Demo) -> tuple[Host, ...]:
    return load(demo.platform.name).by_role("worker")


def assert_it_hands_over(deployment: Deployment) -> None:
    """The document's request is answered in full; one that must be handed over is, and proven so
    by the counters of the engines and by the conductor's own test at its start."""
    answer, _, _ = deployment.ask("completions")
    assert (answer.status, answer.ends, answer.error) == (200, 1, "")
    assert answer.pieces > 5
    answer, judged, ready = deployment.ask("pd_disagg")
    assert answer.route == "gpu>cpu"
    assert judged.state == proof.PROVEN, judged
    assert ready["ready"] and ready["handoff"]["gpu>cpu"]["proven"], ready
    print(f"hand-off in pods: {judged.reason}")


@pytest.fixture
def place(demo: Demo) -> Iterator[tuple[Host, ...]]:
    """The nodes, and nothing of PLACE left on them."""
    yield nodes(demo)
    for node in nodes(demo):
        node.exec(["rm", "-rf", PLACE])


@pytest.fixture
def mocks(demo: Demo, place: tuple[Host, ...]) -> Iterator[Deployment]:
    program = (ROOT / "native/syshax/mocks/mockengine.py").read_bytes()
    for node in place:
        node.put(f"{PLACE}/mockengine.py", program)

    def engine(port: int) -> dict[str, Any]:
        words = ["python3", f"{PLACE}/mockengine.py", "--host=0.0.0.0", f"--port={port}"]
        # That image holds what a mock engine imports.
        return {"image": CONDUCTOR, "command": [*words, "dialect=nixl", "trusting=1"]}

    made = Deployment(demo.platform, engine(8001), engine(8002))
    yield made
    made.stop()


@pytest.fixture
def servers(demo: Demo, place: tuple[Host, ...]) -> Iterator[Deployment]:
    for node in place:
        real_engines.put(node)
    engine = {
        "image": PYTHON,
        "dtype": real_engines.DTYPE,
        "env": real_engines.ENV,
        "args": real_engines.ARGS,
    }
    made = Deployment(demo.platform, engine, engine, **real_engines.OPTIONS)
    yield made
    made.stop()


def test_the_documents_request_is_handed_over_in_pods(mocks: Deployment) -> None:
    mocks.start()
    assert_it_hands_over(mocks)
    # Nobody's process, on a file system that it cannot write.
    conductors = ("pods", "-l", "app.kubernetes.io/name=syshax-conductor", "-o", "json")
    (pod,) = json.loads(mocks.kubectl("get", *conductors).output)["items"]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    tried = mocks.kubectl("exec", pod["metadata"]["name"], "--", "touch", "/opt/x", check=False)
    assert tried.rc != 0 and "Read-only file system" in tried.output


@pytest.mark.soak
@pytest.mark.skipif(not real_engines.NUMA.exists(), reason="needs the package libnuma1")
def test_two_real_servers_hand_over_in_one_pod(servers: Deployment) -> None:
    servers.start()
    assert_it_hands_over(servers)
