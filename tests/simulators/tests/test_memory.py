# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what is charged, when it runs out, and that the dead keep none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from simulators.simnode import Node
from simulators.tests.cudriver import OUT_OF_MEMORY
from simulators.tests.harness import Tenant, await_ledger, ledger

MIB = 1 << 20
Start = Callable[..., Tenant]
# of profile a100-40g
TOTAL = (40960 - 624) * MIB
CONTEXT = 414 * MIB


def await_held(node: Node, held: list[int]) -> None:
    """Wait until the card's processes hold just this."""
    await_ledger(node, lambda found: [entry["memory_bytes"] for entry in found] == held)


def test_one_process(node: Node, tenant: Start) -> None:
    seen = tenant(node, "memory").says()
    assert seen["total"] == TOTAL
    assert seen["free"] == TOTAL - CONTEXT
    assert seen["small_cost"] == 2 * MIB
    assert seen["large_cost"] == 4 * MIB
    assert seen["same"] and seen["word"] == "0403020104030201"
    assert seen["beyond"] == 1 and seen["twice"] == 1
    assert seen["free_after"] == seen["free"]


def test_the_card_s_memory_ends(node: Node, tenant: Start) -> None:
    most = (TOTAL - CONTEXT) // MIB
    assert tenant(node, "hold", most + 2).says()["code"] == OUT_OF_MEMORY
    await_held(node, [])
    assert tenant(node, "hold", most - most % 2).says()["code"] == 0


def test_processes_share_the_card_s_memory_and_the_dead_keep_none(
    node: Node, tenant: Start
) -> None:
    first = tenant(node, "hold", 20000)
    assert first.says()["code"] == 0
    await_held(node, [20000 * MIB + CONTEXT])
    assert tenant(node, "hold", 20000).says()["code"] == OUT_OF_MEMORY
    first.end()
    await_held(node, [])
    assert tenant(node, "hold", 20000).says()["code"] == 0
    (dead,) = [entry for entry in ledger(node, "--dead") if entry["pid"] == first.process.pid]
    assert dead["memory_peak_bytes"] == 20000 * MIB + CONTEXT and not dead["alive"]


def test_a_killed_process_frees_the_card_for_others(node: Node, tenant: Start) -> None:
    """Its kernel of an hour is gone with it, and who waited behind it goes on."""
    hog = tenant(node, "hold", 100, 3600 * 10**9)
    hog.says()
    other = tenant(node, "latency", 200_000_000, 1)
    other.says()
    (alone,) = [entry["busy_ns"] for entry in ledger(node) if entry["pid"] == hog.process.pid]
    other.go()
    await_ledger(node, lambda found: sum(entry["busy_ns"] > 0 for entry in found) == 2)
    hog.end()
    seen = other.says()
    (dead,) = [entry for entry in ledger(node, "--dead") if entry["pid"] == hog.process.pid]
    assert not dead["alive"]
    # Its own kernel, what the hog ran beside it while it lived, and what submission took. Had the
    # hog's queue stayed, it would be twice the kernel.
    shared_ms = (dead["busy_ns"] - alone) / 1e6
    assert 200 <= seen["most_ms"] <= 200 + shared_ms + seen["submission_ms"] + 0.1


def test_a_forked_child_cannot_use_the_driver_and_keeps_nothing(node: Node, tenant: Start) -> None:
    parent = tenant(node, "fork")
    said = [parent.says(), parent.says()]
    (child,) = [line for line in said if line["child"]]
    (own,) = [line for line in said if not line["child"]]
    assert child["code"] == child["init"] == 3  # CUDA_ERROR_NOT_INITIALIZED
    assert own["code"] == 0
    await_held(node, [64 * MIB + CONTEXT])
    parent.end()
    try:
        await_held(node, [])
    finally:
        os.kill(own["other"], signal.SIGKILL)


def test_memory_of_another_api_is_mapped_and_not_charged(node: Node, tenant: Start) -> None:
    said = tenant(node, "external", 4 * MIB).says()
    assert (said["refused"], said["outside"], said["cost"]) == (1, 1, 0)
    assert said["written"] == "0909090900"
