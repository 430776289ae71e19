# SPDX-License-Identifier: Apache-2.0
"""The slice on a simulated card. The referee is the card's own ledger, never our own figures.

Functional, not a benchmark. Tolerance: 2 points of the card over windows of 1 or 2 s, and of 4 s
for kernels of 50 ms, of which one more or less is 1.3 points. No window may be above the share by
more. One may be below, because a tenant that gets no processor launches nothing and unused time is
not saved up; but of WINDOWS in a row one must reach it. `make test-soak` has longer windows.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from simulators import simnode
from xpu_referee import (
    HANGS_SECONDS,
    NO_BURST,
    SPIN,
    TOLERANCE_POINTS,
    Window,
    assert_share,
    await_work,
    busy_ns,
    load,
)
from xpu_slice import GIB, HERE, LOAD, Slice

OUT_OF_MEMORY = 2


def ask(port: int, *what: str) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of the tenant's own client."""
    argv = [sys.executable, str(LOAD), "--port", str(port), "ask", *what]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kernel_us", "seconds"),
    [
        (1_000, 2.0),
        (50_000, 4.0),
        *(pytest.param(us, 12.0, marks=pytest.mark.soak) for us in (200, 1_000, 5_000, 50_000)),
    ],
)
def test_one_process_gets_its_share(
    sim: Slice, node: simnode.Node, free_port: int, kernel_us: int, seconds: float
) -> None:
    sim.grant(cores_percent=20, **NO_BURST)
    with load(sim, free_port, kernel_us) as pid:
        # Four kernels start before the first is measured; their debt is paid after five times that.
        await_work(node, [pid], 5 * kernel_us * 1000)
        assert_share(node, [pid], 20, seconds)
        before = busy_ns(node, [pid])
        charged = sim.ledger().cards[0].charged_ns
        after = busy_ns(node, [pid])
    unsettled = 2 * 4 * kernel_us * 1000  # stretches that are still being measured
    assert 0.9 * before - unsettled <= charged <= 1.1 * after + unsettled


@pytest.mark.parametrize("seconds", [2.0, pytest.param(12.0, marks=pytest.mark.soak)])
def test_two_processes_share_one_grant(
    sim: Slice, node: simnode.Node, free_port: int, seconds: float
) -> None:
    sim.grant(cores_percent=20, **NO_BURST)
    with load(sim, free_port, 2_000) as first, load(sim, free_port + 1, 10_000) as second:
        await_work(node, [first, second], 50_000_000)  # neither starves
        assert_share(node, [first, second], 20, seconds)


def test_work_on_several_streams_is_charged_in_full(sim: Slice, node: simnode.Node) -> None:
    """Laid side by side as launched, not as they ran, streams seem to overlap: 95 % charged."""
    sim.grant(cores_percent=80, **NO_BURST)
    pid = sim.scenario("streams", SPIN, 100)["pid"]
    charged = sim.ledger().cards[0].charged_ns
    assert charged == pytest.approx(busy_ns(node, [pid]), rel=0.015)


def test_an_unlimited_slice_is_not_held_back(
    sim: Slice, node: simnode.Node, free_port: int
) -> None:
    sim.grant(memory_bytes=3 * GIB)
    with load(sim, free_port, 20_000, depth=16) as pid:
        await_work(node, [pid])
        # 320 ms of work are always queued, so the card is busy though the tenant is not on time.
        assert_share(node, [pid], 100, 0.5)
    assert sim.ledger().cards[0].throttled_ns == 0


def test_a_changed_grant_takes_effect_while_running(
    sim: Slice, node: simnode.Node, free_port: int
) -> None:
    sim.grant(cores_percent=10, memory_bytes=GIB, **NO_BURST)
    with load(sim, free_port, 5_000) as pid:
        await_work(node, [pid], 40_000_000)
        assert_share(node, [pid], 10, 1.0)
        sim.regrant(cores_percent=60, memory_bytes=2 * GIB, **NO_BURST)
        assert_share(node, [pid], 60, 1.0)
        assert ask(free_port, "state")[1]["memory_total"] == 2 * GIB


def test_the_demo_allocation_over_quota_is_refused_and_the_load_runs_on(
    sim: Slice, free_port: int
) -> None:
    sim.grant(cores_percent=20, memory_bytes=3 * GIB)
    with load(sim, free_port, 5_000):
        code, refused = ask(free_port, "allocate", "4GiB")
        assert (code, refused["name"]) == (1, "CUDA_ERROR_OUT_OF_MEMORY")
        before = ask(free_port, "state")[1]
        assert ask(free_port, "allocate", "3GiB")[0] == 0
        assert ask(free_port, "allocate", "1")[0] == 1
        assert ask(free_port, "free")[0] == 0
        before_wait, after = before["launches"], before
        deadline = time.monotonic() + HANGS_SECONDS
        while after["launches"] <= before_wait and time.monotonic() < deadline:
            after = ask(free_port, "state")[1]
    assert after["launches"] > before["launches"]
    assert after["memory_free"] == 3 * GIB
    assert after["error"] is None


def hold(within: Slice, size: int) -> tuple[subprocess.Popen[str], int]:
    """A process that holds memory: it, and CUDA's answer."""
    process = within.start([sys.executable, HERE / "tenant.py", "hold", str(size)])
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["code"]


def test_processes_share_the_quota_and_a_killed_one_gives_it_back(sim: Slice) -> None:
    sim.grant(memory_bytes=3 * GIB)
    with ExitStack() as ends:

        def held(size: int) -> tuple[subprocess.Popen[str], int]:
            process, code = hold(sim, size)
            ends.callback(process.communicate, "end\n")
            return process, code

        first, code = held(2 * GIB)
        assert code == 0
        assert held(2 * GIB)[1] == OUT_OF_MEMORY
        assert held(GIB)[1] == 0
        first.kill()
        first.wait()
        assert held(2 * GIB + 1)[1] == OUT_OF_MEMORY
        assert held(2 * GIB)[1] == 0


def test_monitor_shows_what_the_card_saw(sim: Slice, node: simnode.Node, free_port: int) -> None:
    sim.grant(cores_percent=20, memory_bytes=3 * GIB, **NO_BURST)
    with load(sim, free_port, 5_000) as pid:
        assert ask(free_port, "allocate", "512MiB")[0] == 0
        await_work(node, [pid], 40_000_000)
        with Window(node, [pid]) as window:
            shown = json.loads(sim.monitor("-p", "2", "-o", "json").stdout)
        table = sim.monitor("-p", "1").stdout
    (device,) = shown["vxpus"]
    assert shown["type"] == "vGPU"
    # The referee's window begins before the monitor's and ends after it; what ran outside the
    # monitor's was at most the share. A stretch is measured when it is over, a little late.
    period = shown["period_seconds"]
    shown_seconds = device["core_exact"] / 100 * period
    late = TOLERANCE_POINTS / 100 * period
    outside = 0.2 * (window.seconds - period)
    assert window.busy_seconds - outside - late <= shown_seconds <= window.busy_seconds + late
    assert (device["device"], device["core_quota"]) == (0, 20)
    assert (device["memory"], device["memory_quota"]) == (512 << 20, 3 * GIB)
    assert [entry["pid"] for entry in device["processes"]] == [pid]
    assert device["processes"][0]["memory"] == 512 << 20
    assert "nvml_card_core" in device, "the simulated node has NVML"
    lines = re.fullmatch(
        r"vGPU num: 1\n"
        r"vGPU 0 usage +(\d+)%, limit 20%, memory usage    512/3072MB, whole card by NVML +\d+%\n"
        rf"pid {pid}, core usage +(\d+)%, memory usage    512MB\n",
        table,
    )
    assert lines, table
    assert lines[1] == lines[2], "one process has it all"
    assert 0 < int(lines[1]) <= 20 + TOLERANCE_POINTS


def test_slice_of_another_card_leaves_this_one_alone(sim: Slice, tmp_path: Path) -> None:
    sim.grant(memory_bytes=GIB)
    sim.config.write_bytes(sim.config.read_bytes().replace(b"GPU-51", b"GPU-52"))
    process, code = hold(sim, 2 * GIB)
    process.communicate("end\n")
    assert code == 0
