# SPDX-License-Identifier: Apache-2.0
"""The slice on a simulated card. The referee is the card's own ledger, never our own figures.

Functional, not a benchmark: windows of a few seconds on a machine that does other things, so a
share is held to within 2 points. `make bench-share` is where accuracy is measured.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from simulators import simnode
from xpu_slice import GIB, HERE, LOAD, Slice

OUT_OF_MEMORY = 2
TOLERANCE_POINTS = 2.0
NO_BURST = {"tau_ns": 20_000_000}  # the mean is the share from the start on


def referee(node: simnode.Node, pids: Sequence[int]) -> tuple[int, int]:
    """(card time these processes used, when it was read), by the simulated card's own ledger."""
    ledger = json.loads(node.run("simgpu", "ledger", "--json", "--dead"))
    used = [entry["busy_ns"] for entry in ledger["processes"] if entry["pid"] in pids]
    return sum(used), ledger["monotonic_ns"]


def busy_ns(node: simnode.Node, pids: Sequence[int]) -> int:
    return referee(node, pids)[0]


def share_percent(node: simnode.Node, pids: Sequence[int], seconds: float) -> float:
    """Mean share of the card over the next seconds."""
    busy_before, before = referee(node, pids)
    time.sleep(seconds)
    busy_after, after = referee(node, pids)
    return 100 * (busy_after - busy_before) / (after - before)


@contextmanager
def load(within: Slice, port: int, kernel_us: int, depth: int = 4) -> Iterator[int]:
    """The demo's tenant as a process of the slice; yields its pid."""
    options = ["--kernel-us", kernel_us, "--depth", depth]
    argv = [sys.executable, LOAD, "--port", port, "serve", *options]
    process = within.start([str(word) for word in argv])
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("gpu_load:"), f"the load did not start: {line!r}"
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def ask(port: int, *what: str) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of the tenant's own client."""
    argv = [sys.executable, str(LOAD), "--port", str(port), "ask", *what]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("kernel_us", [1_000, 5_000, 50_000])
def test_one_process_gets_its_share(
    sim: Slice, node: simnode.Node, free_port: int, kernel_us: int
) -> None:
    sim.grant(cores_percent=20, **NO_BURST)
    with load(sim, free_port, kernel_us) as pid:
        time.sleep(1)
        share = share_percent(node, [pid], 8)
        charged = sim.ledger().cards[0].charged_ns
        true = busy_ns(node, [pid])
    assert share == pytest.approx(20, abs=TOLERANCE_POINTS)
    assert charged == pytest.approx(true, rel=0.1, abs=2 * kernel_us * 1000 * 4)


def test_two_processes_share_one_grant(sim: Slice, node: simnode.Node, free_port: int) -> None:
    sim.grant(cores_percent=20, **NO_BURST)
    with load(sim, free_port, 2_000) as first, load(sim, free_port + 1, 10_000) as second:
        time.sleep(1)
        share = share_percent(node, [first, second], 8)
        each = [busy_ns(node, [pid]) for pid in (first, second)]
    assert share == pytest.approx(20, abs=TOLERANCE_POINTS)
    assert min(each) > 0, "neither starves"


def test_an_unlimited_slice_is_not_held_back(
    sim: Slice, node: simnode.Node, free_port: int
) -> None:
    sim.grant(memory_bytes=3 * GIB)
    with load(sim, free_port, 5_000) as pid:
        time.sleep(0.5)
        assert share_percent(node, [pid], 2) > 90


def test_a_changed_grant_takes_effect_while_running(
    sim: Slice, node: simnode.Node, free_port: int
) -> None:
    sim.grant(cores_percent=10, memory_bytes=GIB, **NO_BURST)
    with load(sim, free_port, 5_000) as pid:
        time.sleep(1)
        assert share_percent(node, [pid], 3) == pytest.approx(10, abs=TOLERANCE_POINTS)
        sim.regrant(cores_percent=60, memory_bytes=2 * GIB, **NO_BURST)
        time.sleep(0.5)
        assert share_percent(node, [pid], 3) == pytest.approx(60, abs=3)
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
        time.sleep(0.5)
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
        time.sleep(1)
        before = busy_ns(node, [pid])
        shown = json.loads(sim.monitor("-p", "5", "-o", "json").stdout)
        true = (busy_ns(node, [pid]) - before) / 5e7
        table = sim.monitor("-p", "1").stdout
    device = shown["vxpus"][0]
    assert shown["type"] == "vGPU"
    assert device["core_exact"] == pytest.approx(true, abs=TOLERANCE_POINTS)
    assert (device["device"], device["core_quota"]) == (0, 20)
    assert (device["memory"], device["memory_quota"]) == (512 << 20, 3 * GIB)
    assert [entry["pid"] for entry in device["processes"]] == [pid]
    assert device["processes"][0]["memory"] == 512 << 20
    assert "nvml_card_core" in device, "the simulated node has NVML"
    assert re.fullmatch(
        r"vGPU num: 1\n"
        r"vGPU 0 usage (1[89]|2[012])%, limit 20%, memory usage    512/3072MB"
        r", whole card by NVML +\d+%\n"
        rf"pid {pid}, core usage (1[89]|2[012])%, memory usage    512MB\n",
        table,
    ), table


def test_slice_of_another_card_leaves_this_one_alone(sim: Slice, tmp_path: Path) -> None:
    sim.grant(memory_bytes=GIB)
    sim.config.write_bytes(sim.config.read_bytes().replace(b"GPU-51", b"GPU-52"))
    process, code = hold(sim, 2 * GIB)
    process.communicate("end\n")
    assert code == 0
