# SPDX-License-Identifier: Apache-2.0
"""Faults inside and around one process: what it does to itself, and what happens to its pages."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import xpu_rough
from xpu_slice import GIB, HERE, STUB_UUID, Slice, make_slice, stub_driver
from xpubuild.toolchain import run, zig_cc

OUT_OF_MEMORY = 2
EPOCH = struct.Struct("<I")
EPOCH_AT = 8


@pytest.fixture
def unwatched(tmp_path: Path) -> Slice:
    """A slice on the one-page driver, never under a sanitizer."""
    return make_slice(tmp_path, stub_driver(), STUB_UUID, {})


def alone(within: Slice, scenario: str, **more: str) -> Any:
    """Run a scenario of rough/alone.cc to its end."""
    return json.loads(xpu_rough.finish(xpu_rough.start(within, "alone", scenario, **more)))


def says(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended with {process.wait()}"
    return json.loads(line)


def hostile_libc(within: Slice, directory: Path) -> str:
    """LD_PRELOAD with hostile_libc.c before the rest."""
    built = directory / "hostile_libc.so"
    run([*zig_cc(), "-shared", "-fPIC", "-o", built, HERE / "hostile_libc.c", "-ldl"])
    return f"{within.outside.get('LD_PRELOAD', '')} {built}".strip()


def set_epoch(page: Path, epoch: int) -> None:
    with page.open("r+b", buffering=0) as file:
        file.seek(EPOCH_AT)
        file.write(EPOCH.pack(epoch))


def test_a_thread_cancelled_in_the_first_call_leaves_it_whole(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    assert alone(stub, "cancel_init") == {"cancelled": 1, "over": OUT_OF_MEMORY}


def test_threads_cancelled_while_held_back_leave_no_lock(stub: Slice) -> None:
    stub.grant(cores_percent=10, tau_ns=5_000_000)
    launches = alone(stub, "cancel_throttled")["launches"]
    card = stub.ledger().cards[0]
    assert card.throttled_ns > 0
    assert card.launches == launches, "none was cut off between admission and launch"


def test_a_launch_that_is_held_back_is_no_cancellation_point(stub: Slice) -> None:
    stub.grant(cores_percent=10, tau_ns=5_000_000)
    assert alone(stub, "cancel_pending") == {"cancelled": 1, "returned": 1}
    assert stub.ledger().cards[0].throttled_ns > 0


@pytest.mark.parametrize("source", ["config.page", "vgpu.config"])
def test_a_thread_with_a_stack_of_16_kib(unwatched: Slice, source: str) -> None:
    stub = unwatched  # a watched frame needs several times the stack
    if source == "config.page":
        stub.grant(memory_bytes=3 * GIB, cores_percent=20, tau_ns=5_000_000)
    else:
        stub.grant_upstream(memory_mib=3072, cores_percent=20)
    assert alone(stub, "small_stack") == {"launches": 60, "over": OUT_OF_MEMORY}


def test_a_storm_of_signals_neither_hurts_nor_lifts_the_limit(stub: Slice) -> None:
    stub.grant(cores_percent=20, tau_ns=5_000_000)
    seen = alone(stub, "signals")
    assert seen["launches"] == 100
    assert seen["signals"] > 20
    card = stub.ledger().cards[0]
    assert card.launches == 100
    # 100 ms of work at a fifth: all but the burst and four first guesses was waited for.
    assert card.throttled_ns > 200_000_000


def test_without_a_free_descriptor_at_first_the_limit_comes_later(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    assert alone(stub, "no_descriptors") == {"init": 0, "over": OUT_OF_MEMORY}


def test_without_memory_of_the_host_the_answer_is_cuda_s(unwatched: Slice) -> None:
    stub = unwatched  # AddressSanitizer itself ends where memory does
    stub.grant(memory_bytes=3 * GIB, cores_percent=50)
    assert alone(stub, "no_memory") == {"launched": 40, "over": OUT_OF_MEMORY}
    assert stub.ledger().cards[0].launches == 20, "as soon as there was memory"


def test_an_allocation_that_cannot_be_remembered_is_refused_and_costs_nothing(
    unwatched: Slice, tmp_path: Path
) -> None:
    stub = unwatched  # AddressSanitizer brings a calloc of its own
    stub.grant(memory_bytes=3 * GIB)
    hostile = hostile_libc(stub, tmp_path)
    seen = alone(stub, "no_tables", LD_PRELOAD=hostile, FAIL_TABLES="yes")
    assert seen == {"refused": OUT_OF_MEMORY, "granted": 0}


def test_spawned_programs_do_not_end_our_locks(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    process = xpu_rough.start(stub, "alone", "vfork_exec")
    assert says(process) == {"held": 0}
    assert stub.scenario("memory")["first"] == OUT_OF_MEMORY, "2 of 3 GiB are held"
    xpu_rough.finish(process, "\n")
    assert stub.scenario("memory")["first"] == 0


def test_a_fork_in_the_middle_of_the_first_call(stub: Slice, tmp_path: Path) -> None:
    stub.grant(memory_bytes=3 * GIB)
    hostile = hostile_libc(stub, tmp_path)
    seen = alone(stub, "fork_in_init", LD_PRELOAD=hostile, SLOW_OPEN_SAYS=str(tmp_path / "opened"))
    assert seen == {"child": OUT_OF_MEMORY}


def test_a_page_whose_writer_died_half_way_still_limits(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB)
    set_epoch(stub.config, 7)
    assert stub.scenario("memory")["over"] == OUT_OF_MEMORY
    assert stub.monitor("-p", "1").returncode == 0


def test_a_writer_that_dies_later_changes_nothing_and_its_successor_does(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, cores_percent=20, tau_ns=5_000_000)
    process = xpu_rough.start(stub, "alone", "serve")
    assert says(process) == {"first": 0}
    with stub.config.open("r+b", buffering=0) as page:
        page.seek(EPOCH_AT)
        page.write(EPOCH.pack(1))
        page.seek(64 + 48)
        page.write(struct.pack("<Q", GIB))
    progress(stub)
    set_epoch(stub.config, 2)
    progress(stub)
    seen = json.loads(xpu_rough.finish(process, "\n"))
    assert seen["total"] == GIB


def progress(within: Slice, launches: int = 5) -> None:
    """Wait until more was launched; only a hang ends it otherwise."""
    goal = within.ledger().cards[0].launches + launches
    deadline = time.monotonic() + xpu_rough.HANGS_SECONDS
    while within.ledger().cards[0].launches < goal:
        assert time.monotonic() < deadline, "the load does not run"
        time.sleep(0.01)


def test_a_grant_that_changes_all_the_time(stub: Slice) -> None:
    """By turns 1 and 3 GiB: whatever is seen is one of them, and the last grant stays."""
    stub.grant(memory_bytes=GIB, cores_percent=10, tau_ns=5_000_000)
    process = xpu_rough.start(stub, "alone", "serve")
    assert says(process) == {"first": 0}
    enough = threading.Event()

    def change() -> None:
        grants = [(3 * GIB, 20), (GIB, 10)]
        for turn in range(10_000):
            memory, cores = grants[turn % 2]
            stub.regrant(memory_bytes=memory, cores_percent=cores, tau_ns=5_000_000)
            if enough.wait(0.01):
                break
        stub.regrant(memory_bytes=2 * GIB, cores_percent=10, tau_ns=5_000_000)

    changer = threading.Thread(target=change)
    changer.start()
    totals = {stub.scenario("memory")["total"] for _ in range(4)}
    progress(stub, 30)
    enough.set()
    changer.join()
    progress(stub)
    assert totals <= {GIB, 3 * GIB}
    assert json.loads(xpu_rough.finish(process, "\n"))["total"] == 2 * GIB


@pytest.mark.parametrize("what", ["directory", "unreadable", "loop", "pipe"])
def test_a_config_page_that_cannot_be_read(stub: Slice, what: str) -> None:
    """Damaged is no limits, said once; never a wait, never an end."""
    stub.grant(memory_bytes=GIB)
    stub.config.unlink()
    if what == "directory":
        stub.config.mkdir()
    elif what == "loop":
        stub.config.symlink_to(stub.config)
    elif what == "pipe":
        os.mkfifo(stub.config)
    else:
        stub.config.symlink_to("/proc/self/mem")
    silent = stub.scenario("memory")
    assert (silent["over"], silent["stderr"]) == (0, "")
    said = stub.scenario("memory", XPU_LOG="1")["stderr"]
    assert said.count("\n") == 1 and "no limits in this process" in said


@pytest.mark.parametrize("what", ["directory", "short", "garbage", "pipe", "loop"])
def test_a_damaged_ledger_limits_each_process_alone(stub: Slice, what: str) -> None:
    stub.grant(memory_bytes=3 * GIB)
    stub.ledger_file.unlink()
    if what == "directory":
        stub.ledger_file.mkdir()
    elif what == "pipe":
        os.mkfifo(stub.ledger_file)
    elif what == "loop":
        stub.ledger_file.symlink_to(stub.ledger_file)
    else:
        stub.ledger_file.write_bytes(b"x" * (100 if what == "short" else 200_000))
    assert stub.scenario("memory")["over"] == OUT_OF_MEMORY
