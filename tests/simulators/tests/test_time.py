# SPDX-License-Identifier: GPL-3.0-or-later
"""Time: what kernels, events, streams and several processes do to each other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulators.simnode import Node
from simulators.tests.cudriver import NOT_READY
from simulators.tests.harness import Tenant, await_ledger, ledger, queue_up, reading

MS = 1_000_000
Start = Callable[..., Tenant]


def test_events_tell_a_kernel_s_time(node: Node, tenant: Start) -> None:
    seen = tenant(node, "events", 5 * MS, 20).says()
    assert seen["unrecorded"] == 0
    assert seen["at_once"] == NOT_READY and seen["too_early"] == NOT_READY
    assert seen["after"] == 0
    # The kernels, and at most the time their submission took: the card may have waited for it.
    assert 100 <= seen["elapsed_ms"] <= 100 + seen["submission_ns"] / MS
    assert seen["wall_ns"] >= 100 * MS
    assert ledger(node, "--dead")[0]["busy_ns"] == 100 * MS + 1000


def test_waiting_costs_no_cpu(node: Node, tenant: Start) -> None:
    one = tenant(node, "events", 250 * MS, 2).says()
    base = tenant(node, "events", 1, 1).says()
    # CPU time, not wall time: half a second of polling would be half a second of it.
    assert one["cpu_s"] - base["cpu_s"] < 0.1


def test_a_stream_waits_for_its_own_work_and_for_events(node: Node, tenant: Start) -> None:
    seen = tenant(node, "streams").says()
    assert seen["busy"] == NOT_READY
    assert seen["idle"] == 0
    assert seen["dependent"] == NOT_READY
    assert (seen["done"], seen["after"]) == (0, 0)


def test_the_launch_queue_takes_1024_and_then_blocks(node: Node, tenant: Start) -> None:
    full = tenant(node, "full_queue")
    assert full.says()["launched"] == 1024
    assert full.says()["waits"]


def test_a_blocked_launch_goes_on_when_there_is_a_place(node: Node, tenant: Start) -> None:
    # The 1100th launch has a place only when 76 kernels of 1 ms are done.
    assert tenant(node, "queue", 1 * MS, 1100).says()["last_returned_ns"] >= 76 * MS


def shares(node: Node, tenant: Start, kernels_ms: tuple[int, ...]) -> list[float]:
    """Shares of the card over half a second, in percent, of tenants with work for ten seconds.

    All of it is queued before: the figures depend on the card alone, not on who gets a processor.
    """
    tenants = [tenant(node, "backlog", ms * MS, 10_000 // ms) for ms in kernels_ms]
    pids = queue_up(tenants)
    before = reading(node)
    time.sleep(0.5)
    after = reading(node)
    used = [busy(after, pid) - busy(before, pid) for pid in pids]
    # Not a moment idle: nobody ran out of work.
    assert sum(used) == after["monotonic_ns"] - before["monotonic_ns"]
    return [100 * one / sum(used) for one in used]


def busy(seen: dict[str, Any], pid: int) -> int:
    (found,) = [entry["busy_ns"] for entry in seen["processes"] if entry["pid"] == pid]
    return int(found)


def test_two_equal_tenants_get_half_each(node: Node, tenant: Start) -> None:
    # half a point is a slice of 2 ms more or less at each end
    assert shares(node, tenant, (10, 10)) == pytest.approx([50, 50], abs=1)


def test_shares_do_not_depend_on_the_length_of_kernels(node: Node, tenant: Start) -> None:
    assert shares(node, tenant, (250, 10, 40)) == pytest.approx([100 / 3] * 3, abs=1)


def test_a_long_kernel_of_another_delays_by_slices(node: Node, tenant: Start) -> None:
    queue_up([tenant(node, "backlog", 300 * MS, 100)])
    beside = tenant(node, "latency", 1 * MS, 20)
    beside.says()
    beside.go()
    # One slice of the neighbour's (2 ms) before the kernel, never the rest of 300 ms. The least of
    # 20, since any of them may also wait for a processor.
    assert 1 <= beside.says()["least_wall_ms"] < 1 + 2 + 1


def test_cards_do_not_disturb_each_other(node_of: Callable[..., Node], tenant: Start) -> None:
    node = node_of("a100-40g", "t4")
    queue_up([tenant(node, "backlog", 5 * MS, 20)])
    assert [entry["uuid"] for entry in ledger(node)] == [node.uuids[0]]


def test_an_idle_node_uses_no_cpu(node: Node, tenant: Start) -> None:
    tenant(node, "hold", 1, 3600 * 1000 * MS).says()

    def ticks() -> int:
        fields = Path(f"/proc/{node.pid()}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 1


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_the_killing_of_tenants_harms_nobody(node: Node, tenant: Start, rounds: int) -> None:
    """SIGKILLs at any instruction; the survivor's kernels keep their time."""
    survivor = tenant(node, "backlog", 1000 * MS, 1000)
    queue_up([survivor])
    for round_ in range(rounds):
        victims = [tenant(node, "flood", 20_000, 60) for _ in range(6)]
        for victim in victims:
            victim.says()
            victim.go()
        for victim, pause in zip(victims, itertools.cycle((0.013, 0.029, 0.0)), strict=False):
            time.sleep(pause + round_ / 1000)
            victim.end()
    await_ledger(node, lambda found: [entry["pid"] for entry in found] == [survivor.process.pid])
    before = reading(node)
    time.sleep(0.2)
    after = reading(node)
    used = after["processes"][0]["busy_ns"] - before["processes"][0]["busy_ns"]
    assert used == after["monotonic_ns"] - before["monotonic_ns"]


def test_event_jitter_is_a_setting(
    node: Node, tenant: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMGPU_EVENT_JITTER_NS", str(10_000 * MS))
    seen = tenant(node, "stamps", 50).says()
    assert seen["spans"] == seen["again"], "an event has one time stamp"
    # Spans of microseconds become some of seconds, and none is further off than twice the setting.
    assert 2000 < max(seen["spans"]) < 20_000 + 10_000
    assert min(seen["spans"]) >= 0


def test_who_waits_for_the_event_of_a_process_that_dies_goes_on(node: Node, tenant: Start) -> None:
    owner = tenant(node, "share_event", 3600 * 1000 * MS)
    waiter = tenant(node, "await_event", owner.says()["handle"])
    assert waiter.says()["before"] == NOT_READY
    owner.end()
    assert waiter.says()["after"] == 0
