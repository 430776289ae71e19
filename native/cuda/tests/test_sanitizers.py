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
    # The stub's events are kept in a mapping that the leak search doesn't look into.
    kept = tmp_path / "kept"
    kept.write_text("leak:cuEventCreate\n")
    found = {**FOUND, "LSAN_OPTIONS": f"suppressions={kept}:print_suppressions=0"}
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


@pytest.mark.parametrize("rounds", [3_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_threads_that_do_everything_at_once(watched: tuple[Slice, Path], rounds: int) -> None:
    within, programs = watched
    within.grant(cores_percent=80, memory_bytes=GIB, tau_ns=5_000_000)
    with changing(within):
        first = within.start([programs / "stress", "6", str(rounds)])
        second = within.start([programs / "stress", "2", str(rounds)])
        seen = [json.loads(xpu_rough.finish(process)) for process in (first, second)]
    launched = sum(one["launched"] for one in seen)
    assert all(one["granted"] > 0 for one in seen)
    assert within.ledger().cards[0].launches == launched
