# SPDX-License-Identifier: Apache-2.0
"""Many limited processes that are killed, fork and exec at any instruction: afterwards the ledger
says what the card says, nothing is stuck, nothing is lost, and nobody was ended by the library."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import Any

import pytest
import xpu_rough
from simulators import simnode
from xpu_slice import GIB, Slice

WORKERS = 64
OUT_OF_MEMORY = 2
LAUNCHES = 20  # of each process of crowd.cc
QUOTA = 2 * GIB  # less than they ask for together, so that most of the time some are refused


def by_the_card(node: simnode.Node) -> dict[int, tuple[int, int]]:
    """What each living process holds and once held of the card, by the referee."""
    listed = json.loads(node.run("simgpu", "ledger", "--json"))["processes"]
    return {one["pid"]: (one["memory_bytes"], one["memory_peak_bytes"]) for one in listed}


def context_bytes(sim: Slice, node: simnode.Node) -> int:
    """What the card takes for a context alone."""
    process = xpu_rough.start(sim, "crowd", 1, 0)
    answer(process)
    ((held, _),) = by_the_card(node).values()
    xpu_rough.finish(process, "\n")
    return held


def answer(process: subprocess.Popen[str]) -> Any:
    """The next line of a program, which must come."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended with {process.wait()}"
    return json.loads(line)


@pytest.mark.parametrize("events", [240, pytest.param(10_000, marks=pytest.mark.soak)])
def test_storm_of_kills_forks_and_execs(sim: Slice, node: simnode.Node, events: int) -> None:
    sim.grant(cores_percent=50, memory_bytes=QUOTA)
    context = context_bytes(sim, node)
    process = xpu_rough.start(sim, "storm", "supervise", WORKERS, events, 4711)
    done = answer(process)
    assert done["kills"] + done["forks"] + done["execs"] == events
    held = {int(pid): size for pid, size in done["held"].items()}
    card = {pid: memory - context for pid, (memory, _) in by_the_card(node).items()}
    assert len(held) == WORKERS
    assert card == held, "the card and the tenants agree"
    slots = {slot.pid: slot.memory_bytes[0] for slot in sim.living()}
    assert {pid: slots.get(pid, 0) for pid in held} == held, "the slice's ledger is exact"
    xpu_rough.finish(process, "\n")
    assert by_the_card(node) == {}
    assert_all_free(sim)


def test_an_exec_leaves_nothing_to_the_next_program(sim: Slice, node: simnode.Node) -> None:
    """It holds nothing from its first moment on, also in the slot that nobody has cleared yet."""
    sim.grant(memory_bytes=QUOTA)
    process = xpu_rough.start(sim, "storm", "worker", 4711)
    while not any(slot.memory_bytes[0] for slot in sim.living()):
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)  # obeyed by the new program, before it allocates anything
    assert process.stdout is not None
    assert process.stdout.readline().split() == [str(process.pid), "0"]
    assert [slot.pid for slot in sim.ledger().processes] == [process.pid]
    assert sim.living() == ()
    process.send_signal(signal.SIGINT)
    assert process.wait(xpu_rough.HANGS_SECONDS) == 0
    assert_all_free(sim)


def assert_all_free(sim: Slice) -> None:
    """Whoever comes next gets the whole quota; nobody else is in the ledger then."""
    process = xpu_rough.start(sim, "crowd", 1, QUOTA)
    assert answer(process) == {"granted": [0]}
    ledger = sim.ledger()
    assert [slot.memory_bytes[0] for slot in ledger.processes] == [QUOTA]
    assert ledger.cards[0].memory_bytes == QUOTA
    xpu_rough.finish(process, "\n")


def test_many_processes_that_start_at_once(sim: Slice, node: simnode.Node) -> None:
    """Each has its slot and its part of the quota, to the byte; all are held back together."""
    sim.grant(cores_percent=10, memory_bytes=QUOTA, tau_ns=20_000_000)
    process = xpu_rough.start(sim, "crowd", WORKERS, QUOTA // WORKERS)
    assert answer(process) == {"granted": [0] * WORKERS}
    slots = sim.ledger().processes
    assert len({slot.index for slot in slots}) == len({slot.pid for slot in slots}) == WORKERS
    assert {slot.memory_bytes[0] for slot in slots} == {QUOTA // WORKERS}
    assert set(by_the_card(node)) == {slot.pid for slot in slots}
    late = xpu_rough.start(sim, "crowd", 1, 2 << 20)
    assert answer(late) == {"granted": [OUT_OF_MEMORY]}
    xpu_rough.finish(late, "\n")
    xpu_rough.finish(process, "\n")
    card = sim.ledger().cards[0]
    assert card.launches == (WORKERS + 1) * LAUNCHES
    assert card.throttled_ns > 0
    assert_all_free(sim)
