# SPDX-License-Identifier: GPL-3.0-or-later
"""Time: what kernels, events, streams and several processes do to each other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from simulators.simnode import Node
from simulators.tests.cudriver import NOT_READY
from simulators.tests.harness import Tenant, ledger

MS = 1_000_000
Start = Callable[..., Tenant]


def test_events_tell_a_kernel_s_time(node: Node, tenant: Start) -> None:
    seen = tenant(node, "events", 5 * MS, 20).says()
    assert seen["unrecorded"] == 0
    assert seen["at_once"] == NOT_READY and seen["too_early"] == NOT_READY
    assert seen["after"] == 0
    # exactly the kernels; what is more is the time the first launch took to be submitted
    assert 100 <= seen["elapsed_ms"] < 103
    assert 99 * MS < seen["wall_ns"] < 120 * MS
    assert ledger(node, "--dead")[0]["busy_ns"] == 100 * MS + 1000


def test_waiting_costs_no_cpu(node: Node, tenant: Start) -> None:
    one = tenant(node, "events", 1000 * MS, 2).says()
    base = tenant(node, "events", 1, 1).says()
    assert one["cpu_s"] - base["cpu_s"] < 0.1


def test_a_stream_waits_for_its_own_work_and_for_events(node: Node, tenant: Start) -> None:
    seen = tenant(node, "streams").says()
    assert seen["busy"] == NOT_READY
    assert seen["idle"] == 0
    assert seen["dependent"] == NOT_READY
    assert 40 * MS < seen["waited_ns"] < 70 * MS
    assert seen["after"] == 0


def test_the_launch_queue_takes_1024_and_then_blocks(node: Node, tenant: Start) -> None:
    returned = tenant(node, "queue", 1 * MS, 1100).says()["returned_ns"]
    assert returned[1000] < 900 * MS
    # The 1100th launch has a place only when 76 kernels of 1 ms are done.
    assert returned[1099] >= 76 * MS


def flood(node: Node, tenant: Start, kernels_ms: tuple[float, ...], seconds: float) -> list[float]:
    """Shares of the card that tenants with full queues got, in percent."""
    tenants = [tenant(node, "flood", int(ms * MS), seconds) for ms in kernels_ms]
    pids = [one.says()["pid"] for one in tenants]
    before = {entry["pid"]: entry["busy_ns"] for entry in ledger(node)}
    for one in tenants:
        one.go()
    time.sleep(seconds * 0.9)
    busy = {entry["pid"]: entry["busy_ns"] - before.get(entry["pid"], 0) for entry in ledger(node)}
    total = sum(busy[pid] for pid in pids)
    # The card was never idle: what was used is the time that passed.
    assert total > 0.85 * seconds * 1000 * MS
    return [100 * busy[pid] / total for pid in pids]


def test_two_equal_tenants_get_half_each(node: Node, tenant: Start) -> None:
    for share in flood(node, tenant, (5, 5), 2.0):
        assert abs(share - 50) <= 3


def test_shares_do_not_depend_on_the_length_of_kernels(node: Node, tenant: Start) -> None:
    for share in flood(node, tenant, (300, 5, 40), 2.0):
        assert abs(share - 100 / 3) <= 3


def test_a_long_kernel_of_another_delays_by_slices(node: Node, tenant: Start) -> None:
    alone = tenant(node, "latency", 1 * MS, 50)
    alone.says()
    alone.go()
    quiet = alone.says()
    assert quiet["median_ns"] < 2 * MS
    neighbour = tenant(node, "flood", 300 * MS, 3)
    neighbour.says()
    neighbour.go()
    time.sleep(0.2)
    beside = tenant(node, "latency", 1 * MS, 50)
    beside.says()
    beside.go()
    # One slice of the neighbour's before each kernel; a busy machine may add a little.
    assert beside.says()["median_ns"] < quiet["median_ns"] + 3 * MS


def test_cards_do_not_disturb_each_other(node_of: Callable[..., Node], tenant: Start) -> None:
    node = node_of("a100-40g", "t4")
    first = tenant(node, "flood", 5 * MS, 1.0)
    first.says()
    first.go()
    time.sleep(0.8)
    assert [entry["uuid"] for entry in ledger(node)] == [node.uuids[0]]


def test_an_idle_node_uses_no_cpu(node: Node, tenant: Start) -> None:
    tenant(node, "hold", 1, 3600 * 1000 * MS).says()

    def ticks() -> int:
        fields = Path(f"/proc/{node.pid()}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 1


def test_the_killing_of_tenants_harms_nobody(node: Node, tenant: Start) -> None:
    """SIGKILLs at any instruction; the survivor's kernels keep their time."""
    survivor = tenant(node, "flood", 1 * MS, 60)
    survivor.says()
    survivor.go()
    for round_ in range(4):
        victims = [tenant(node, "flood", 20_000, 60) for _ in range(6)]
        for victim in victims:
            victim.says()
            victim.go()
        for victim, pause in zip(victims, itertools.cycle((0.013, 0.029, 0.0)), strict=False):
            time.sleep(pause + round_ / 1000)
            victim.end()
    time.sleep(0.1)
    left = ledger(node)
    assert [entry["pid"] for entry in left] == [survivor.process.pid]
    begin, busy = time.monotonic(), left[0]["busy_ns"]
    time.sleep(0.5)
    used = ledger(node)[0]["busy_ns"] - busy
    assert 0.8 < used / 1e9 / (time.monotonic() - begin) <= 1.1
