# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what is charged, when it runs out, and that the dead keep none."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from simulators.simnode import Node
from simulators.tests.cudriver import OUT_OF_MEMORY
from simulators.tests.harness import Tenant, ledger

MIB = 1 << 20
Start = Callable[..., Tenant]
# of profile a100-40g
TOTAL = (40960 - 624) * MIB
CONTEXT = 414 * MIB


def await_ledger(node: Node, held: list[int]) -> None:
    """The daemon hears of a death after it has happened; a second is long."""
    deadline = time.monotonic() + 1
    while (found := [entry["memory_bytes"] for entry in ledger(node)]) != held:
        assert time.monotonic() < deadline, f"{found} bytes held, wanted {held}"
        time.sleep(0.01)


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
    await_ledger(node, [])
    assert tenant(node, "hold", most - most % 2).says()["code"] == 0


def test_processes_share_the_card_s_memory_and_the_dead_keep_none(
    node: Node, tenant: Start
) -> None:
    first = tenant(node, "hold", 20000)
    assert first.says()["code"] == 0
    await_ledger(node, [20000 * MIB + CONTEXT])
    assert tenant(node, "hold", 20000).says()["code"] == OUT_OF_MEMORY
    first.end()
    await_ledger(node, [])
    assert tenant(node, "hold", 20000).says()["code"] == 0
    (dead,) = [entry for entry in ledger(node, "--dead") if entry["pid"] == first.process.pid]
    assert dead["memory_peak_bytes"] == 20000 * MIB + CONTEXT and not dead["alive"]


def test_a_killed_process_frees_the_card_for_others(node: Node, tenant: Start) -> None:
    """Its kernel of an hour is gone with it, and who waited behind it goes on."""
    hog = tenant(node, "hold", 100, 3600 * 10**9)
    hog.says()
    other = tenant(node, "latency", 500_000_000, 1)
    other.says()
    other.go()
    time.sleep(0.1)
    hog.end()
    # Sharing with the hog it would take a second.
    assert other.says()["worst_ns"] < 800_000_000


def test_a_forked_child_cannot_use_the_driver_and_keeps_nothing(node: Node, tenant: Start) -> None:
    parent = tenant(node, "fork")
    said = [parent.says(), parent.says()]
    (child,) = [line for line in said if line["child"]]
    (own,) = [line for line in said if not line["child"]]
    assert child["code"] == child["init"] == 3  # CUDA_ERROR_NOT_INITIALIZED
    assert own["code"] == 0
    await_ledger(node, [64 * MIB + CONTEXT])
    parent.end()
    try:
        await_ledger(node, [])
    finally:
        os.kill(own["other"], signal.SIGKILL)
