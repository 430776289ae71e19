# SPDX-License-Identifier: Apache-2.0
"""Threads of one process that do everything at once, watched by clang's sanitizers.

The interposer's other tests run under them in the long form (fixture ``stub``)."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xpu_rough
from xpu_slice import GIB, SANITIZE, STUB_UUID, TSAN, Slice, make_slice, sanitized, stub_driver
from xpubuild import clang
from xpubuild.clang import clangxx

# What a finding ends with; not one of our own codes.
FOUND = {
    "ASAN_OPTIONS": "exitcode=99",
    "TSAN_OPTIONS": "exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
WATCHES = {"asan+ubsan": SANITIZE, "tsan": TSAN}


@pytest.fixture(params=WATCHES)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Slice, Path]:
    """A slice whose library is watched, and the watched programs."""
    if not clang.available():
        pytest.skip("no clang on this machine; apt-get install clang")
    watch = WATCHES[request.param]
    # The stub's events are kept in a mapping that the leak search doesn't look into; that a program
    # replaces a descriptor while we open one is its own race, and meant.
    known = tmp_path / "known"
    known.write_text(
        "leak:cuEventCreate\n" if watch is SANITIZE else "race:replace_ledger_descriptor\n"
    )
    option = "LSAN_OPTIONS" if watch is SANITIZE else "TSAN_OPTIONS"
    found = {**FOUND, option: f"suppressions={known}:print_suppressions=0:exitcode=99"}
    within = make_slice(tmp_path, stub_driver(), STUB_UUID, found, sanitized(watch))
    return within, xpu_rough.programs([clangxx(), *watch])


@contextmanager
def changing(within: Slice) -> Iterator[None]:
    """The grant changes a hundred times a second meanwhile."""
    over = threading.Event()

    def change() -> None:
        for cores in itertools.cycle((40, 80)):
            if over.wait(0.01):
                return
            within.regrant(cores_percent=cores, memory_bytes=GIB, tau_ns=5_000_000)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        yield
    finally:
        over.set()
        changer.join()


@pytest.mark.parametrize("rounds", [10_000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_threads_that_do_everything_at_once(watched: tuple[Slice, Path], rounds: int) -> None:
    within, programs = watched
    within.grant(cores_percent=80, memory_bytes=GIB, tau_ns=5_000_000)
    with changing(within):
        stress: list[str | Path] = [*clang.unshuffled(), programs / "stress"]
        first = within.start([*stress, "6", str(rounds)])
        second = within.start([*stress, "2", str(rounds)])
        seen = [json.loads(xpu_rough.finish(process)) for process in (first, second)]
    launched = sum(one["launched"] for one in seen)
    assert all(one["granted"] > 0 for one in seen)
    assert within.ledger().cards[0].launches == launched


CANCELLED = ["cancel_init", "cancel_throttled", "cancel_pending"]
OTHERS = ["signals", "no_descriptors"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("watched", "scenario"),
    # AddressSanitizer takes the stack of a cancelled thread for overflown.
    [("asan+ubsan", one) for one in OTHERS] + [("tsan", one) for one in OTHERS + CANCELLED],
    indirect=["watched"],
)
def test_what_one_process_does_to_itself(watched: tuple[Slice, Path], scenario: str) -> None:
    within, programs = watched
    within.grant(cores_percent=20, memory_bytes=3 * GIB, tau_ns=5_000_000)
    process = within.start([*clang.unshuffled(), programs / "alone", scenario])
    assert json.loads(xpu_rough.finish(process))
