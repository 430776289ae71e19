# SPDX-License-Identifier: Apache-2.0
"""What NVML tells a program: ``nvml_tenant.py VERB ARGUMENTS…`` prints JSON. Only ctypes."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
U, U64 = ctypes.c_uint, ctypes.c_ulonglong
INSUFFICIENT_SIZE, FUNCTION_NOT_FOUND = 7, 13


class MemoryV1(ctypes.Structure):
    _fields_ = (("total", U64), ("free", U64), ("used", U64))


class MemoryV2(ctypes.Structure):
    _fields_ = (("version", U), ("total", U64), ("reserved", U64), ("free", U64), ("used", U64))


class ProcessV1(ctypes.Structure):
    _fields_ = (("pid", U), ("memory", U64))


class ProcessV2(ctypes.Structure):
    _fields_ = (("pid", U), ("memory", U64), ("instance", U), ("compute", U))


class Detail(ctypes.Structure):
    _fields_ = (*ProcessV2._fields_, ("protected", U64))


class DetailList(ctypes.Structure):
    _fields_ = (("version", U), ("mode", U), ("count", U), ("rows", ctypes.POINTER(Detail)))


class Rates(ctypes.Structure):
    _fields_ = (("gpu", U), ("memory", U))


class Sample(ctypes.Structure):
    _fields_ = (("pid", U), ("time", U64), ("sm", U), ("mem", U), ("enc", U), ("dec", U))


class Sample2(ctypes.Structure):
    _fields_ = (("time", U64), ("pid", U), *((n, U) for n in ("sm", "m", "e", "d", "j", "o")))


class Samples2(ctypes.Structure):
    _fields_ = (("version", U), ("count", U), ("seen", U64), ("rows", ctypes.POINTER(Sample2)))


class Value(ctypes.Structure):
    _fields_ = (("time", U64), ("value", U64))


class Named(ctypes.Structure):
    _fields_ = (("version", U), ("type", U), ("value", ctypes.c_char * 41))


class Pstates(ctypes.Structure):
    _fields_ = (("flags", U), ("rows", U * 4 * 8))


def function(library: ctypes.CDLL, name: str) -> Callable[..., int]:
    """A driver that lacks it answers as ours does for one that lacks it."""
    found: Callable[..., int] | None = getattr(library, name, None)
    return found or (lambda *_: FUNCTION_NOT_FOUND)


def versioned(kind: type[ctypes.Structure], version: int) -> int:
    return ctypes.sizeof(kind) | version << 24


def opened() -> ctypes.CDLL:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    assert library.nvmlInit_v2() == 0
    return library


def by_index(library: ctypes.CDLL, index: int) -> tuple[int, ctypes.c_void_p]:
    device = ctypes.c_void_p()
    return library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)), device


def uuid(library: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(96)
    assert library.nvmlDeviceGetUUID(device, text, 96) == 0
    return text.value.decode()


def listed(
    library: ctypes.CDLL, device: ctypes.c_void_p, name: str, kind: type[ctypes.Structure]
) -> list[list[int]] | None:
    """[pid, memory] of each, by the protocol: ask how many, then ask for them."""
    get = function(library, name)
    count = U(0)
    code = get(device, ctypes.byref(count), None)
    if code == FUNCTION_NOT_FOUND:
        return None  # this driver is older than that
    assert code == (INSUFFICIENT_SIZE if count.value else 0), (name, code)
    rows = (kind * max(count.value, 1))()
    code = get(device, ctypes.byref(count), rows)
    assert code == 0, (name, code)
    return [[row.pid, row.memory] for row in rows[: count.value]]


def detailed(library: ctypes.CDLL, device: ctypes.c_void_p, mode: int) -> Any:
    rows = (Detail * 64)()
    asked = DetailList(versioned(DetailList, 1), mode, 64, rows)
    ask = function(library, "nvmlDeviceGetRunningProcessDetailList")
    code = ask(device, ctypes.byref(asked))
    return [[row.pid, row.memory] for row in rows[: asked.count]] if code == 0 else code


def samples(library: ctypes.CDLL, device: ctypes.c_void_p, since: int) -> Any:
    """[pid, percent, time] of each busy process, or the error."""
    rows, count = (Sample * 64)(), U(64)
    code = library.nvmlDeviceGetProcessUtilization(device, rows, ctypes.byref(count), U64(since))
    return [[row.pid, row.sm, row.time] for row in rows[: count.value]] if code == 0 else code


def samples2(library: ctypes.CDLL, device: ctypes.c_void_p) -> Any:
    rows = (Sample2 * 64)()
    asked = Samples2(versioned(Samples2, 1), 64, 0, rows)
    ask = function(library, "nvmlDeviceGetProcessesUtilizationInfo")
    code = ask(device, ctypes.byref(asked))
    return [[row.pid, row.sm] for row in rows[: asked.count]] if code == 0 else code


def view() -> Result:
    """Everything about the first card."""
    library = opened()
    count = U()
    assert library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    code, device = by_index(library, 0)
    assert code == 0
    one, two, rates = MemoryV1(), MemoryV2(version=versioned(MemoryV2, 2)), Rates()
    assert library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(one)) == 0
    assert library.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(two)) in (0, FUNCTION_NOT_FOUND)
    assert library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates)) == 0
    lists = {
        kind + suffix: listed(library, device, f"nvmlDeviceGet{kind}RunningProcesses{suffix}", row)
        for kind in ("Compute", "Graphics", "MPSCompute")
        for suffix, row in (("", ProcessV1), ("_v2", ProcessV2), ("_v3", ProcessV2))
    }
    return {
        "pid": os.getpid(),
        "count": count.value,
        "uuid": uuid(library, device),
        "v1": [one.total, one.free, one.used],
        "v2": [two.total, two.free, two.used, two.reserved],
        "lists": lists,
        "details": [detailed(library, device, mode) for mode in range(3)],
        "gpu": rates.gpu,
        "samples": samples(library, device, 0),
        "samples2": samples2(library, device),
    }


def stretches() -> Result:
    """Samples of the stretches between lines of input, each asked for from the last one's time."""
    library = opened()
    device = by_index(library, 0)[1]
    seen = 0
    while True:
        found = samples(library, device, seen)
        seen = max([row[2] for row in found], default=seen) if isinstance(found, list) else seen
        print(json.dumps({"found": found}), flush=True)
        if not sys.stdin.readline().strip():
            return {}


def cards() -> Result:
    """How each way to a device answers; arguments are UUIDs."""
    library = opened()
    count, old, index = U(), U(), U()
    assert library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    assert library.nvmlDeviceGetCount(ctypes.byref(old)) == 0
    positions = []
    for position in range(count.value):
        code, device = by_index(library, position)
        assert code == 0
        assert library.nvmlDeviceGetIndex(device, ctypes.byref(index)) == 0
        positions.append([uuid(library, device), index.value])
    device = ctypes.c_void_p()
    return {
        "counts": [count.value, old.value],
        "positions": positions,
        "beyond": by_index(library, count.value)[0],
        "by_uuid": [
            library.nvmlDeviceGetHandleByUUID(wanted.encode(), ctypes.byref(device))
            for wanted in sys.argv[2:]
        ],
        "by_address": [
            library.nvmlDeviceGetHandleByPciBusId(address, ctypes.byref(device))
            for address in (b"0000:3b:00.0", b"0000:3c:00.0")
        ],
    }


def errors() -> Result:
    """What NVML itself refuses is refused in its words."""
    library = ctypes.CDLL("libnvidia-ml.so.1")
    memory, count, nobody = MemoryV1(), U(4), ctypes.c_void_p(16)
    early = library.nvmlDeviceGetMemoryInfo(None, ctypes.byref(memory))
    assert library.nvmlInit_v2() == 0
    device = by_index(library, 0)[1]
    wrong = MemoryV2(version=7)
    compute = library.nvmlDeviceGetComputeRunningProcesses_v3
    answers = {
        "early": early,
        "no device": library.nvmlDeviceGetMemoryInfo(None, ctypes.byref(memory)),
        "wild device": compute(nobody, ctypes.byref(count), None),
        "no memory": library.nvmlDeviceGetMemoryInfo(device, None),
        "version": library.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(wrong)),
        "no count": compute(device, None, None),
        "no rates": library.nvmlDeviceGetUtilizationRates(device, None),
        "no samples": library.nvmlDeviceGetProcessUtilization(device, None, None, U64(0)),
        "size of samples": library.nvmlDeviceGetProcessUtilization(
            device, None, ctypes.byref(count), U64(0)
        ),
    }
    assert library.nvmlShutdown() == 0
    answers["late"] = library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    return answers


def threads() -> Result:
    """Eight threads ask everything for the first time at once, and then again and again."""
    library = ctypes.CDLL("libnvidia-ml.so.1")
    start = threading.Barrier(8)
    answers: set[tuple[int, ...]] = set()

    def ask() -> None:
        start.wait()
        assert library.nvmlInit_v2() == 0
        for _ in range(200):
            code, device = by_index(library, 0)
            memory, rates, count = MemoryV1(), Rates(), U(0)
            codes = (
                code,
                library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)),
                library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates)),
                library.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), None),
            )
            answers.add((*codes, memory.total, memory.used, rates.gpu, count.value))

    several = [threading.Thread(target=ask) for _ in range(8)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    return {"answers": sorted(answers)}


def both() -> Result:
    """CUDA and NVML in one process: hold memory, look, close NVML, and wait to be told to end."""
    tenant = importlib.import_module("tenant")  # lies beside this file
    driver = tenant.open_driver()
    code, _ = tenant.allocate(driver, int(sys.argv[2]))
    library = opened()
    device = by_index(library, 0)[1]
    seen = listed(library, device, "nvmlDeviceGetComputeRunningProcesses_v3", ProcessV2)
    assert library.nvmlShutdown() == 0
    child = os.fork()
    if child == 0:
        os._exit(view()["v1"][0] >> 30)
    in_child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(
        json.dumps({"code": code, "pid": os.getpid(), "seen": seen, "in_child": in_child}),
        flush=True,
    )
    sys.stdin.readline()
    return {}


def rarer() -> Result:
    """Functions that few programs use, on the first card."""
    library = opened()
    device = by_index(library, 0)[1]
    pids, count, kind, states = (U * 8)(), U(8), U(), Pstates()
    accounted = library.nvmlDeviceGetAccountingPids(device, ctypes.byref(count), pids)
    sessions = []
    for name in ("nvmlDeviceGetEncoderSessions", "nvmlDeviceGetFBCSessions"):
        some = U(8)
        code = getattr(library, name)(device, ctypes.byref(some), ctypes.create_string_buffer(4096))
        sessions.append([code, some.value])
    values: Result = {}
    for sampling in (1, 2):
        rows, found = (Value * 128)(), U(128)
        ask = (device, sampling, U64(0), ctypes.byref(kind), ctypes.byref(found))
        code = library.nvmlDeviceGetSamples(*ask, rows)
        values[str(sampling)] = [code, *(row.value for row in rows[: found.value])][:2]
        found = U(0)
        assert library.nvmlDeviceGetSamples(*ask[:4], ctypes.byref(found), None) == 0
        values[f"size of {sampling}"] = found.value
    assert library.nvmlDeviceGetDynamicPstatesInfo(device, ctypes.byref(states)) == 0
    named = {}
    for wanted in sys.argv[2:]:
        asked = Named(0, 0, wanted.encode())
        handle = ctypes.c_void_p()
        named[wanted] = library.nvmlDeviceGetHandleByUUIDV(
            ctypes.byref(asked), ctypes.byref(handle)
        )
    return {
        "accounted": [accounted, count.value],
        "accounting of a stranger": library.nvmlDeviceGetAccountingStats(
            device, 4242, ctypes.create_string_buffer(256)
        ),
        "sessions": sessions,
        "values": values,
        "pstates": [states.rows[0][1], states.rows[1][1]],
        "named": named,
    }


VERBS: dict[str, Callable[[], Result]] = {
    "view": view,
    "stretches": stretches,
    "cards": cards,
    "errors": errors,
    "threads": threads,
    "both": both,
    "rarer": rarer,
}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]]()))
