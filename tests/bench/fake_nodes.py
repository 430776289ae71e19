# SPDX-License-Identifier: GPL-3.0-or-later
"""What of ``make bench-scheduler`` has an API server: 200 nodes of kwok, Volcano as shipped.

vc-scheduler with huawei-xpu and vc-controller-manager run as programs of this machine against the
API server of a testbed that has nothing but one. kwok keeps the nodes alive and says of bound pods
that they run. Every pod's placement is judged by what the scheduler wrote with the bind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.load import persistently
from e2e.platform import ROOT, Platform, PlatformError, must
from kubernetes import client, config
from testbed.recipes import kwok
from xpubuild.cache import Cache
from xpubuild.recipes import helm, volcano

from bench.benchlib import Figure

TOPOLOGY = ROOT / "tests/testbed/topologies/api-server.yaml"
CONFIGURATION = ROOT / "native/volcano/harness/scheduler.conf"
NAMESPACE = "bench"
CARDS, SLOTS, CARD_MIB, FULL = 8, 20, 40960, 100
GRANTS, GROUP = "huawei.com/vgpu-ids-new", "scheduling.k8s.io/group-name"
REGISTER = "huawei.com/node-vgpu-register"
NUMBER, CORES, MEMORY = (f"huawei.com/vgpu-{part}" for part in ("number", "cores", "memory-1Gi"))
MIB_PER_GIB = 1024
AT_ONCE = 8
PATIENCE_S = 600
POLL_S = 0.5
# More than a second's decisions: what is measured is the scheduler, not its client's manners.
UNHURRIED = ("--kube-api-qps=5000", "--kube-api-burst=5000")
PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Ask:
    """What the one container of a pod asks for, in totals; memory 0 is all of each card's."""

    number: int
    cores: int
    memory_gib: int

    @property
    def limits(self) -> dict[str, str]:
        wanted = {NUMBER: self.number, CORES: self.cores, MEMORY: self.memory_gib}
        return {name: str(count) for name, count in wanted.items() if count}

    @property
    def each(self) -> tuple[int, int]:
        """Percent and MiB of each of its cards."""
        return self.cores // self.number, self.memory_gib * MIB_PER_GIB or CARD_MIB


# In turns; the last two are whole cards. 100 of them need 57 cards at the least.
SHAPES = (
    Ask(1, 20, 3), Ask(1, 50, 10), Ask(1, 10, 4), Ask(1, 0, 2), Ask(1, 25, 8),
    Ask(1, 33, 12), Ask(1, 100, 20), Ask(1, 5, 1), Ask(1, 100, 0), Ask(2, 200, 0),
)  # fmt: skip


@dataclass(frozen=True)
class Grant:
    """One card of a placement, as the scheduler's annotation has it."""

    uuid: str
    memory_mib: int
    cores: int
    vid: int


def read_grants(text: str) -> list[Grant]:
    """``index,UUID,GPU,memMiB,cores,vid:…`` of the one container (docs/interfaces.md section 7)."""
    found = []
    for device in text.rstrip(";").rstrip(":").split(":"):
        _, uuid, _, memory, cores, vid = device.split(",")
        found.append(Grant(uuid, int(memory), int(cores), int(vid)))
    return found


def uuid_of(node: str, card: int) -> str:
    return f"GPU-{node}-{card}"


def wrong(placed: Mapping[str, tuple[Ask, str, str]]) -> list[str]:
    """What is wrong with placements: pod → what it asked for, its node, its grants. Pure."""
    found = []
    cards: dict[str, list[Grant]] = defaultdict(list)
    for pod, (ask, node, text) in placed.items():
        grants = read_grants(text) if text else []
        theirs = {uuid_of(node, card) for card in range(CARDS)}
        uuids = [grant.uuid for grant in grants]
        if len(set(uuids)) != ask.number or len(uuids) != ask.number or not set(uuids) <= theirs:
            found.append(f"{pod} on {node} asked for {ask.number} cards and has {uuids}")
        if any((grant.cores, grant.memory_mib) != ask.each for grant in grants):
            found.append(f"{pod} asked for {ask.each} of each card and has {text}")
        for grant in grants:
            cards[grant.uuid].append(grant)
    for uuid, grants in cards.items():
        cores, memory = sum(g.cores for g in grants), sum(g.memory_mib for g in grants)
        vids = {g.vid for g in grants}
        unlimited = FULL in [g.cores for g in grants] and len(grants) > 1
        if cores > FULL or memory > CARD_MIB or len(vids) < len(grants) or unlimited:
            found.append(f"card {uuid} of {CARD_MIB} MiB was given as {grants}")
    return found


def node(name: str) -> dict[str, Any]:
    """A node of eight cards as the device plugin would show it, kept alive by kwok."""
    cards = ":".join(
        f"{i},{uuid_of(name, i)},{SLOTS},{CARD_MIB},GPU-A100,true,{i // 4}" for i in range(CARDS)
    )
    room = {
        "cpu": "64", "memory": "512Gi", "pods": "250", NUMBER: str(CARDS * SLOTS),
        CORES: str(CARDS * FULL), MEMORY: str(CARDS * CARD_MIB // MIB_PER_GIB),
    }  # fmt: skip
    return {
        "metadata": {
            "name": name,
            "labels": {"type": "kwok", "kubernetes.io/hostname": name},
            "annotations": {"kwok.x-k8s.io/node": "fake", REGISTER: f"{cards}:"},
        },
        "status": {"capacity": room, "allocatable": room},
    }


def pod(name: str, ask: Ask) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": {"limits": ask.limits}}
    spec = {"schedulerName": "volcano", "containers": [container]}
    return {"metadata": {"name": name}, "spec": spec}


class Cluster:
    """The API server, by what this benchmark asks of it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.api: Any = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))

    def create(self, nodes: int, asks: Mapping[str, Ask]) -> None:
        self.api.create_namespace({"metadata": {"name": NAMESPACE}})
        accounts = self.api.list_namespaced_service_account
        wait(lambda: accounts(NAMESPACE).items, "the namespace has a service account")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda i: self.api.create_node(node(f"node-{i:03}")), range(nodes)))
            made = self.api.create_namespaced_pod
            list(pool.map(lambda one: made(NAMESPACE, pod(*one)), asks.items()))

    def pods(self) -> list[dict[str, Any]]:
        listed = persistently(
            lambda: self.api.list_namespaced_pod(NAMESPACE, _preload_content=False)
        )
        found: list[dict[str, Any]] = json.loads(listed.data)["items"]
        return found

    def ready_nodes(self) -> int:
        listed = json.loads(self.api.list_node("type=kwok", _preload_content=False).data)["items"]
        conditions = [one for them in listed for one in them["status"].get("conditions") or ()]
        return len([one for one in conditions if (one["type"], one["status"]) == ("Ready", "True")])


def wait(so: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        if time.monotonic() > deadline:
            raise PlatformError(f"after {PATIENCE_S} s it isn't so that {what}")
        time.sleep(POLL_S)


@contextmanager
def running(log: Path, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program for as long as it is needed; it must not end by itself."""
    with log.open("wb") as out:
        program = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DEBUG_SOCKET_DIR": str(log.parent)},
        )
        try:
            yield program
            if program.poll() is not None:
                raise PlatformError(f"{command[0]} ended: {log.read_text()[-2000:]}")
        finally:
            program.kill()
            program.wait()


def cpu_s(pid: int) -> float:
    """Processor time of a program so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / PER_SECOND


@contextmanager
def api_server() -> Iterator[Platform]:
    """A testbed with an API server and Volcano's CRDs."""
    platform = Platform(f"bench-api-{os.getpid()}")
    program = [sys.executable, "-m", "testbed"]
    try:
        must([*program, "up", str(TOPOLOGY), "--name", platform.name])
        cache = Cache()
        chart = next((volcano.build(cache) / "chart").glob("volcano-*.tgz"))
        off = ("scheduler_enable", "controller_enable", "admission_enable")
        must(
            [
                str(helm.build(cache) / "helm"), f"--kubeconfig={platform.kubeconfig}",
                "install", "crds", str(chart), *(f"--set=custom.{name}=false" for name in off),
            ]
        )  # fmt: skip
        yield platform
    finally:
        subprocess.run([*program, "down", "--name", platform.name], cwd=ROOT, check=True)


def measure(kubeconfig: Path, nodes: int, pods: int, scratch: Path) -> dict[str, Figure]:
    """All pods are there before the scheduler starts; from then on it is timed."""
    cache, cluster = Cache(), Cluster(kubeconfig)
    programs = volcano.build(cache)
    asks = {f"pod-{i:05}": SHAPES[i % len(SHAPES)] for i in range(pods)}
    of_cluster = (f"--kubeconfig={kubeconfig}",)
    volcanos = (*of_cluster, *UNHURRIED, "--leader-elect=false", "--enable-healthz=false")
    fake = ("--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",)
    with (
        running(scratch / "kwok.log", kwok.build(cache) / "kwok", *of_cluster, *fake),
        running(scratch / "controllers.log", programs / "vc-controller-manager", *volcanos),
    ):
        cluster.create(nodes, asks)
        wait(lambda: cluster.ready_nodes() == nodes, "kwok keeps all nodes ready")
        wait(
            lambda: all(
                GROUP in (one["metadata"].get("annotations") or {}) for one in cluster.pods()
            ),
            "every pod has its PodGroup",
        )
        started = time.monotonic()
        with running(
            scratch / "scheduler.log",
            programs / "vc-scheduler", *volcanos,
            f"--plugins-dir={programs / 'plugins'}", f"--scheduler-conf={CONFIGURATION}",
            "--listen-address=127.0.0.1:0", "--cache-dumper=false",
        ) as scheduler:  # fmt: skip
            left = wait_for_binds(cluster, pods)
            took, used = time.monotonic() - started, cpu_s(scheduler.pid)
        found = cluster.pods()
    placed = {
        one["metadata"]["name"]: (
            asks[one["metadata"]["name"]],
            one["spec"]["nodeName"],
            one["metadata"]["annotations"].get(GRANTS, ""),
        )
        for one in found
        if one["spec"].get("nodeName")
    }
    findings = wrong(placed)
    for finding in findings[:10]:
        print(f"  {finding}", file=sys.stderr)
    return {
        "against an API server: wrong placements": Figure(len(findings), "placements", 0),
        "against an API server: pods left behind": Figure(left, "pods", 0),
        "against an API server: decisions": Figure(round(len(placed) / took, 1), "a second"),
        "against an API server: CPU a decision": Figure(1e6 * used / max(len(placed), 1), "µs"),
    }


def wait_for_binds(cluster: Cluster, pods: int) -> int:
    """Until every pod runs on a node, or a minute brings nothing more; how many don't then."""
    running_before, since = -1, time.monotonic()
    while True:
        now = len([one for one in cluster.pods() if one["status"].get("phase") == "Running"])
        if now == pods:
            return 0
        if now != running_before:
            running_before, since = now, time.monotonic()
        elif time.monotonic() - since > 60:
            return pods - now
        time.sleep(POLL_S)


def check(nodes: int, pods: int) -> dict[str, Figure]:
    """A testbed for it, and away with it."""
    with api_server() as platform, tempfile.TemporaryDirectory() as scratch:
        return measure(platform.kubeconfig, nodes, pods, Path(scratch))


def words(figures: Mapping[str, Figure]) -> Sequence[str]:
    """The figures as lines, for who runs this part alone."""
    return [f"{name}: {figure.value:g} {figure.unit}" for name, figure in figures.items()]


if __name__ == "__main__":
    print("\n".join(words(check(int(os.environ.get("FAKE_NODES", "200")), 1000))))
