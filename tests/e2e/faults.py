# SPDX-License-Identifier: GPL-3.0-or-later
"""What can break under a cluster with slices, and how a test breaks it.

Killed is always the whole process by SIGKILL, on the host where it runs; who starts it again is the
host's systemd or the kubelet, as on a real site.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from e2e.load import Crowd, persistently
from e2e.platform import Platform, PlatformError, must

PLUGIN_NAMESPACE, PLUGIN = "xpu", "gpu-device-plugin"
CONTROL_PLANE = "cp1"
POLL_S = 1.0
PATIENCE_S = 600
NUMBER = "huawei.com/vgpu-number"


@dataclass(frozen=True)
class Fault:
    """A program that dies. ``anywhere``: on a host with cards, else on the control plane."""

    name: str
    argv: tuple[str, ...]
    anywhere: bool = True

    def strike(self, platform: Platform, host: str) -> None:
        """Kill it; one that is down just now from an earlier kill is not killed twice."""
        platform.on_host(host, *self.argv, check=False)


def _unit(name: str) -> tuple[str, ...]:
    return ("systemctl", "kill", "--signal=KILL", "--kill-who=main", name)


def _process(name: str) -> tuple[str, ...]:
    return ("sh", "-c", f"kill -KILL $(pidof {name})")


FAULTS = (
    Fault("device plugin", _process(PLUGIN)),
    Fault("kubelet", _unit("kubelet")),
    Fault("containerd", _unit("containerd")),
    # A scheduler of Volcano runs on any of the nodes; the other hosts have no such process.
    Fault("volcano's scheduler", _process("vc-scheduler")),
    Fault("scheduler", _unit("kube-scheduler"), anywhere=False),
    Fault("API server", _unit("kube-apiserver"), anywhere=False),
)


def random_kills(
    platform: Platform,
    hosts: Sequence[str],
    count: int,
    *,
    seed: int,
    between: Callable[[int], None],
) -> list[str]:
    """Each fault once and then any, in random order and on random hosts; what was done.

    *between* is told the number of each kill and does what is to happen meanwhile.
    """
    random = Random(seed)
    chosen = list(FAULTS[:count])
    chosen += random.choices(FAULTS, k=count - len(chosen))
    random.shuffle(chosen)
    done = []
    for number, fault in enumerate(chosen):
        host = random.choice(list(hosts)) if fault.anywhere else CONTROL_PLANE
        fault.strike(platform, host)
        _await_runtime(platform, host)
        done.append(f"{fault.name} on {host}")
        time.sleep(random.uniform(0, 3))
        between(number)
        _without_backoff(platform)
    return done


def _await_runtime(platform: Platform, host: str) -> None:
    """A kubelet that starts while containerd is down takes every container for ended, and turns its
    pod away unless the device plugin is quicker (kubernetes issue 118559): that is its fault alone,
    and not the one that is looked for."""
    wait_for(
        lambda: platform.on_host(host, "ctr", "version", check=False).rc == 0,
        f"containerd answers on {host}",
    )


def _without_backoff(platform: Platform) -> None:
    """Replace a plugin whose kubelet has begun to wait, as an operator would: a test that kills it
    twenty times must not measure the kubelet's back-off of five minutes."""
    listed = platform.kubectl("-n", PLUGIN_NAMESPACE, "get", "pods", "-o", "json", check=False)
    if listed.rc != 0:
        return
    for pod in json.loads(listed.output)["items"]:
        waiting = [
            status["state"]["waiting"].get("reason")
            for status in pod["status"].get("containerStatuses") or ()
            if "waiting" in status["state"]
        ]
        if "CrashLoopBackOff" in waiting:
            name = pod["metadata"]["name"]
            platform.kubectl(
                "-n", PLUGIN_NAMESPACE, "delete", "pod", name, "--wait=false", check=False
            )


def wait_for(true: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline:
            raise PlatformError(f"after {patience_s:g} s it isn't so that {what}")
        time.sleep(POLL_S)


def healthy(crowd: Crowd, hosts: Sequence[str]) -> None:
    """Wait until the nodes are ready and offer slices, whatever was done to them."""

    def so() -> bool:
        listed = persistently(lambda: crowd.api.list_node(_preload_content=False))
        nodes = {node["metadata"]["name"]: node for node in json.loads(listed.data)["items"]}
        return all(host in nodes and _offers(nodes[host]) for host in hosts)

    wait_for(so, f"{', '.join(hosts)} are ready and offer {NUMBER}")


def _offers(node: dict[str, object]) -> bool:
    status = node["status"]
    assert isinstance(status, dict)
    ready = {c["type"]: c["status"] for c in status["conditions"]}.get("Ready") == "True"
    return ready and int(status["allocatable"].get(NUMBER, 0)) > 0


def reboot(platform: Platform, crowd: Crowd, host: str) -> None:
    """Reboot a host without draining its node, and wait until its kubelet knows what that ended."""
    before = crowd.containers_on(host)
    crowd.node_ends(host)
    must([sys.executable, "-m", "testbed", "reboot", host, "--name", platform.name])
    wait_for(
        lambda: not before & crowd.containers_on(host),
        f"{host}'s kubelet has seen that no container outlived the reboot",
    )


def upgrade_plugin(platform: Platform) -> None:
    """Roll the DaemonSet's pods, as an upgrade does, and wait until the new ones run."""
    daemon_set = ("-n", PLUGIN_NAMESPACE, "rollout")
    platform.kubectl(*daemon_set, "restart", f"daemonset/{PLUGIN}")
    platform.kubectl(*daemon_set, "status", f"daemonset/{PLUGIN}", f"--timeout={PATIENCE_S}s")


def delete_and_add_node(platform: Platform, crowd: Crowd, host: str) -> None:
    """Delete the Node object and have the kubelet make it anew; then label it as before."""
    found = json.loads(platform.kubectl("get", "node", host, "-o", "json").output)
    labels, marks = found["metadata"]["labels"], found["metadata"]["annotations"]
    crowd.node_ends(host)
    platform.kubectl("delete", "node", host)
    platform.on_host(host, "systemctl", "restart", "kubelet")
    wait_for(
        lambda: platform.kubectl("get", "node", host, check=False).rc == 0, f"{host} is a node"
    )
    ours = {"labels": labels, "annotations": {"flexai.io/labels": marks["flexai.io/labels"]}}
    patch = json.dumps({"metadata": ours})
    platform.kubectl("patch", "node", host, "--type=merge", "-p", patch)
