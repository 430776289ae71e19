# SPDX-License-Identifier: Apache-2.0
"""Scenarios that run inside a slice, as a tenant: ``tenant.py NAME ARGUMENTS…`` prints JSON.

Only ctypes and the driver API: what is tested is what any program would see.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

GIB = 1 << 30
PER_THREAD_STREAM = 2  # CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM
Result = dict[str, Any]


def open_driver() -> ctypes.CDLL:
    """The driver, initialised, with a context current."""
    library = ctypes.CDLL("libcuda.so.1")
    assert library.cuInit(0) == 0
    context = ctypes.c_void_p()
    assert library.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    return library


def allocate(library: ctypes.CDLL, size: int) -> tuple[int, int]:
    """(CUDA's answer, pointer)."""
    pointer = ctypes.c_uint64()
    return library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)), pointer.value


def free_and_total(library: ctypes.CDLL) -> tuple[int, int]:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value, total.value


def library_of(address: int | None) -> str:
    """The file a function lies in, as dladdr says."""

    class Info(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    info = Info()
    assert ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info)) != 0
    return os.path.basename(os.path.realpath(os.fsdecode(info.file)))


def address_of(library: ctypes.CDLL, name: str) -> str:
    return library_of(ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


def lookups() -> Result:
    """Where each way of finding a function leads."""
    library = open_driver()
    found: Result = {f"dlsym {name}": address_of(library, name) for name in sys.argv[2:]}
    for name in ("cuMemAlloc", "cuLaunchKernel", "cuGetProcAddress", "cuSomethingOfTheFuture"):
        for flags in (0, PER_THREAD_STREAM):
            pointer, status = ctypes.c_void_p(), ctypes.c_int(-1)
            code = library.cuGetProcAddress_v2(
                name.encode(), ctypes.byref(pointer), 12080, ctypes.c_uint64(flags),
                ctypes.byref(status),
            )  # fmt: skip
            assert (code, status.value) == (0, 0)
            found[f"v2 {name} {flags}"] = library_of(pointer.value)
        code = library.cuGetProcAddress(
            name.encode(), ctypes.byref(pointer), 12080, ctypes.c_uint64(0)
        )
        found[f"v1 {name}"] = library_of(pointer.value)
    distinct = {
        ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        for name in ("cuLaunchKernel", "cuLaunchKernel_ptsz")
    }
    pointer = ctypes.c_void_p()
    missing = library.cuGetProcAddress_v2(
        b"cuNoSuchThing", ctypes.byref(pointer), 12080, ctypes.c_uint64(0), None
    )
    return {
        "found": found,
        "per_thread_is_its_own": len(distinct) == 2,
        "missing": missing,
        "future": library.cuSomethingOfTheFuture(41),
    }


def memory() -> Result:
    """Every way to allocate, against a quota of 3 GiB."""
    library = open_driver()
    shown = free_and_total(library)
    total = ctypes.c_size_t()
    assert library.cuDeviceTotalMem_v2(ctypes.byref(total), 0) == 0
    over, _ = allocate(library, 3 * GIB + 1)
    first, pointer = allocate(library, 2 * GIB)
    second, _ = allocate(library, GIB + (2 << 20))
    left = free_and_total(library)[0]
    managed, asynchronous, pitched = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()
    pitch = ctypes.c_size_t()
    size = ctypes.c_size_t
    answers = {
        "managed": library.cuMemAllocManaged(ctypes.byref(managed), size(2 * GIB), 1),
        "async": library.cuMemAllocAsync(ctypes.byref(asynchronous), size(2 * GIB), None),
        "async_ptsz": library.cuMemAllocAsync_ptsz(ctypes.byref(asynchronous), size(2 * GIB), None),
        # 1 GiB by its width, 2 GiB by its pitch
        "pitch": library.cuMemAllocPitch_v2(
            ctypes.byref(pitched), ctypes.byref(pitch), size(256), size((4 << 20) + 8192), 4
        ),
    }
    freed = library.cuMemFree_v2(ctypes.c_uint64(pointer))
    twice = library.cuMemFree_v2(ctypes.c_uint64(pointer))
    exact, _ = allocate(library, 3 * GIB)
    return {
        "shown": shown,
        "total": total.value,
        "over": over,
        "first": first,
        "second": second,
        "left": left,
        "answers": answers,
        "freed": freed,
        "twice": twice,
        "exact": exact,
    }


def context_end() -> Result:
    """Memory of a destroyed context is given back."""
    library = open_driver()
    context = ctypes.c_void_p()
    assert library.cuCtxGetCurrent(ctypes.byref(context)) == 0
    first, _ = allocate(library, 3 * GIB)
    assert library.cuCtxDestroy_v2(context) == 0
    assert library.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    second, _ = allocate(library, 3 * GIB)
    return {"first": first, "second": second}


def spin(library: ctypes.CDLL, nanoseconds: int) -> None:
    """One kernel on the stub driver, which runs as long as its first parameter says."""
    length = ctypes.c_uint64(nanoseconds)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(length))
    function = ctypes.c_void_p(0x1000)
    assert library.cuLaunchKernel(function, *(1,) * 6, 0, None, parameters, None) == 0


def streams() -> Result:
    """Four streams with five kernels of 1 ms each, then a wait for all; many times."""
    library = open_driver()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with open(sys.argv[2], "rb") as text:
        assert library.cuModuleLoadData(ctypes.byref(module), text.read() + b"\0") == 0
    assert library.cuModuleGetFunction(ctypes.byref(function), module, b"spin_ns") == 0
    handles = [ctypes.c_void_p() for _ in range(4)]
    for handle in handles:
        assert library.cuStreamCreate(ctypes.byref(handle), 1) == 0
    length = ctypes.c_uint64(1_000_000)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(length))
    for _ in range(int(sys.argv[3])):
        for _ in range(5):
            for handle in handles:
                code = library.cuLaunchKernel(function, *(1,) * 6, 0, handle, parameters, None)
                assert code == 0
        for handle in handles:
            assert library.cuStreamSynchronize(handle) == 0
    return {"pid": os.getpid()}


def capture() -> Result:
    """Launches between begin and end of a capture, each told so that the ledger can be read."""
    library = open_driver()
    library.stubBusyNs.restype = ctypes.c_longlong
    while library.stubBusyNs() < 50_000_000:  # until what one costs is known
        spin(library, 5_000_000)
    assert library.cuStreamBeginCapture_v2(None, 0) == 0
    print("{}", flush=True)
    sys.stdin.readline()
    for _ in range(1000):
        spin(library, 5_000_000)
    print("{}", flush=True)
    sys.stdin.readline()
    touched = library.stubEventsWhileCapturing()
    graph = ctypes.c_void_p()
    ended = library.cuStreamEndCapture(None, ctypes.byref(graph))
    return {"touched": touched, "ended": ended}


def hold() -> Result:
    """Allocate what the argument says, say so, and keep it until told to end."""
    library = open_driver()
    code, _ = allocate(library, int(sys.argv[2]))
    print(json.dumps({"code": code, "pid": os.getpid()}), flush=True)
    sys.stdin.readline()
    return {}


def forked() -> Result:
    """A child of a process that holds memory: sees the slice, owns nothing of it."""
    library = open_driver()
    first, _ = allocate(library, 2 * GIB)
    child = os.fork()
    if child == 0:
        code, _ = allocate(library, 2 * GIB)
        os._exit(code)
    over = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    child = os.fork()
    if child == 0:
        code, _ = allocate(library, GIB)
        os._exit(code)
    fits = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    again, _ = allocate(library, GIB)
    return {"first": first, "over": over, "fits": fits, "again": again}


def main() -> int:
    """Run the scenario named by the first argument."""
    scenarios: dict[str, Callable[[], Result]] = {
        "lookups": lookups,
        "memory": memory,
        "context_end": context_end,
        "capture": capture,
        "streams": streams,
        "hold": hold,
        "forked": forked,
    }
    print(json.dumps(scenarios[sys.argv[1]]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
