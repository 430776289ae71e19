# SPDX-License-Identifier: GPL-3.0-or-later
"""What bench-allocate makes of the plugins' logs; the crowd itself is tested in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.allocate import ALLOCATE_MS, Call, Found, bare_writes, figures, parse_calls

LOG = """\
time=2026-11-25T03:00:00.000Z level=INFO msg=registered resource=huawei.com/vgpu-number ids=40
time=… level=DEBUG msg=call method=Allocate resource=huawei.com/vgpu-number ids=1 ns=31000 code=OK
time=… level=INFO msg="slice settled" pod=a/b owner=u/c key=s1
time=… level=DEBUG msg=call method=PreStartContainer resource=huawei.com/vgpu-number ids=2 \
ns=4000000 code=ResourceExhausted
"""


def call(method: str, ms: float) -> Call:
    return Call(method, "huawei.com/vgpu-number", 1, int(ms * 1e6), "OK")


def test_calls_are_read_from_the_log() -> None:
    assert parse_calls(LOG) == [
        Call("Allocate", "huawei.com/vgpu-number", 1, 31_000, "OK"),
        Call("PreStartContainer", "huawei.com/vgpu-number", 2, 4_000_000, "ResourceExhausted"),
    ]


def test_the_slowest_calls_decide() -> None:
    calls = [call("Allocate", 0.1)] * 197 + [call("Allocate", 2 * ALLOCATE_MS)] * 3
    found = Found(calls=[*calls, call("PreStartContainer", 3.0)])
    assert figures(found)["Allocate p99"].met is False
    found.calls = [call("Allocate", 0.1), *found.calls[:199], found.calls[-1]]
    assert figures(found)["Allocate p99"].met is True
    assert figures(found)["PreStart p99"].met is True


def test_a_wrong_card_and_a_stuck_pod_fail_the_report() -> None:
    calls = [call("Allocate", 0.1), call("PreStartContainer", 3.0)]
    assert figures(Found(calls=calls, wrong=["one"]))["wrong cards"].met is False
    assert figures(Found(calls=calls, stuck=1))["stuck pods"].met is False


def test_no_call_is_no_good_figure() -> None:
    with pytest.raises(ValueError, match="log-level debug"):
        figures(Found(calls=[call("Allocate", 0.1)]))


def test_bare_writes_are_timed_and_leave_nothing(tmp_path: Path) -> None:
    times: list[float] = []
    with bare_writes(tmp_path, 0.001, times):
        while len(times) < 3:
            pass
    assert all(ms > 0 for ms in times)
    assert list(tmp_path.iterdir()) == []
    with bare_writes(tmp_path, 0, times):
        assert list(tmp_path.iterdir()) == []
