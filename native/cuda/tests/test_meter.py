# SPDX-License-Identifier: Apache-2.0
"""Modes, launch functions and life cycles under the compute limit.

As in test_sim.py the simulated card's ledger is the referee, and nothing is judged by a stopwatch.
Where a test says how much was *charged*, the slice's own account is what is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xpu_pages
from simulators import simnode
from xpu_pages import PAUSED, CardConfig
from xpu_referee import (
    HANGS_SECONDS,
    NO_BURST,
    SPIN,
    assert_share,
    await_work,
    busy_ns,
    load,
    referee,
)
from xpu_slice import HERE, Slice, make_slice
from xpubuild.toolchain import run, zig_cc

MS = 1_000_000
PERCENT = 1 << 16
TENANT = [sys.executable, str(HERE / "meter_tenant.py")]


def scenario(within: Slice, name: str, *arguments: object, **more: str) -> Any:
    """Run a scenario in the slice to its end; what it reports."""
    done = subprocess.run(
        [*TENANT, name, *map(str, arguments)],
        env={**within.environment, **more},
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
    )
    assert done.returncode == 0, f"{name} exited {done.returncode}: {done.stderr}"
    return json.loads(done.stdout) | {"stderr": done.stderr}


def launches(within: Slice) -> int:
    return within.ledger().cards[0].launches


def charged_ns(within: Slice) -> int:
    return within.ledger().cards[0].charged_ns


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "effective", "percent"),
    [("hard", 60, 20), ("hard", 10, 10), ("elastic", 60, 60), ("priority", 60, 60)],
)
def test_the_share_in_force_is_the_mode_s(
    sim: Slice, node: simnode.Node, free_port: int, mode: str, effective: int, percent: int
) -> None:
    sim.grant(cores_percent=20, mode=mode, effective_q16=effective * PERCENT, **NO_BURST)
    with load(sim, free_port, 10_000) as pid:
        await_work(node, [pid], 50 * MS)
        assert_share(node, [pid], percent, 2.0)


def test_a_paused_slice_starts_nothing_and_is_charged_nothing(
    sim: Slice, node: simnode.Node, free_port: int
) -> None:
    grant = {"cores_percent": 50, "mode": "priority", **NO_BURST}
    sim.grant(**grant)
    with load(sim, free_port, 1_000) as pid:
        await_work(node, [pid], 10 * MS)
        sim.regrant(**grant, flags=PAUSED)
        # Who was past the question when the flag came launches once more.
        before = after = -1
        deadline = time.monotonic() + HANGS_SECONDS
        while before != after or before < 0:
            assert time.monotonic() < deadline, "the slice is not paused"
            before = launches(sim)
            time.sleep(0.3)
            after = launches(sim)
        held = sim.ledger().cards[0]
        used = busy_ns(node, [pid])
        time.sleep(0.5)
        assert launches(sim) == held.launches
        assert sim.ledger().cards[0].tat_ns == held.tat_ns
        assert busy_ns(node, [pid]) == used
        sim.regrant(**grant)
        await_work(node, [pid], used + 10 * MS)


def test_a_debt_does_not_outlive_a_rise_of_the_share(sim: Slice) -> None:
    """300 ms at 2 % are to be made up for 15 s; at 100 % they are over at once."""
    sim.grant(cores_percent=2, **NO_BURST)
    process = sim.start([*TENANT, "long_then_short", SPIN, str(300 * MS)])
    assert process.stdout is not None
    assert process.stdout.readline() == "{}\n"
    owed = sim.ledger().cards[0].tat_ns - time.monotonic_ns()
    sim.regrant(cores_percent=100, **NO_BURST)
    process.communicate("\n", timeout=HANGS_SECONDS)
    assert process.returncode == 0
    if owed > 8_000 * MS:  # a machine that stood still for 7 s has paid already
        assert sim.ledger().cards[0].throttled_ns < 4_000 * MS


def outside_of_window_ns(
    node: simnode.Node, pid: int, frame: int, begin: int, end: int
) -> tuple[int, int]:
    """Card time used, time passed: between two readings in one and the same frame's closed part."""
    while True:
        now = time.monotonic_ns()
        time.sleep(((begin - now) % frame + 1 * MS) / 1e9)
        first_busy, first = referee(node, [pid])
        time.sleep(max(0, end - first % frame - 25 * MS) / 1e9)
        last_busy, last = referee(node, [pid])
        if last - first < frame and begin <= first % frame < last % frame <= end:
            return last_busy - first_busy, last - first


def test_fixed_share_runs_in_its_windows(sim: Slice, node: simnode.Node, free_port: int) -> None:
    frame, start, length = 400 * MS, 100 * MS, 150 * MS
    windows = {"frame_us": 400_000, "window_start_us": 100_000, "window_us": 150_000}
    sim.grant(mode="fixed-share", **windows, **NO_BURST)
    with load(sim, free_port, 2_000) as pid:
        await_work(node, [pid], 20 * MS)
        used = passed = 0
        for _ in range(4):
            closed = outside_of_window_ns(node, pid, frame, start + length, frame)
            used, passed = used + closed[0], passed + closed[1]
        # A thread that loses its processor just after it was let in launches too late.
        assert used <= passed * 0.05, f"{used} of {passed} ns outside of the windows"
        assert_share(node, [pid], 100 * length / frame, 2.0)


def test_neighbours_with_windows_do_not_meet(
    sim: Slice, node: simnode.Node, free_port: int, tmp_path: Path
) -> None:
    """Beside a neighbour on the same card wall time is longer than card time; never in windows."""
    driver = (node.driver / "lib" / "libcuda.so.1").resolve()
    other = make_slice(tmp_path / "other", driver, node.uuids[0], node.environment)
    sim.grant(mode="fixed-share", frame_us=200_000, window_us=80_000)
    other.grant(mode="fixed-share", frame_us=200_000, window_start_us=80_000, window_us=120_000)
    with load(sim, free_port, 5_000) as one, load(other, free_port + 1, 5_000) as two:
        await_work(node, [one, two], 400 * MS)
        for within, pid in ((sim, one), (other, two)):
            before = charged_ns(within), busy_ns(node, [pid])
            await_work(node, [pid], before[1] + 500 * MS)
            charged, used = charged_ns(within) - before[0], busy_ns(node, [pid]) - before[1]
            assert charged <= 1.15 * used


# -- launch functions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "cuLaunchKernel",
        "cuLaunchKernel_ptsz",
        "cuLaunchKernelEx",
        "cuLaunchKernelEx_ptsz",
        "cuLaunchCooperativeKernel",
        "cuLaunchCooperativeKernel_ptsz",
        "cuGraphLaunch",
        "cuGraphLaunch_ptsz",
    ],
)
def test_every_launch_function_is_charged_what_it_took(
    sim: Slice, node: simnode.Node, name: str
) -> None:
    sim.grant(cores_percent=80, **NO_BURST)
    done = scenario(sim, "work", SPIN, name, 40, 2 * MS)
    assert done["codes"] == [0]
    assert launches(sim) == 40
    assert busy_ns(node, [done["pid"]]) >= 80 * MS
    assert charged_ns(sim) == pytest.approx(busy_ns(node, [done["pid"]]), rel=0.05)


@pytest.mark.parametrize(
    "name",
    ["cuLaunch", "cuLaunchGrid", "cuLaunchGridAsync", "cuLaunchCooperativeKernelMultiDevice"],
)
def test_the_oldest_launch_functions_are_limited_too(stub: Slice, name: str) -> None:
    stub.grant(cores_percent=50, **NO_BURST)
    assert scenario(stub, "work", "stub", name, 40, 2 * MS)["codes"] == [0]
    assert launches(stub) == 40
    assert charged_ns(stub) == pytest.approx(80 * MS, rel=0.1)
    assert stub.ledger().cards[0].throttled_ns > 0


@pytest.mark.parametrize("stream", ["own", "shared"])
def test_threads_are_charged_what_they_took(sim: Slice, node: simnode.Node, stream: str) -> None:
    """Each thread's own default stream is a stream; in a shared one their launches interleave."""
    sim.grant(cores_percent=80, **NO_BURST)
    pid = scenario(sim, "in_threads", SPIN, 40, stream)["pid"]
    assert launches(sim) == 320
    assert charged_ns(sim) == pytest.approx(busy_ns(node, [pid]), rel=0.05)


# -- cards, contexts, streams ---------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[simnode.Node, Slice]]:
    """A node with two cards, and a slice of both."""
    directory = tmp_path / "node"
    node = simnode.up(directory, ["a100-40g", "t4"])
    driver = (node.driver / "lib" / "libcuda.so.1").resolve()
    yield node, make_slice(tmp_path / "slice", driver, node.uuids[0], node.environment)
    simnode.down(directory)


def test_two_cards_of_one_process_have_limits_of_their_own(
    two: tuple[simnode.Node, Slice],
) -> None:
    node, within = two
    shares = dict(zip(node.uuids, (20, 60), strict=True))
    tau = NO_BURST["tau_ns"]
    cards = [CardConfig(uuid, cores_percent=share, tau_ns=tau) for uuid, share in shares.items()]
    xpu_pages.write_slice(within.directory, cards)
    process = within.start([*TENANT, "two_cards", str(SPIN)])
    assert process.stdout is not None and process.stdout.readline() == "{}\n"
    pid = process.pid

    def reading(uuid: str) -> tuple[int, int]:
        ledger = json.loads(node.run("simgpu", "ledger", "--json"))
        used = [e["busy_ns"] for e in ledger["processes"] if (e["pid"], e["uuid"]) == (pid, uuid)]
        return sum(used), ledger["monotonic_ns"]

    await_work(node, [pid], 50 * MS)
    for _ in range(5):
        before = {uuid: reading(uuid) for uuid in shares}
        time.sleep(2)
        after = {uuid: reading(uuid) for uuid in shares}
        found = {
            uuid: 100 * (after[uuid][0] - before[uuid][0]) / (after[uuid][1] - before[uuid][1])
            for uuid in shares
        }
        assert all(found[uuid] <= share + 2 for uuid, share in shares.items()), found
        if all(found[uuid] >= share - 2 for uuid, share in shares.items()):
            break
    else:
        pytest.fail(f"the cards say {found}, granted were {shares}")
    process.communicate("\n", timeout=HANGS_SECONDS)
    assert process.returncode == 0


def test_streams_may_be_destroyed_with_work_under_way(sim: Slice, node: simnode.Node) -> None:
    sim.grant(cores_percent=90, **NO_BURST)
    done = scenario(sim, "many_streams", SPIN, 12, XPU_LOG="1")
    assert done["stderr"] == "", "no event is recorded in a stream that is gone"
    assert launches(sim) == 12 * 40 * 3
    assert charged_ns(sim) == pytest.approx(busy_ns(node, [done["pid"]]), rel=0.1)


def test_forty_contexts_are_limited_and_may_end_with_work_under_way(
    sim: Slice, node: simnode.Node
) -> None:
    sim.grant(cores_percent=80, **NO_BURST)
    done = scenario(sim, "many_contexts", SPIN)
    assert done["codes"] == [0]
    assert launches(sim) == 140
    assert charged_ns(sim) == pytest.approx(busy_ns(node, [done["pid"]]), rel=0.1)


def test_a_device_may_be_reset_with_work_under_way(sim: Slice) -> None:
    sim.grant(cores_percent=80, **NO_BURST)
    assert scenario(sim, "resets", SPIN)["codes"] == [0]
    assert launches(sim) == 50


def test_a_fork_while_other_threads_launch_leaves_a_child_that_can(stub: Slice) -> None:
    stub.grant(cores_percent=80)
    assert scenario(stub, "forks", 30)["ends"] == [0]


@pytest.mark.parametrize("back_s", [3600, -3600])
def test_a_clock_that_starts_anew_neither_stops_work_nor_measuring(
    stub: Slice, tmp_path: Path, back_s: int
) -> None:
    if "LD_PRELOAD" in stub.outside:
        pytest.skip("AddressSanitizer stands between the library and its clock; nothing to install")
    library = tmp_path / "clock_jump.so"
    run([*zig_cc(), "-shared", "-fPIC", HERE / "clock_jump.c", "-o", library, "-ldl"])
    stub.grant(cores_percent=50, **NO_BURST)
    preload = f"{stub.outside.get('LD_PRELOAD', '')} {library}".strip()
    scenario(stub, "clock_jump", back_s * 1_000 * MS, LD_PRELOAD=preload)
    assert launches(stub) == 40
    assert charged_ns(stub) == pytest.approx(80 * MS, rel=0.1)


def test_the_library_may_be_closed_with_work_under_way(stub: Slice) -> None:
    stub.grant(cores_percent=80, **NO_BURST)
    assert scenario(stub, "reopened")["codes"] == [0]
    assert launches(stub) == 50
    assert charged_ns(stub) == pytest.approx(50 * MS, rel=0.1)


# -- capture --------------------------------------------------------------------------------------


def on_the_bare_driver(node: simnode.Node, name: str, *arguments: object) -> Any:
    done = subprocess.run(
        [*TENANT, name, *map(str, arguments)],
        env={**os.environ, **node.environment},
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(6, 200))]
)
def test_random_captures_are_what_they_are_without_us(
    sim: Slice, node: simnode.Node, seed: int
) -> None:
    """The same calls, the same answers, the same graphs: in all modes, forked, joined, spoilt."""
    sim.grant(cores_percent=60, tau_ns=5 * MS)
    bare = on_the_bare_driver(node, "captures", SPIN, seed, 300)["record"]
    assert scenario(sim, "captures", SPIN, seed, 300)["record"] == bare
    assert any(row[0] == "end" and row[2] == 0 for row in bare), "it captured nothing"


@pytest.mark.parametrize("rounds", [60, pytest.param(2000, marks=pytest.mark.soak)])
def test_captures_beside_launching_threads_are_whole(sim: Slice, rounds: int) -> None:
    sim.grant(cores_percent=100)
    done = scenario(sim, "captures_beside_launches", SPIN, rounds)
    assert done["failed"] == []
    assert done["ends"] == [[0, 100, 0]] * rounds


def test_measuring_goes_on_after_captures_that_ended_badly(sim: Slice, node: simnode.Node) -> None:
    """A capture that is believed to go on for ever would leave work charged as predicted."""
    sim.grant(cores_percent=80, **NO_BURST)
    done = scenario(sim, "bad_ends", SPIN)
    assert done["codes"] == [0]
    assert charged_ns(sim) == pytest.approx(busy_ns(node, [done["pid"]]), rel=0.05)
