# SPDX-License-Identifier: GPL-3.0-or-later
"""Slices are given out right while many pods of every kind ask at once and what gives them dies.

Judged is what each container sees from inside (``workload/witness.py``), against what it asked for,
against every other container's, and against the node ledgers. The soak form has a hundred pods on a
testbed of its own, a hundred kills, and what takes minutes: reboots, lost nodes and cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from e2e import faults, referee
from e2e.conftest import Demo
from e2e.load import Crowd, cards_of, hosts_with_cards, ledgers
from e2e.mixed import SHAPES, Fate, Pod, crowd
from e2e.platform import ROOT, Platform
from e2e.referee import Card
from e2e.site import standing

SCHEDULERS = ("default-scheduler", "volcano")
STAYING = tuple(shape for shape in SHAPES if shape.fate is Fate.STAYS and shape.pinned is None)
LOOKED_AT_AGAIN = 6


@dataclass(frozen=True)
class Load:
    """A crowd that has settled, and how much of everything this form of the test does."""

    pods: Crowd
    hosts: tuple[str, ...]
    cards: dict[str, Card]
    kills: int
    # Whether the admission webhook sees the pods: then volcano schedules all of them.
    seen: bool

    @property
    def platform(self) -> Platform:
        return self.pods.platform

    def findings(self) -> list[str]:
        """All that is wrong, once the pods have settled."""
        seen = self.pods.settle().seen
        alive = self.pods.alive()
        running = [one for one in seen if (one.uid, one.container) in alive and one.uuids]
        ledger = ledgers(self.platform, self.hosts)
        return [
            *referee.wrong_cards(seen, self.cards),
            *referee.given_twice(seen, self.cards),
            *referee.overbooked(ledger, self.cards),
            *referee.unlike_the_ledger(running, ledger),
        ]

    def wait_for_no_leak(self) -> None:
        """Two looks of the plugin after a container's end its slice must be gone."""

        def leaked() -> list[str]:
            return referee.leaked(ledgers(self.platform, self.hosts), self.pods.alive())

        faults.wait_for(lambda: not leaked(), "no slice outlives its container")

    def names(self, fate: Fate) -> list[str]:
        return [pod.name for pod in self.pods.pods.values() if pod.shape.fate is fate]

    def more(self, count: int, prefix: str) -> Sequence[Pod]:
        """Further pods, to be asked for while something breaks."""
        return crowd(count, self.hosts, SCHEDULERS, seen=self.seen, shapes=STAYING, prefix=prefix)


@dataclass(frozen=True)
class Form:
    """How much of everything, and in which namespace."""

    pods: int
    kills: int
    namespace: str = "mixed-load"


UNSEEN = "mixed-load-unseen"
FORMS = {
    "short": Form(pods=36, kills=len(faults.FAULTS)),
    "long": Form(pods=100, kills=100),
    # Without the webhook, and half of the pods without huawei-xpu.
    "long-unseen": Form(100, 20, UNSEEN),
}


LONG = [pytest.param(form, marks=pytest.mark.soak) for form in FORMS if form != "short"]
# What takes minutes.
long_forms = pytest.mark.parametrize("load", LONG, indirect=True, scope="module")


@pytest.fixture(scope="module")
def twelve_cards() -> Iterator[Platform]:
    """A testbed of the long forms, with a namespace that the webhook leaves alone."""
    values = {"gpupool_values": {"webhook": {"exemptNamespaces": ["kube-system", UNSEEN]}}}
    topology = ROOT / "tests" / "testbed" / "topologies" / "load.yaml"
    with standing("load", topology, values) as platform:
        yield platform


@pytest.fixture(scope="module", params=["short", *LONG])
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """A crowd that has settled: on the demo, in the long forms on twelve cards."""
    form = FORMS[request.param]
    if request.param == "short":
        demo: Demo = request.getfixturevalue("demo")
        platform = demo.platform
    else:
        platform = request.getfixturevalue("twelve_cards")
    hosts = tuple(hosts_with_cards(platform))
    pods = Crowd(platform, form.namespace)
    pods.open()
    try:
        seen = pods.seen_by_webhook()
        assert not (seen and form.namespace == UNSEEN)
        pods.submit(crowd(form.pods, hosts, SCHEDULERS, seen=seen))
        pods.settle()
        yield Load(pods, hosts, cards_of(platform, hosts), form.kills, seen)
    finally:
        pods.close()


def test_each_container_has_the_cards_it_asked_for_and_no_card_is_given_twice(load: Load) -> None:
    assert load.findings() == []
    load.wait_for_no_leak()


def test_the_refused_are_told_why_in_an_event(load: Load) -> None:
    refused = load.pods.settle().refused
    assert sorted(refused) == sorted(load.names(Fate.REFUSED))
    assert {load.pods.pods[name].shape.name for name in refused} == {
        shape.name for shape in SHAPES if shape.where(load.seen).fate is Fate.REFUSED
    }


def test_kills_at_random_leave_nothing_wrong_and_running_containers_running(load: Load) -> None:
    before = load.pods.running()
    assert before

    def ask_for_more(kill: int) -> None:
        if kill % 2 == 0:
            newcomers = load.more(2, f"k{kill}x")
            load.pods.submit(newcomers)
            load.pods.settle()
            load.pods.delete([pod.name for pod in newcomers])

    done = faults.random_kills(load.platform, load.hosts, load.kills, seed=6, between=ask_for_more)
    faults.healthy(load.pods, load.hosts)
    assert load.findings() == [], done
    after = load.pods.running()
    assert {owner: after.get(owner) for owner in before} == before, done
    some = load.names(Fate.STAYS)[:LOOKED_AT_AGAIN]
    assert referee.wrong_cards(load.pods.look_again(some), load.cards) == [], done
    load.wait_for_no_leak()


def test_an_upgrade_of_the_plugin_under_load_disturbs_nobody(load: Load) -> None:
    before = load.pods.running()
    newcomers = load.more(6, "up")
    load.pods.submit(newcomers)
    faults.upgrade_plugin(load.platform)
    assert load.findings() == []
    after = load.pods.running()
    assert {owner: after.get(owner) for owner in before} == before
    load.pods.delete([pod.name for pod in newcomers])
    load.wait_for_no_leak()


@long_forms
def test_a_node_that_reboots_undrained_gives_out_its_cards_right_again(load: Load) -> None:
    host = load.hosts[0]
    faults.reboot(load.platform, load.pods, host)
    faults.healthy(load.pods, load.hosts)
    assert load.findings() == []
    load.wait_for_no_leak()


@long_forms
def test_a_card_that_is_lost_keeps_its_slices_and_comes_back(load: Load) -> None:
    host = load.hosts[0]
    ledger = ledgers(load.platform, load.hosts)
    lost = next(
        load.cards[share.uuid]
        for shares in ledger.values()
        for share in shares
        if load.cards[share.uuid].node == host
    )
    holders = {owner for owner, held in ledger.items() if lost.uuid in [s.uuid for s in held]}
    before = load.pods.running()
    device = f"/dev/nvidia{lost.minor}"
    load.platform.on_host(host, "mv", device, "/dev/lost")
    try:
        faults.upgrade_plugin(load.platform)
        newcomers = load.more(4, "lost")
        load.pods.submit(newcomers)
        assert load.findings() == []
        assert not [
            one for one in load.pods.settle().seen
            if one.pod.startswith("lost") and lost.uuid in one.uuids
        ]  # fmt: skip
        kept = ledgers(load.platform, load.hosts)
        assert holders <= {o for o, held in kept.items() if lost.uuid in [s.uuid for s in held]}
    finally:
        load.platform.on_host(host, "mv", "/dev/lost", device)
    faults.upgrade_plugin(load.platform)
    load.pods.delete([pod.name for pod in newcomers])
    assert load.findings() == []
    after = load.pods.running()
    assert {owner: after.get(owner) for owner in before} == before


@long_forms
def test_a_node_deleted_and_added_again_starts_with_empty_cards(load: Load) -> None:
    host = load.hosts[-1]
    there = [one.pod for one in load.pods.settle().seen if one.node == host]
    faults.delete_and_add_node(load.platform, load.pods, host)
    load.pods.delete(sorted(set(there) & set(load.pods.pods)))
    faults.healthy(load.pods, load.hosts)
    load.wait_for_no_leak()
    load.pods.submit(load.more(6, "back"))
    assert load.findings() == []


def test_nothing_is_left_when_the_pods_are_gone(load: Load) -> None:
    load.pods.close()
    load.wait_for_no_leak()
    uids = {pod["metadata"]["uid"] for pod in load.pods.every_pod()}
    for host in load.hosts:
        for directory in ("/etc/xpu", "/run/xpu/pods"):
            left = load.platform.on_host(host, "ls", directory).output.split()
            assert set(left) <= uids, json.dumps(left)
