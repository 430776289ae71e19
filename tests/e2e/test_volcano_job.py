# SPDX-License-Identifier: GPL-3.0-or-later
"""A Volcano Job of four slices is placed by each policy as the policy says, or not at all.

Judged by the cards that the pods themselves see (``workload/witness.py``), on the demo's three
cards of two nodes. Slices of others that are there already count with what they hold.
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
# Four of them take 80 % of a card, beside the 20 % of a demo that is being looked at.
SLICE = Ask(1, 20, 2)


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

    def remove(self, kind: str, name: str, selector: str) -> None:
        """Delete, and wait until the slices are given back: they would be in the next one's way."""
        uids = {pod["metadata"]["uid"] for pod in self.pods(selector)}
        self.kubectl("delete", kind, name, "--wait=true", f"--timeout={PATIENCE_S}s")
        wait_for(
            lambda: (
                not uids & {uid for uid, _ in ledgers(self.platform, self.hosts)}
                and not self.pods(selector)
            ),
            f"{kind} {name} has given its slices back",
        )


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


def gang(
    name: str, ask: Ask, notes: Mapping[str, str], more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A Volcano Job of four pods that start together or not at all."""
    template = {
        "metadata": {"annotations": dict(notes)},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [container(ask, more or {})],
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


@pytest.fixture
def placed(site: Site) -> Iterator[Any]:
    """Runs a gang; answers what its pods saw and what cards held before. Removes it at the end."""
    names: list[str] = []

    def run(
        name: str, ask: Ask, notes: Mapping[str, str], more: Mapping[str, str] | None = None
    ) -> tuple[Sequence[Seen], Counter[str]]:
        before = site.cores_held()
        names.append(name)
        site.create(gang(name, ask, notes, more))
        running = "jsonpath={.status.state.phase}=Running"
        site.kubectl("wait", JOB, name, f"--for={running}", f"--timeout={PATIENCE_S}s")
        return site.seen(of(name), SLICES, ask), before

    yield run
    for name in names:
        site.remove(JOB, name, of(name))


def of(job: str) -> str:
    return f"volcano.sh/job-name={job}"


def on_cards(seen: Sequence[Seen]) -> Counter[str]:
    return Counter(uuid for one in seen for uuid in one.uuids)


@pytest.mark.parametrize("policy", ["binpack", "topology"])
def test_slices_of_one_card_fill_the_fullest_card_that_fits(policy: str, placed: Any) -> None:
    seen, before = placed(policy, SLICE, {POLICY: policy})
    (card,) = on_cards(seen)
    fits = {u: held for u, held in before.items() if held + SLICES * SLICE.cores <= FULL_CORES}
    assert before[card] == max(fits.values()), (card, before)


def test_spread_keeps_cards_even(site: Site, placed: Any) -> None:
    seen, before = placed("spread", SLICE, {POLICY: "spread"})
    came = on_cards(seen)
    after = {uuid: before[uuid] + came[uuid] * SLICE.cores for uuid in site.cards}
    assert max(after.values()) - min(after.values()) <= SLICE.cores, (before, after)


def test_topology_gives_a_container_of_two_cards_linked_ones(site: Site, placed: Any) -> None:
    host = next(h for h in site.hosts if sum(c.node == h for c in site.cards.values()) > 1)
    node = json.loads(site.kubectl("get", "node", host, "-o", "json"))
    link = node["metadata"]["annotations"][TOPOLOGY].split(";")[0].split(",")[1]
    seen, _ = placed("pairs", Ask(2, 20, 2), {POLICY: "topology"}, {BANDWIDTH: link})
    theirs = {uuid for uuid, card in site.cards.items() if card.node == host}
    assert all(set(one.uuids) == theirs for one in seen), (link, [one.uuids for one in seen])


def test_a_gang_that_does_not_fit_starts_nobody(site: Site) -> None:
    """By sums there is room for all four, by cards for one on each."""
    name, ask = "too-many", Ask(1, 60, 2)
    assert SLICES * ask.cores <= len(site.cards) * FULL_CORES - sum(site.cores_held().values())
    assert len(site.cards) < SLICES
    site.create(gang(name, ask, {}))

    def judged() -> bool:
        """The scheduler has looked at all four, and said of each why it waits."""
        pods = site.pods(of(name))
        return len(pods) == SLICES and all(
            any(one["type"] == "PodScheduled" and one["status"] == "False" for one in said)
            for said in (pod["status"].get("conditions") or () for pod in pods)
        )

    try:
        wait_for(judged, "Volcano has judged the gang")
        pods = site.pods(of(name))
        assert [pod["spec"].get("nodeName") for pod in pods] == [None] * SLICES
        said = json.dumps([pod["status"]["conditions"] for pod in pods])
        assert "gang unschedulable" in said, said
    finally:
        site.remove(JOB, name, of(name))


def test_a_best_effort_slice_joins_cores_that_are_all_promised(site: Site) -> None:
    """Neither the scheduler nor the kubelet's count of vgpu-cores keeps it off."""
    host = next(h for h in site.hosts if sum(c.node == h for c in site.cards.values()) == 1)
    (card,) = (uuid for uuid, one in site.cards.items() if one.node == host)
    left = Ask(1, FULL_CORES - site.cores_held()[card], 4)
    asks = {"promised": (left, {}), "idle": (Ask(1, 0, 1), {CLASS: "best-effort"})}
    try:
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
    finally:
        for name in asks:
            site.remove("pod", name, f"app={name}")
