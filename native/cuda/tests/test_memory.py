# SPDX-License-Identifier: Apache-2.0
"""Memory on a simulated card. The referee is the card's own ledger: what it gave, it gave.

At every instant: the referee's sum ≤ what is charged ≤ the quota. The referee is read while the
tenants work, so whatever they hold in between counts as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from simulators import simnode
from xpu_slice import HERE, Slice

MIB = 1 << 20
GRANULE = 2 * MIB
CONTEXT = 414 * MIB  # as the simulated A100 has it
POOL_STEP = 32 * MIB
QUOTA = 3072 * MIB + 4096  # not in whole granules
KINDS = (
    "plain", "pitch", "managed", "asynchronous", "freed_at_once", "pool", "physical", "array",
    "mipmap", "graph",
)  # fmt: skip


@dataclass
class Tenant:
    """A running memory_tenant.py."""

    process: subprocess.Popen[str]
    pid: int

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the tenant ended with {self.process.wait()}"
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        self.tell(*words)
        return self.hear()


@dataclass
class Place:
    """A slice and who works in it."""

    slice: Slice
    node: simnode.Node
    ends: ExitStack

    def tenant(self, seed: int = 0, *, begins: bool = True) -> Tenant:
        process = self.slice.start([sys.executable, HERE / "memory_tenant.py", str(seed)])
        self.ends.callback(process.communicate)
        assert process.stdout is not None
        tenant = Tenant(process, json.loads(process.stdout.readline())["pid"])
        if begins:
            assert tenant.ask("begin") == {"granted": True}
        return tenant

    def given(self, tenants: list[Tenant]) -> int:
        """Memory of the card that these processes hold, by the referee."""
        entries = json.loads(self.node.run("simgpu", "ledger", "--json"))["processes"]
        pids = {tenant.pid for tenant in tenants}
        return sum(entry["memory_bytes"] for entry in entries if entry["pid"] in pids)

    def charged(self) -> int:
        return sum(process.memory_bytes[0] for process in self.slice.ledger().processes)


@pytest.fixture
def place(sim: Slice, node: simnode.Node) -> Iterator[Place]:
    sim.grant(memory_bytes=QUOTA, context_bytes=CONTEXT)
    with ExitStack() as ends:
        yield Place(sim, node, ends)


def watch(place: Place, tenants: list[Tenant], over: threading.Event) -> list[int]:
    """The referee's sums until *over* is set."""
    seen = [place.given(tenants)]
    while not over.is_set():
        seen.append(place.given(tenants))
    return seen


def work(place: Place, tenants: list[Tenant], *what: object) -> list[int]:
    """All tenants do things by chance at once; what the referee saw meanwhile."""
    over = threading.Event()
    answers: list[Any] = []

    def listen() -> None:
        answers.extend(tenant.hear() for tenant in tenants)
        over.set()

    for tenant in tenants:
        tenant.tell(*what)
    listener = threading.Thread(target=listen)
    listener.start()
    seen = watch(place, tenants, over)
    listener.join()
    assert len(answers) == len(tenants), "a tenant got an answer that is neither yes nor no"
    assert all(answer["refused"] for answer in answers), "nobody came near the quota"
    assert all(answer["granted"] > 50 for answer in answers), "hardly anybody got anything"
    return seen


@pytest.mark.parametrize(
    ("seed", "things", "rounds"),
    [(1, 250, 2), *(pytest.param(seed, 1500, 6, marks=pytest.mark.soak) for seed in range(2, 8))],
)
def test_whatever_processes_do_they_stay_within_the_quota_and_leave_nothing(
    place: Place, seed: int, things: int, rounds: int
) -> None:
    tenants = [place.tenant(seed * 100 + number) for number in range(3)]
    for _ in range(rounds):
        seen = work(place, tenants, "random", things)
        assert max(seen) <= QUOTA
        assert place.given(tenants) <= place.charged() <= QUOTA
    for tenant in tenants:
        tenant.ask("clear")
    assert (place.given(tenants), place.charged()) == (3 * CONTEXT, 3 * CONTEXT)
    for tenant in tenants:
        tenant.ask("end")
    assert (place.given(tenants), place.charged()) == (0, 0)


@pytest.mark.parametrize("things", [150, pytest.param(3000, marks=pytest.mark.soak)])
def test_threads_of_processes_stay_within_the_quota_and_leave_nothing(
    place: Place, things: int
) -> None:
    tenants = [place.tenant(number) for number in range(2)]
    seen = work(place, tenants, "threads", 4, things)
    assert max(seen) <= QUOTA
    for tenant in tenants:
        tenant.ask("clear")
    assert (place.given(tenants), place.charged()) == (2 * CONTEXT, 2 * CONTEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_memory_is_charged_as_it_is_given(place: Place, kind: str) -> None:
    """Until nothing more is granted, then back to nothing; little is left over."""
    tenant = place.tenant()
    pieces, piece = 0, 100 * MIB + 12_345
    while piece >= 2 * GRANULE:
        if tenant.ask("take", kind, piece)["granted"]:
            pieces += 1
        else:
            piece //= 2
        assert place.given([tenant]) <= place.charged() <= QUOTA
    # The bound of an array has up to 7 rows too many, that of a mipmapped one in each level.
    too_much = {"array": 1, "mipmap": 4}.get(kind, 0) * pieces * GRANULE
    assert place.charged() - place.given([tenant]) <= too_much
    assert QUOTA - place.charged() < 2 * POOL_STEP + 4 * GRANULE
    tenant.ask("clear")
    assert (place.given([tenant]), place.charged()) == (CONTEXT, CONTEXT)
    assert tenant.ask("info") == {"free": QUOTA - CONTEXT, "total": QUOTA}


def test_small_allocations_are_charged_by_the_granules_they_share(place: Place) -> None:
    tenant = place.tenant()
    for _ in range(8):
        assert tenant.ask("take", "plain", 4096)["granted"]
    given, charged = place.given([tenant]), place.charged()
    assert given == CONTEXT + GRANULE
    assert CONTEXT + GRANULE <= charged < CONTEXT + 8 * GRANULE, "once, not eight times"
    tenant.ask("clear")
    assert place.charged() == CONTEXT


@pytest.mark.parametrize(("begin", "end"), [("begin", "end"), ("retain", "release")])
def test_a_context_is_charged_once_and_gives_back_what_ends_with_it(
    place: Place, begin: str, end: str
) -> None:
    tenant = place.tenant(begins=False)
    assert tenant.ask(begin) == {"granted": True}
    assert place.charged() == place.given([tenant]) == CONTEXT
    if begin == "retain":
        tenant.ask("retain")
        assert place.charged() == CONTEXT, "the second use of a primary context costs nothing"
        tenant.ask("release")
        assert place.charged() == CONTEXT
    tenant.ask("take", "plain", 100 * MIB)
    tenant.ask("take", "array", 100 * MIB)
    assert place.charged() > CONTEXT + 200 * MIB
    tenant.ask(end)
    assert place.charged() == place.given([tenant]) == 0


def test_a_context_that_does_not_fit_is_refused(place: Place) -> None:
    place.slice.regrant(memory_bytes=CONTEXT - 1, context_bytes=CONTEXT)
    tenant = place.tenant(begins=False)
    assert tenant.ask("begin") == {"granted": False}
    assert tenant.ask("retain") == {"granted": False}
    assert place.charged() == place.given([tenant]) == 0
    place.slice.regrant(memory_bytes=CONTEXT, context_bytes=CONTEXT)
    assert tenant.ask("begin") == {"granted": True}


def test_what_only_nvml_sees_counts_but_is_not_charged(place: Place) -> None:
    tenant = place.tenant()
    overhead = 500 * MIB
    place.slice.regrant(memory_bytes=QUOTA, context_bytes=CONTEXT, overhead_bytes=overhead)
    left = QUOTA - CONTEXT - overhead
    assert tenant.ask("info") == {"free": left, "total": QUOTA}
    assert place.charged() == CONTEXT
    assert not tenant.ask("take", "plain", left + 1)["granted"]
    assert tenant.ask("take", "plain", left // GRANULE * GRANULE)["granted"]
    place.slice.regrant(memory_bytes=QUOTA, context_bytes=CONTEXT, overhead_bytes=QUOTA + MIB)
    assert tenant.ask("info") == {"free": 0, "total": QUOTA}
    assert not tenant.ask("take", "plain", 1)["granted"]
    tenant.ask("drop")
    assert not tenant.ask("take", "plain", 1)["granted"], "overhead alone is more than the quota"


def test_what_a_pool_keeps_unused_makes_room_for_others(place: Place) -> None:
    tenant = place.tenant()
    room = (QUOTA - CONTEXT) // POOL_STEP * POOL_STEP
    assert tenant.ask("take", "asynchronous", room)["granted"]
    tenant.ask("drop")
    assert place.charged() >= room, "freed, but the pool has it until somebody synchronises"
    assert tenant.ask("take", "plain", room)["granted"], "it is given up before anything is refused"
    assert place.given([tenant]) <= QUOTA
    tenant.ask("drop")
    tenant.ask("take", "asynchronous", room)
    tenant.ask("drop")
    tenant.ask("synchronise")
    assert place.given([tenant]) == place.charged() == CONTEXT


def test_refusals_are_counted_once_each(place: Place) -> None:
    tenant = place.tenant()
    tenant.ask("take", "asynchronous", MIB)
    for kind in ("plain", "asynchronous", "pitch"):
        assert not tenant.ask("take", kind, QUOTA)["granted"]
    assert place.slice.ledger().cards[0].denied == 3


def test_what_exceeds_the_quota_becomes_memory_of_the_host_where_that_is_allowed(
    place: Place,
) -> None:
    tenant = place.tenant()
    place.slice.regrant(memory_bytes=QUOTA, context_bytes=CONTEXT, flags=2)
    assert tenant.ask("take", "plain", 2000 * MIB)["granted"]
    before = place.charged(), place.given([tenant])
    assert tenant.ask("take", "plain", 2000 * MIB)["granted"]
    assert (place.charged(), place.given([tenant])) == before, "it costs the card nothing"
    assert not tenant.ask("take", "physical", 2000 * MIB)["granted"], "other ways stay refused"
    place.slice.regrant(memory_bytes=QUOTA, context_bytes=CONTEXT)
    assert not tenant.ask("take", "plain", 2000 * MIB)["granted"], "off unless granted"
    tenant.ask("clear")
    assert place.charged() == place.given([tenant]) == CONTEXT
