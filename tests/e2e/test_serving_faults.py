# SPDX-License-Identifier: GPL-3.0-or-later
"""Members that are killed, stopped or cut off, in pods: the group serves again, or ends visibly.

tests/group has the same of run.sh alone, with its time limits; here kubelet, probes, Service and
cluster DNS take part, on two nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from e2e import groups
from e2e.conftest import Demo
from e2e.faults import wait_for
from e2e.groups import PATIENCE_S, Document, Site

NAMESPACE = "serving-faults"
LEADER, WORKER = "stub-g0-0", "stub-g0-1"

pytestmark = pytest.mark.soak


def service(groups_: int = 1, **ours: Any) -> Document:
    """Its members are on two nodes."""
    document = groups.service(NAMESPACE, groups=groups_, **ours)
    apart = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {groups.SERVICE: groups.NAME}},
    }
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    for role in document["spec"]["servers"].values():
        role["template"]["spec"]["affinity"] = affinity
    return document


@pytest.fixture(scope="module")
def space(demo: Demo) -> Iterator[Site]:
    with groups.site(demo.platform, NAMESPACE) as found:
        yield found


@pytest.fixture
def site(space: Site) -> Iterator[Site]:
    yield space
    space.run(service(), state="absent")


def host(site: Site, pod: str) -> str:
    return str(site.pods()[pod]["spec"]["nodeName"])


def signal(site: Site, pod: str, process: str, name: str) -> None:
    """Send a signal to a pod's process: to one of the engine by its name, or to ``pid 1``."""
    found = site.pods()[pod]
    # What a pod's process is called, and its number within: pause is a PID 1 too.
    wanted = "[ $(cat $p/comm) = bash ] && grep -q 'NSpid.*[[:space:]]1$' $p/status"
    if process != "pid 1":
        wanted = f"[ $(cat $p/comm) = {process} ]"
    uid = found["metadata"]["uid"]
    script = (
        f"for p in /proc/[0-9]*; do grep -q pod{uid} $p/cgroup 2>/dev/null && {wanted} "
        f"&& kill -{name} ${{p#/proc/}} && echo sent; done 2>/dev/null; true"
    )
    done = site.platform.on_host(found["spec"]["nodeName"], "sh", "-c", script)
    assert done.output.split() == ["sent"], f"{pod} has no one process {process}: {done.output}"


def epoch(site: Site) -> str:
    """Which forming of the group the leader is in, a new word each time; empty while it is down."""
    command = ("-n", NAMESPACE, "exec", LEADER, "--", "cat", "/run/flexai/state")
    found = re.search(r"\bepoch=(\S+)", site.platform.kubectl(*command, check=False).output)
    return found.group(1) if found else ""


@contextmanager
def formed_anew(site: Site) -> Iterator[None]:
    """What is done within ends one epoch; afterwards another one serves, through the Service."""
    before = epoch(site)
    assert before
    yield

    def again() -> bool:
        # Readiness lags behind: the answer is what counts.
        return epoch(site) not in ("", before) and site.serves(2) and site.answers(WORKER)

    wait_for(again, "the group serves again", PATIENCE_S)


@dataclass(frozen=True)
class Fault:
    """A signal to one process of a member."""

    pod: str
    process: str
    signal: str

    def __str__(self) -> str:
        return f"{self.signal} {self.process} of {self.pod}".replace(" ", "-")


FAULTS = [
    Fault(pod, process, name)
    for pod in (WORKER, LEADER)
    for process, name in (("stub-rank", "KILL"), ("stub-main", "STOP"), ("pid 1", "KILL"))
] + [Fault(WORKER, "pid 1", "STOP")]


def test_a_group_serves_again_after_any_fault_of_a_member(site: Site) -> None:
    site.run(service(restart={"group_failure_timeout": 10, "heartbeat_seconds": 1,
                              "max_group_restarts": 100}))  # fmt: skip
    before = {name: pod["metadata"]["uid"] for name, pod in site.pods().items()}
    for fault in FAULTS:
        with formed_anew(site):
            signal(site, fault.pod, fault.process, fault.signal)
    # In place: with their addresses and devices.
    assert {name: pod["metadata"]["uid"] for name, pod in site.pods().items()} == before


def test_a_member_that_is_cut_off_is_missed_and_taken_back(site: Site) -> None:
    site.run(service(restart={"group_failure_timeout": 10, "heartbeat_seconds": 1}))
    node, address = host(site, WORKER), site.pods()[WORKER]["status"]["podIP"]
    rules = [["FORWARD", way, address, "-j", "DROP"] for way in ("-s", "-d")]
    with formed_anew(site):
        try:
            for rule in rules:
                site.platform.on_host(node, "iptables", "-w", "-I", *rule)
            # Nobody is sent to half a group.
            wait_for(
                lambda: not any(groups.ready(pod) for pod in site.pods().values()),
                "no member says that it serves",
                PATIENCE_S,
            )
        finally:
            for rule in rules:
                site.platform.on_host(node, "iptables", "-w", "-D", *rule)


def test_a_group_that_fails_too_often_ends_where_everybody_sees_it(site: Site) -> None:
    site.run(service(restart={"group_failure_timeout": 10, "heartbeat_seconds": 1,
                              "max_group_restarts": 1}))  # fmt: skip
    with formed_anew(site):
        signal(site, WORKER, "stub-rank", "KILL")
    signal(site, WORKER, "stub-rank", "KILL")

    def ended() -> bool:
        (status,) = site.pods()[LEADER]["status"]["containerStatuses"]
        return bool(status["lastState"].get("terminated"))

    wait_for(ended, "the leader's container has ended", PATIENCE_S)
    (status,) = site.pods()[LEADER]["status"]["containerStatuses"]
    assert status["restartCount"] == 1
    last = status["lastState"]["terminated"]
    assert (last["exitCode"], "restart budget used up (1 in" in last["message"]) == (1, True), last
    (report,) = site.run(service(), state="status")["services"]
    assert report["groups"][0]["reason"].startswith(f"{LEADER}: Error (1)")
