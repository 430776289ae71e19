# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of stub engines as pods of a testbed: the module makes them, a watch remembers them.

The engine is tests/group/stub_engine.py in the image that the site has already; all else is what an
operator's service has: run.sh, probes, gang, budget.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.recipes import kubernetes
from xpubuild.cache import Cache

from e2e.faults import wait_for
from e2e.mixed import IMAGE
from e2e.platform import ROOT, Platform

Document = dict[str, Any]
MODULE = "ansible_collections.flexai.xpu.plugins.modules.inference_service"
FILES = ROOT / "roles/inference_service/files"
SCRIPTS = {path.name: path.read_text() for path in sorted(FILES.iterdir())}
STUBS = ROOT / "tests/group"
NAME = "stub"
SERVICE, GROUP = "flexai.io/inferenceservice", "flexai.io/group"
# What is waited for on a machine that does ten other things.
PATIENCE_S = 600
STUB_FILES = "stubs"


def template(command: list[str], limits: Document | None = None, **spec: Any) -> Document:
    """A pod that runs *command* of the stubs."""
    container = {
        "name": "engine",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", *command],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": limits or {}},
        "volumeMounts": [{"name": STUB_FILES, "mountPath": "/stubs"}],
    }
    volumes = [{"name": STUB_FILES, "configMap": {"name": STUB_FILES}}]
    return {"spec": {"containers": [container], "volumes": volumes, **spec}}


def service(
    namespace: str, *, groups: int = 1, limits: Document | None = None, **ours: Any
) -> Document:
    """A service of groups of two. *ours* goes into ``spec.flexai``."""
    pod = template(["/stubs/stub_engine.py"], limits)
    return {
        "apiVersion": "system.hero.ai/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "deploymentMode": "DistributeInference",
            "replicas": groups,
            "servers": {
                "leader": {"replicas": 1, "template": pod},
                "worker": {"replicas": 1, "template": pod},
            },
            "flexai": {
                "rendezvous": {"backend": "mp"},
                "probes": {"startup_seconds": PATIENCE_S},
                "restart": {"group_failure_timeout": 20, "heartbeat_seconds": 1},
                "drain": {"seconds": 2, "prestop_seconds": 1},
                **ours,
            },
        },
    }


def ready(pod: Document) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


@dataclass(frozen=True)
class Site:
    """A namespace of a testbed, and the module as an operator's playbook calls it."""

    platform: Platform
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.platform.kubectl("-n", self.namespace, *arguments, stdin=stdin).output

    def run(self, document: Document, **options: Any) -> Document:
        """One execution of the module, as Ansible starts it."""
        arguments = {
            "kubeconfig": str(self.platform.kubeconfig),
            "services": [document],
            "scripts": SCRIPTS,
            "timeout_s": PATIENCE_S,
            **options,
        }
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        found: Document = json.loads(done.stdout)
        assert not found.get("failed"), found
        return found

    def get(self, kind: str, *names: str) -> list[Document]:
        """Objects of a kind: those called *names*, or those of the service."""
        which = names or ("-l", f"{SERVICE}={NAME}")
        found = json.loads(self.kubectl("get", kind, *which, "-o", "json"))
        return list(found["items"]) if "items" in found else [found]

    def pods(self) -> dict[str, Document]:
        return {pod["metadata"]["name"]: pod for pod in self.get("pods")}

    def serves(self, pods: int) -> bool:
        """Whether exactly so many pods are there and all of them ready."""
        found = self.pods().values()
        return len(found) == pods and all(
            ready(pod) and "deletionTimestamp" not in pod["metadata"] for pod in found
        )

    def await_serving(self, pods: int) -> None:
        wait_for(lambda: self.serves(pods), f"{pods} pods serve", PATIENCE_S)

    def answers(self, pod: str) -> bool:
        """Whether a completion asked for in *pod*, by the Service's name, has its one token."""
        program = (
            "import json, urllib.request as u\n"
            "body = json.dumps({'model': 'stub', 'max_tokens': 1}).encode()\n"
            "kind = {'Content-Type': 'application/json'}\n"
            f"at = u.Request('http://{NAME}:8000/v1/completions', body, kind)\n"
            "print(u.urlopen(at, timeout=60).read().decode())\n"
        )
        command = ("-n", self.namespace, "exec", pod, "--", "python3", "-c", program)
        done = self.platform.kubectl(*command, check=False)
        return done.rc == 0 and '"x"' in done.output

    def await_answer(self, pod: str) -> None:
        """A pod that is ready is not yet behind its Service on every node."""
        wait_for(lambda: self.answers(pod), f"{pod} has an answer of the Service", PATIENCE_S)

    @contextmanager
    def watch(self, kind: str, directory: Path) -> Iterator[Watch]:
        """Everything that happens to the objects of *kind* meanwhile."""
        program = kubernetes.build(Cache()) / "kubectl"
        file = directory / f"{kind}.json"
        command = [
            str(program), f"--kubeconfig={self.platform.kubeconfig}", "-n", self.namespace,
            "get", kind, "-l", f"{SERVICE}={NAME}", "-o", "json", "--watch",
            "--output-watch-events",
        ]  # fmt: skip
        with file.open("wb") as stream, subprocess.Popen(command, stdout=stream) as process:
            try:
                yield Watch(file, process, lambda: self.get(kind))
            finally:
                process.kill()


@dataclass(frozen=True)
class Event:
    """One of the API server's: what became of an object."""

    kind: str
    object: Document

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def group(self) -> str:
        return str(self.object["metadata"]["labels"].get(GROUP, ""))


@dataclass(frozen=True)
class Watch:
    """A running ``kubectl get --watch``."""

    file: Path
    process: subprocess.Popen[bytes]
    now: Callable[[], list[Document]]

    def _read(self) -> list[Event]:
        text, at, found = self.file.read_text(encoding="utf-8"), 0, []
        decoder = json.JSONDecoder()
        while text[at:].strip():
            at += len(text[at:]) - len(text[at:].lstrip())
            try:
                document, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                break  # half a one: the rest is still being written
            found.append(Event(document["type"], document["object"]))
        return found

    def events(self) -> list[Event]:
        """All until now, in order; what the API server has now is among them."""

        def caught_up() -> bool:
            assert self.process.poll() is None, "the watch has ended"
            last: dict[str, str] = {}
            for event in self._read():
                last[event.name] = event.object["metadata"]["resourceVersion"]
                if event.kind == "DELETED":
                    del last[event.name]
            return last == {
                one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in self.now()
            }

        wait_for(caught_up, "the watch has seen what is there", PATIENCE_S)
        return self._read()


@dataclass(frozen=True)
class Departure:
    """A pod that was told to leave: whether it was ready, and which others were not."""

    pod: str
    group: str
    ready: bool
    unready: tuple[str, ...]


def departures(events: list[Event]) -> list[Departure]:
    """Each pod's leaving, in order, and how the others were then."""
    found: list[Departure] = []
    pods: dict[str, Document] = {}
    left: set[str] = set()
    for event in events:
        uid = event.object["metadata"]["uid"]
        leaves = "deletionTimestamp" in event.object["metadata"]
        if leaves and uid not in left:
            left.add(uid)
            # As it was before: on its way out its containers end.
            before = pods.get(event.name, event.object)
            others = sorted(n for n, pod in pods.items() if n != event.name and not ready(pod))
            found.append(Departure(event.name, event.group, ready(before), tuple(others)))
        if event.kind == "DELETED":
            pods.pop(event.name, None)
        else:
            pods[event.name] = event.object
    return found


@contextmanager
def site(platform: Platform, namespace: str) -> Iterator[Site]:
    """A namespace with the stubs' files, and nothing of it afterwards."""
    found = Site(platform, namespace)
    platform.kubectl("create", "namespace", namespace)
    try:
        files = [f"--from-file={STUBS / name}" for name in ("stub_engine.py", "stub_prometheus.py")]
        found.kubectl("create", "configmap", STUB_FILES, *files)
        yield found
    finally:
        platform.kubectl("delete", "namespace", namespace, f"--timeout={PATIENCE_S}s")
