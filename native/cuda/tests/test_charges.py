# SPDX-License-Identifier: Apache-2.0
"""What is charged after each call, on a driver small enough to be told what it answers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from xpu_slice import HERE, Slice

MIB = 1 << 20
GIB = 1 << 30
OUT_OF_MEMORY, REFUSED = 2, 999


def run(stub: Slice, *scenario: str) -> list[tuple[str, int, float]]:
    """What was done, the answer, and MiB charged then."""
    argv = [sys.executable, HERE / "stub_tenant.py", *scenario]
    done = subprocess.run(
        [str(word) for word in argv],
        env=stub.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [(note, answer, charged) for note, answer, charged in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("scenario", "wanted"),
    [
        (
            "physical",
            [
                ("refused", REFUSED, 0),
                ("of the host", 0, 0),
                ("made", 0, 100),
                ("not mapped", REFUSED, 100),
                ("mapped", 0, 100),
                ("not released", REFUSED, 100),
                ("released", 0, 100),
                ("not unmapped", REFUSED, 100),
                ("unmapped", 0, 0),
            ],
        ),
        (
            "imports",
            [
                ("first", 0, 10),
                ("last", 0, 30),
                ("first mapped", 0, 30),
                ("foreign mapped", 0, 30),
                ("last mapped", 0, 30),
                ("first released", 0, 30),
                ("last released", 0, 30),
                ("foreign released", 0, 30),
                ("all unmapped", 0, 0),
            ],
        ),
        (
            "tiles",
            [
                ("sparse", 0, 0),
                ("made", 0, 64),
                ("two tiles", 0, 64),
                ("again", 0, 64),
                ("released", 0, 64),
                ("unmapped some time", 0, 64),
                ("gone", 0, 0),
            ],
        ),
        (
            "bound",
            [
                ("made", 0, 64),
                ("another", 0, 96),
                ("team", 0, 96),
                ("not bound", REFUSED, 96),
                ("bound", 0, 96),
                ("bound to an endpoint", 0, 96),
                ("memory released", 0, 96),
                ("another released", 0, 96),
                ("endpoint gone", 0, 64),
                ("team mapped", 0, 64),
                ("team released", 0, 64),
                ("team unmapped", 0, 0),
            ],
        ),
        (
            "arrays",
            [
                ("16 MiB", 0, 16),
                ("mapped later", 0, 16),
                *((f"small {number}", 0, 18) for number in range(6)),
                *((f"small {number}", 0, 20) for number in range(6, 8)),
                ("3 levels", 0, 68),
                ("too large", OUT_OF_MEMORY, 68),
                ("without levels", 0, 20),
                *(("without small", 0, 20) for _ in range(1)),
                *(("without small", 0, 18) for _ in range(6)),
                ("without small", 0, 16),
                ("without the first", 0, 0),
            ],
        ),
        (
            "limits",
            [
                ("begin", 0, 300),
                ("heap 128 MiB", 0, 420),
                ("heap 108 MiB", 0, 400),
                ("stack 9 KiB", 0, 480),
                ("driver says no", REFUSED, 480),
                ("too large", OUT_OF_MEMORY, 480),
                ("heap as at first", 0, 380),
                ("end", 0, 0),
            ],
        ),
        (
            "foreign",
            [
                ("own", 0, 32),
                ("imported", 0, 32),
                ("refused", OUT_OF_MEMORY, 1),
                ("trimmed", 1, 1),
                ("destroyed", 0, 1),
            ],
        ),
        (
            "leaving",
            [
                ("begin", 0, 300),
                ("taken", 0, 400),
                ("busy", 0, 400),
                ("synchronised another", 0, 400),
                ("taken", 0, 500),
                ("idle", 0, 500),
                ("synchronised another", 0, 400),
                ("too large", OUT_OF_MEMORY, 400),
                ("end", 0, 0),
            ],
        ),
        (
            "detached",
            [
                ("begin", 0, 300),
                ("attach", 0, 300),
                ("memory", 0, 310),
                ("detach", 0, 310),
                ("detach the last", 0, 0),
            ],
        ),
    ],
)
def test_what_is_charged(stub: Slice, scenario: str, wanted: list[tuple[str, int, float]]) -> None:
    stub.grant(memory_bytes=GIB, context_bytes=300 * MIB)
    assert run(stub, scenario) == wanted


def test_a_pool_that_grows_more_than_expected_is_cut_back_and_its_step_is_learnt(
    stub: Slice,
) -> None:
    stub.grant(memory_bytes=100 * MIB)
    assert run(stub, "surprise") == [
        ("first", 0, 96),
        ("second", OUT_OF_MEMORY, 1),
        ("reserved", 0, 1),
    ]
    stub.grant(memory_bytes=80 * MIB)
    assert run(stub, "surprise") == [
        ("first", OUT_OF_MEMORY, 0),
        ("second", OUT_OF_MEMORY, 0),
        ("reserved", 0, 0),
    ]


@pytest.mark.parametrize(
    "path", ["cuMemAlloc_v2", "cuMemAllocPitch_v2", "cuMemAllocAsync", "cuArray3DCreate_v2"]
)
def test_not_even_for_an_instant_is_more_taken_than_granted(stub: Slice, path: str) -> None:
    stub.grant(memory_bytes=333 * MIB + 333)
    ((_, _, most),) = run(stub, "greedy", path)
    assert 333 - 64 < most <= 333


def test_what_exceeds_the_quota_is_asked_to_stay_on_the_host(stub: Slice) -> None:
    stub.grant(memory_bytes=3 * GIB, flags=2)
    assert run(stub, "oversubscribed") == [
        ("0", 0, 2048),
        ("1", 0, 2048),
        ("asked to stay on the host", 1, 0),
    ]
    stub.grant(memory_bytes=3 * GIB)
    assert [answer for _, answer, _ in run(stub, "oversubscribed")] == [0, OUT_OF_MEMORY, 0]
