# SPDX-License-Identifier: Apache-2.0
"""NVML inside a slice shows the slice: memory, processes, utilisation, cards.

What only the card knows is compared with its own ledger; nothing is judged by a stopwatch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from simulators import simnode
from xpu_slice import GIB, HERE, LOAD, STUB_UUID, Slice, slice_of
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.recipes.cuda import COMMON, CUDA
from xpubuild.toolchain import REPOSITORY, run, zig_cxx, zig_version

NOT_FOUND, FUNCTION_NOT_FOUND = 6, 13
INVALID_ARGUMENT = 2
HANGS_SECONDS = 60
TENANT = [sys.executable, str(HERE / "nvml_tenant.py")]
NO_BURST = {"tau_ns": 20_000_000}
SHARE = 20
SHORT_POINTS = 6  # over 1/6 s: credit and up to four stretches that are settled late
STRANGER = "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"  # as stub_nvml.cc says
STUB_BUSY, STUB_MEMORY_BUSY = 77, 66


def nvml(within: Slice, verb: str, *words: str, **more: str) -> Any:
    done = subprocess.run(
        [*TENANT, verb, *words],
        env={**within.environment, **more},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


@contextmanager
def running(within: Slice, *argv: object) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A process and its first line; told to end by a line of input."""
    process = within.start([str(word) for word in argv])
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{argv[1]} ended with {process.wait(60)} and said nothing"
        yield process, json.loads(line) if line.startswith("{") else line
    finally:
        process.terminate()
        process.communicate(timeout=60)


def holding(within: Slice, size: int) -> Any:
    return running(within, sys.executable, HERE / "tenant.py", "hold", size)


def test_the_slice_is_shown_and_nobody_else(sim: Slice, node: simnode.Node, tmp_path: Path) -> None:
    neighbour = slice_of(node, tmp_path / "neighbour")
    neighbour.grant(memory_bytes=8 * GIB, cores_percent=50)
    sim.grant(cores_percent=SHARE, memory_bytes=3 * GIB)
    with holding(neighbour, 7 * GIB), holding(sim, GIB) as (_, one), holding(sim, GIB) as (_, two):
        seen = nvml(sim, "view")
        shown = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total,memory.used,memory.free", "--format=csv"],
            env=sim.environment,
            capture_output=True,
            text=True,
        ).stdout
        table = subprocess.run(["nvidia-smi"], env=sim.environment, capture_output=True, text=True)
    ours = sorted([one["pid"], two["pid"]])
    assert seen["v1"] == [3 * GIB, GIB, 2 * GIB]
    assert seen["v2"] == [3 * GIB, GIB, 2 * GIB, 0]
    for name in ("Compute", "Compute_v2", "Compute_v3"):
        assert sorted(seen["lists"][name]) == [[pid, GIB] for pid in ours], name
    assert all(not rows for name, rows in seen["lists"].items() if not name.startswith("Comp"))
    assert (seen["count"], seen["uuid"]) == (1, node.uuids[0])
    assert (seen["gpu"], seen["samples"]) == (0, NOT_FOUND), "they hold memory and compute nothing"
    assert shown.splitlines()[1] == "3072 MiB, 2048 MiB, 1024 MiB"
    assert all(f" {pid} " in table.stdout for pid in ours)
    assert table.stdout.count("MiB          |") == 2, table.stdout


def test_without_a_slice_nothing_is_changed(sim: Slice, node: simnode.Node) -> None:
    with holding(sim, GIB):  # no slice either: there is no page
        bare = subprocess.run(
            [*TENANT, "view"],
            env={**sim.environment, **node.environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        through = nvml(sim, "view", XPU_LOG="1")
    assert "config.page does not exist: NVML shows the whole card" in through.pop("stderr")
    assert through | {"pid": 0} == json.loads(bare) | {"pid": 0}
    assert through["v1"][0] == 40 * GIB


@pytest.mark.parametrize("damage", ["config", "ledger", "no ledger"])
def test_a_damaged_slice_shows_the_card(sim: Slice, damage: str) -> None:
    sim.grant(memory_bytes=3 * GIB)
    if damage == "no ledger":
        sim.ledger_file.unlink()
    else:
        file = sim.config if damage == "config" else sim.ledger_file
        file.write_bytes(b"x" * file.stat().st_size)
    silent = nvml(sim, "view")
    assert (silent["v1"][0], silent["stderr"]) == (40 * GIB, "")


def test_a_quota_is_not_invented(sim: Slice) -> None:
    sim.grant(cores_percent=SHARE)
    assert nvml(sim, "view")["v1"][0] == 40 * GIB


def test_a_changed_grant_is_shown_at_once(sim: Slice) -> None:
    sim.grant(memory_bytes=3 * GIB)
    assert nvml(sim, "view")["v1"][0] == 3 * GIB
    sim.regrant(memory_bytes=5 * GIB)
    assert nvml(sim, "view")["v1"][0] == 5 * GIB


def test_what_only_the_node_sees_counts_as_used(sim: Slice) -> None:
    sim.grant(memory_bytes=3 * GIB, overhead_bytes=GIB // 2)
    assert nvml(sim, "view")["v1"] == [3 * GIB, 5 * GIB // 2, GIB // 2]


def test_a_dead_process_is_not_shown(sim: Slice) -> None:
    sim.grant(memory_bytes=3 * GIB)
    with holding(sim, GIB) as (process, _):
        process.kill()
        process.wait()
        seen = nvml(sim, "view")
    assert (seen["v1"], seen["lists"]["Compute_v3"]) == ([3 * GIB, 3 * GIB, 0], [])


def test_looking_does_not_make_a_process_look_dead(sim: Slice) -> None:
    """Closing any descriptor of the ledger would drop the lock that says its owner lives."""
    sim.grant(memory_bytes=3 * GIB)
    with running(sim, *TENANT, "both", 2 * GIB) as (_, said):
        assert said["code"] == 0
        assert said["seen"] == [[said["pid"], 2 * GIB]], "it sees itself"
        assert said["in_child"] == 3, "a child of it sees the slice too"
        with holding(sim, GIB + 1) as (_, other):
            assert other["code"] == 2, "what it holds still counts"
        assert nvml(sim, "view")["lists"]["Compute_v3"] == [[said["pid"], 2 * GIB]]


def test_threads_that_ask_at_once_hear_the_same(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, cores_percent=SHARE)
    with holding(stub, GIB):
        seen = nvml(stub, "threads")["answers"]
    assert seen == [[0, 0, 0, 7, 3 * GIB, GIB, 0, 1]]


def test_errors_are_nvmls_own(sim: Slice) -> None:
    uninitialised, version, size = 1, 25, 7
    bare = nvml(sim, "errors")
    sim.grant(memory_bytes=3 * GIB, cores_percent=SHARE)
    found = nvml(sim, "errors")
    assert found == bare | {"size of samples": size, "stderr": ""}
    assert (found["early"], found["late"]) == (uninitialised, uninitialised)
    assert found["version"] == version


def test_only_the_cards_of_the_slice_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = simnode.up(tmp_path / "node", ["t4", "a100-40g"])
    try:
        within = slice_of(node, tmp_path / "slice", card=1)
        within.grant(memory_bytes=3 * GIB)
        seen = nvml(within, "cards", *node.uuids)
        within.config.write_bytes(within.config.read_bytes().replace(b"GPU-51", b"GPU-52"))
        elsewhere = nvml(within, "cards")
    finally:
        simnode.down(node.directory)
    assert seen["counts"] == [1, 1]
    assert seen["positions"] == [[node.uuids[1], 0]]
    assert seen["beyond"] == INVALID_ARGUMENT
    assert seen["by_uuid"] == [NOT_FOUND, 0]
    assert seen["by_address"] == [NOT_FOUND, 0]
    assert elsewhere["counts"] == [2, 2], "a slice of a card that is not here hides nothing"


def test_a_lost_card_is_reported_lost(sim: Slice, tmp_path: Path) -> None:
    sim.grant(memory_bytes=3 * GIB)
    faults = tmp_path / "faults"
    faults.write_text("lost_card 0\n")
    script = (
        "import ctypes, nvml_tenant as t; l = t.opened(); c, d = t.by_index(l, 0); "
        "print(c, l.nvmlDeviceGetMemoryInfo(d, ctypes.byref(t.MemoryV1())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**sim.environment, "SIMGPU_FAULTS": str(faults), "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0", "15"], done.stderr


def card_time(node: simnode.Node, pid: int) -> int:
    entries = json.loads(node.run("simgpu", "ledger", "--json", "--dead"))["processes"]
    return sum(entry["busy_ns"] for entry in entries if entry["pid"] == pid)


def test_utilisation_is_the_slices_own_time(
    sim: Slice, node: simnode.Node, tmp_path: Path, free_port: int
) -> None:
    """Samples cover adjoining stretches; what they add up to is what the card's ledger saw."""
    neighbour = slice_of(node, tmp_path / "neighbour")
    neighbour.grant(cores_percent=70, **NO_BURST)
    sim.grant(cores_percent=SHARE, **NO_BURST)

    def load_at(port: int) -> tuple[object, ...]:
        return (sys.executable, LOAD, "--port", port, "serve", "--kernel-us", 1000, "--depth", 4)

    with ExitStack() as ends:
        ends.enter_context(running(neighbour, *load_at(free_port + 1)))
        load, _ = ends.enter_context(running(sim, *load_at(free_port)))
        watcher, first = ends.enter_context(running(sim, *TENANT, "stretches"))
        assert watcher.stdin is not None and watcher.stdout is not None
        times: list[int] = []
        percents: list[int] = []
        busy: list[int] = []
        found = first["found"]
        deadline = time.monotonic() + HANGS_SECONDS
        while len(times) < 5:
            assert time.monotonic() < deadline, "no samples"
            assert found == NOT_FOUND or [row[0] for row in found] == [load.pid]
            if found != NOT_FOUND:
                percents.append(found[0][1])
                times.append(found[0][2])
                busy.append(card_time(node, load.pid))
            time.sleep(0.05)
            print("more", file=watcher.stdin, flush=True)
            found = json.loads(watcher.stdout.readline())["found"]
        view = nvml(sim, "view")
    assert times == sorted(set(times)), "a sample is given once"
    period = times[-1] - times[0]
    shown = sum(
        percent * (end - start) / 100
        for percent, start, end in zip(percents[1:], times, times[1:], strict=False)
    )
    assert all(percent <= SHARE + SHORT_POINTS for percent in percents)
    # The referee is asked a little after each sample, in which the tenant has its share at most;
    # a stretch is settled late, and beside a neighbour measured a little long (README, limits).
    slack = SHORT_POINTS / 100 * period
    assert shown <= (busy[-1] - busy[0]) / 1e3 + slack + SHARE / 100 * 200_000
    assert view["gpu"] <= SHARE + SHORT_POINTS
    assert view["samples"] == NOT_FOUND or view["samples"][0][0] == load.pid


def test_the_monitor_shows_the_whole_card_beside_the_slice(
    sim: Slice, tmp_path: Path, node: simnode.Node, free_port: int
) -> None:
    """The driver's figure, not that of our NVML, which would be the slice's again."""
    neighbour = slice_of(node, tmp_path / "neighbour")
    neighbour.grant()
    sim.grant(cores_percent=SHARE, memory_bytes=3 * GIB)
    serve = ("serve", "--kernel-us", 20_000, "--depth", 16)
    with running(neighbour, sys.executable, LOAD, "--port", free_port, *serve) as (load, _):
        deadline = time.monotonic() + HANGS_SECONDS
        while card_time(node, load.pid) == 0:
            assert time.monotonic() < deadline, "the load does not run"
            time.sleep(0.02)
        done = sim.monitor("-p", "2", "-o", "json")
    (device,) = json.loads(done.stdout)["vxpus"]
    assert (device["core"], device["memory_quota"]) == (0, 3 * GIB)
    assert device["nvml_card_core"] > SHARE


def test_what_few_programs_ask(stub: Slice) -> None:
    whole = nvml(stub, "rarer", STUB_UUID, STRANGER)
    assert whole["accounted"] == [0, 1] and whole["values"]["1"] == [0, STUB_BUSY]
    stub.grant(memory_bytes=3 * GIB, cores_percent=SHARE)
    seen = nvml(stub, "rarer", STUB_UUID, STRANGER)
    assert seen["accounted"] == [0, 0]
    assert seen["accounting of a stranger"] == NOT_FOUND
    assert seen["sessions"] == [[0, 0], [0, 0]]
    assert seen["values"] == {"1": [0, 0], "size of 1": 1, "2": [NOT_FOUND, 0], "size of 2": 1}
    assert seen["pstates"] == [0, 0]
    assert seen["named"] == {STUB_UUID: 0, STRANGER: NOT_FOUND}


def test_newer_lists_and_older_drivers(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, cores_percent=SHARE)
    with holding(stub, GIB) as (_, one):
        seen = nvml(stub, "view")
    assert seen["details"] == [[[one["pid"], GIB]], [], []]
    assert seen["samples2"] == NOT_FOUND
    assert seen["lists"]["MPSCompute_v2"] == []
    assert seen["v2"] == [0, 0, 0, 0], "this driver has no nvmlDeviceGetMemoryInfo_v2"


def test_without_a_compute_limit_the_cards_own_figure_is_shown(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    seen = nvml(stub, "view")
    assert (seen["gpu"], seen["samples"]) == (STUB_BUSY, NOT_FOUND)


def test_usage(tmp_path: Path) -> None:
    """The pure part: readings to figures, and which reading a sample begins with."""
    sources = [HERE / "test_usage.cc", CUDA / "nvml" / "usage.cc"]
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    flags += [f"-I{COMMON / 'include'}", f"-I{COMMON / 'tests'}", f"-I{CUDA / 'nvml'}"]

    def build(target: Path) -> None:
        run([*zig_cxx(), *flags, *sources, "-o", target / "test_usage"])

    inputs = {
        "sources": digest_tree([*sources, CUDA / "nvml" / "usage.h"], REPOSITORY),
        "zig": zig_version(),
    }
    program = Cache().get(Recipe("nvml-usage", inputs, build)) / "test_usage"
    names = run([program]).split()
    assert len(names) > 4
    for name in names:
        run([program, name])
