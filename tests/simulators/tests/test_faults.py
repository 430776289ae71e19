# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults on the observer's side (nvml/faults.h), changed under a running NVML program."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from simulators.simnode import Node
from simulators.tests.harness import Tenant, queue_up, reading
from simulators.tests.test_interfaces import Nvml

WINDOW_NS = 166_666_666
Start = Callable[..., Tenant]


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "faults"
    path.write_text("")
    monkeypatch.setenv("SIMGPU_FAULTS", str(path))
    return path


def busy_sample(node: Node, tenant: Start) -> None:
    """Keep one process on the card for longer than a test asks, until a window is full of it."""
    queue_up([tenant(node, "backlog", 100_000_000, 600)])
    start = reading(node)["monotonic_ns"]
    while reading(node)["monotonic_ns"] < start + 2 * WINDOW_NS:
        time.sleep(0.02)


def test_samples_are_late_biased_shifted_missing(
    node: Node, tenant: Start, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(node, monkeypatch)
    busy_sample(node, tenant)
    code, (sample,) = nvml.samples(0)
    assert (code, sample.sm) == (0, 100)
    faults.write_text("bias_percent -10\ntime_jump_ms 60000\n")
    ((biased),) = nvml.samples(0)[1]
    assert biased.sm == 90
    assert 59e6 < biased.time - time.time() * 1e6 < 61e6
    faults.write_text("missing_percent 100\n")
    assert nvml.samples(0)[0] == 6  # NVML_ERROR_NOT_FOUND
    faults.write_text("delay_ms 300\n")
    begin = time.monotonic()
    assert nvml.samples(0)[0] == 0
    assert time.monotonic() - begin >= 0.3
    nvml.close()


def test_a_lost_card_and_a_misspelt_fault_fail_calls(
    node: Node, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(node, monkeypatch)
    faults.write_text("lost_card 0\n")
    assert nvml.samples(0)[0] == 15  # NVML_ERROR_GPU_IS_LOST
    faults.write_text("lost_card 1\n")
    assert nvml.samples(0)[0] == 6
    faults.write_text("lostcard 1\n")
    assert nvml.samples(0)[0] == 999  # NVML_ERROR_UNKNOWN
    nvml.close()


class EventData(ctypes.Structure):
    """nvmlEventData_t."""

    _fields_ = (
        ("device", ctypes.c_void_p),
        ("type", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("instances", ctypes.c_uint * 2),
    )


def test_an_xid_is_told_once_to_each_who_waits(
    node: Node, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(node, monkeypatch)
    events, data = ctypes.c_void_p(), EventData()
    assert nvml.library.nvmlEventSetCreate(ctypes.byref(events)) == 0
    every = ctypes.c_ulonglong(8)  # nvmlEventTypeXidCriticalError
    assert nvml.library.nvmlDeviceRegisterEvents(nvml.device, every, events) == 0

    def wait() -> int:
        code: int = nvml.library.nvmlEventSetWait_v2(events, ctypes.byref(data), 1)
        return code

    assert wait() == 10  # NVML_ERROR_TIMEOUT
    faults.write_text("xid 79\n")
    assert wait() == 0
    assert (data.type, data.data, data.device) == (8, 79, nvml.device.value)
    assert wait() == 10
    nvml.close()
