# SPDX-License-Identifier: GPL-3.0-or-later
"""A Volcano Job of four slices is placed by each policy as the policy says, or not at all.

Judged by the cards that the pods themselves see (``workload/witness.py``), on the demo's three
cards of two nodes. What is there already counts with what it holds, the former tests' jobs too: so
nobody has to wait until their slices are given back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from e2e import referee
from e2e.conftest import Demo
from e2e.faults import wait_for
from e2e.load import cards_of, hosts_with_cards, ledgers
from e2e.mixed import FULL_CORES, IMAGE, Ask
from e2e.platform import Platform
from e2e.referee import Card, Seen

NAMESPACE = "volcano-job"
SLICES = 4
PATIENCE_S = 300
JOB = "job.batch.volcano.sh"
POLICY, CLASS = "flexai.io/policy", "flexai.io/class"
BANDWIDTH, TOPOLOGY = "huawei.com/intra-bandwidth", "huawei.com/node-gpu-topology"
SLICE = Ask(1, 5, 1)


@dataclass(frozen=True)
class Site:
    """The demo's cluster, and its cards as their hosts know them."""

    platform: Platform
    hosts: tuple[str, ...]
    cards: Mapping[str, Card]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.platform.kubectl("-n", NAMESPACE, *arguments, stdin=stdin).output

    def create(self, thing: Mapping[str, Any]) -> None:
        self.kubectl("create", "-f", "-", stdin=json.dumps(thing))

    def pods(self, selector: str) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = json.loads(
            self.kubectl("get", "pods", "-l", selector, "-o", "json")
        )["items"]
        return pods

    def cores_held(self) -> Counter[str]:
        """UUID → percent of its compute that slices hold, by the node ledgers."""
        held: Counter[str] = Counter(dict.fromkeys(self.cards, 0))
        for shares in ledgers(self.platform, self.hosts).values():
            held.update({share.uuid: share.cores for share in shares})
        return held

    def seen(self, selector: str, count: int, ask: Ask) -> list[Seen]:
        """What each of *count* pods saw, once all of them have said so."""
        self.kubectl(
            "wait", "pod", "-l", selector, "--for=condition=Ready", f"--timeout={PATIENCE_S}s"
        )
        found = [
            Seen(
                pod["spec"]["nodeName"],
                pod["metadata"]["name"],
                pod["metadata"]["uid"],
                "c0",
                ask,
                self.said(pod["metadata"]["name"]),
            )
            for pod in self.pods(selector)
        ]
        assert len(found) == count, [one.pod for one in found]
        assert referee.wrong_cards(found, self.cards) == []
        return found

    def said(self, pod: str) -> dict[str, Any]:
        """The one line that the pod prints, once it has."""
        wait_for(lambda: self.kubectl("logs", pod).endswith("}\n"), f"{pod} says what it sees")
        document: dict[str, Any] = json.loads(self.kubectl("logs", pod).splitlines()[-1])
        return document

    def run(
        self, name: str, ask: Ask, policy: str, more: Mapping[str, str] | None = None
    ) -> tuple[Sequence[Seen], Counter[str]]:
        """Run a gang; what its pods saw, and what cards held before."""
        before = self.cores_held()
        self.create(gang(name, ask, policy, more or {}))
        running = "jsonpath={.status.state.phase}=Running"
        self.kubectl("wait", JOB, name, f"--for={running}", f"--timeout={PATIENCE_S}s")
        return self.seen(of(name), SLICES, ask), before


@pytest.fixture(scope="module")
def site(demo: Demo) -> Iterator[Site]:
    platform = demo.platform
    hosts = tuple(hosts_with_cards(platform))
    found = Site(platform, hosts, cards_of(platform, hosts))
    platform.kubectl("create", "namespace", NAMESPACE)
    account = ("-n", NAMESPACE, "get", "serviceaccount", "default")
    wait_for(lambda: platform.kubectl(*account, check=False).rc == 0, "a service account is there")
    yield found
    platform.kubectl("delete", "namespace", NAMESPACE, f"--timeout={PATIENCE_S}s")


def container(ask: Ask, more: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "c0",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "/workload/witness.py", "hold"],
        "resources": {"limits": {**ask.resources, **more}},
    }


def gang(name: str, ask: Ask, policy: str, more: Mapping[str, str]) -> dict[str, Any]:
    """A Volcano Job of four pods that start together or not at all."""
    template = {
        "metadata": {"annotations": {POLICY: policy}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [container(ask, more)],
        },
    }
    return {
        "apiVersion": "batch.volcano.sh/v1alpha1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "schedulerName": "volcano",
            "queue": "default",
            "minAvailable": SLICES,
            "tasks": [{"name": "slice", "replicas": SLICES, "template": template}],
        },
    }


def of(job: str) -> str:
    return f"volcano.sh/job-name={job}"


def on_cards(seen: Sequence[Seen]) -> Counter[str]:
    return Counter(uuid for one in seen for uuid in one.uuids)


def test_a_gang_that_does_not_fit_starts_nobody(site: Site) -> None:
    """By sums there is room for all four, by cards for one on each."""
    name, ask = "too-many", Ask(1, 60, 1)
    assert SLICES * ask.cores <= len(site.cards) * FULL_CORES - sum(site.cores_held().values())
    assert len(site.cards) < SLICES
    site.create(gang(name, ask, "binpack", {}))

    def waits() -> list[dict[str, Any]]:
        """Why each pod has no node, by the scheduler's word."""
        said = (pod["status"].get("conditions") or () for pod in site.pods(of(name)))
        return [one for them in said for one in them if one["type"] == "PodScheduled"]

    wait_for(lambda: len(waits()) == SLICES, "Volcano has judged all four")
    found = waits()
    assert [pod["spec"].get("nodeName") for pod in site.pods(of(name))] == [None] * SLICES
    assert {one["status"] for one in found} == {"False"}
    # For the first three there would be room, each alone.
    reasons = sorted(one["reason"] for one in found)
    assert reasons == ["Schedulable"] * len(site.cards) + ["Unschedulable"]
    assert any("no healthy card has 60 % cores" in one["message"] for one in found), found
    site.kubectl("delete", JOB, name, "--wait=true", f"--timeout={PATIENCE_S}s")


def test_spread_takes_the_emptiest_card_each_time(site: Site) -> None:
    seen, before = site.run("spread", SLICE, "spread")
    came = on_cards(seen)
    after = {uuid: before[uuid] + came[uuid] * SLICE.cores for uuid in site.cards}
    assert all(after[uuid] - SLICE.cores <= min(after.values()) for uuid in came), (before, after)


@pytest.mark.parametrize("policy", ["binpack", "topology"])
def test_slices_of_one_card_fill_the_fullest_card_that_fits(policy: str, site: Site) -> None:
    seen, before = site.run(policy, SLICE, policy)
    (card,) = on_cards(seen)
    fits = [held for held in before.values() if held + SLICES * SLICE.cores <= FULL_CORES]
    assert before[card] == max(fits), (card, before)


def test_topology_gives_a_container_of_two_cards_linked_ones(site: Site) -> None:
    host = next(h for h in site.hosts if sum(c.node == h for c in site.cards.values()) > 1)
    node = json.loads(site.kubectl("get", "node", host, "-o", "json"))
    link = node["metadata"]["annotations"][TOPOLOGY].split(";")[0].split(",")[1]
    ask = Ask(2, SLICE.cores, SLICE.memory_gib)
    seen, _ = site.run("pairs", ask, "topology", {BANDWIDTH: link})
    theirs = {uuid for uuid, card in site.cards.items() if card.node == host}
    assert all(set(one.uuids) == theirs for one in seen), (link, [one.uuids for one in seen])


def test_a_best_effort_slice_joins_cores_that_are_all_promised(site: Site) -> None:
    """Neither the scheduler nor the kubelet's count of vgpu-cores keeps it off."""
    host = next(h for h in site.hosts if sum(c.node == h for c in site.cards.values()) == 1)
    (card,) = (uuid for uuid, one in site.cards.items() if one.node == host)
    left = Ask(1, FULL_CORES - site.cores_held()[card], 4)
    asks = {"promised": (left, {}), "idle": (Ask(1, 0, 1), {CLASS: "best-effort"})}
    for name, (ask, notes) in asks.items():
        site.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": name}, "annotations": notes},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": host},
                    "terminationGracePeriodSeconds": 0,
                    "containers": [container(ask, {})],
                },
            }
        )
        (one,) = site.seen(f"app={name}", 1, ask)
        assert one.uuids == [card]
    assert site.cores_held()[card] == FULL_CORES
