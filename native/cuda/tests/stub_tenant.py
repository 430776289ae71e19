# SPDX-License-Identifier: Apache-2.0
"""Calls on the one-page driver (stub_driver.cc), each followed by what is charged then.

``stub_tenant.py NAME`` prints JSON: a list of [what was done, answer, MiB charged].
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xpu_pages

MIB = 1 << 20
U64 = ctypes.c_uint64
SIZE = ctypes.c_size_t
PTR = ctypes.c_void_p
DEVICE, HOST = 1, 2
SPARSE, MAPPED_LATER = 0x40, 0x80
STACK, HEAP = 0, 2
ADDRESS = 0x7E0000000000


class Stub:
    """The driver as it is met, and the notes of what happened."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.notes: list[tuple[str, int, float]] = []
        self.driver.cuInit(0)

    def context(self) -> PTR:
        context = PTR()
        self.do("begin", "cuCtxCreate_v2", ctypes.byref(context), 0, 0)
        return context

    def do(self, note: str, name: str, *arguments: Any) -> int:
        """Call *name* and note it."""
        answer: int = getattr(self.driver, name)(*arguments)
        page = xpu_pages.read_ledger(Path(os.environ["XPU_LEDGER_PAGE"]))
        charged = sum(process.memory_bytes[0] for process in page.processes)
        self.notes.append((note, answer, charged / MIB))
        return answer

    def fail_next(self, answer: int = 999) -> None:
        self.driver.stubFailNext(answer)

    def create(self, note: str, mib: int, where: int = DEVICE) -> U64:
        handle = U64()
        how = (ctypes.c_int * 8)(1, 0, where, 0)
        self.do(note, "cuMemCreate", ctypes.byref(handle), SIZE(mib * MIB), how, U64(0))
        return handle

    def release(self, note: str, handle: U64) -> None:
        self.do(note, "cuMemRelease", handle)

    def map(self, note: str, at_mib: int, mib: int, handle: U64) -> None:
        place = U64(ADDRESS + at_mib * MIB)
        self.do(note, "cuMemMap", place, SIZE(mib * MIB), SIZE(0), handle, U64(0))

    def unmap(self, note: str, at_mib: int, mib: int) -> None:
        self.do(note, "cuMemUnmap", U64(ADDRESS + at_mib * MIB), SIZE(mib * MIB))

    def array(self, note: str, texels: int, flags: int = 0) -> PTR:
        array = PTR()
        shape = Shape(texels, 0, 0, 0x20, 4, flags)
        self.do(note, "cuArray3DCreate_v2", ctypes.byref(array), ctypes.byref(shape))
        return array


class Shape(ctypes.Structure):
    _fields_ = (
        *((axis, SIZE) for axis in ("width", "height", "depth")),
        *((name, ctypes.c_uint) for name in ("format", "channels", "flags")),
    )


class Tile(ctypes.Structure):
    """CUarrayMapInfo."""

    _fields_ = (
        ("resource_type", ctypes.c_int),
        ("resource", PTR),
        ("subresource_type", ctypes.c_int),
        ("subresource", U64 * 4),
        ("operation", ctypes.c_int),
        ("handle_type", ctypes.c_int),
        ("handle", U64),
        ("offset", U64),
        ("devices", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 2),
    )


def physical(stub: Stub) -> None:
    """What holds physical memory, and calls that the driver refuses."""
    stub.fail_next()
    stub.create("refused", 100)
    stub.create("of the host", 100, HOST)
    handle = stub.create("made", 100)
    stub.fail_next()
    stub.map("not mapped", 0, 100, handle)
    stub.map("mapped", 0, 100, handle)
    stub.fail_next()
    stub.release("not released", handle)
    stub.release("released", handle)
    stub.fail_next()
    stub.unmap("not unmapped", 0, 100)
    stub.unmap("unmapped", 0, 100)


def imports(stub: Stub) -> None:
    """Memory of others in the middle of one's own: it costs nothing, and unmaps with the rest."""
    first, last = stub.create("first", 10), stub.create("last", 20)
    foreign = U64(0x77777)
    stub.map("first mapped", 0, 10, first)
    stub.map("foreign mapped", 10, 30, foreign)
    stub.map("last mapped", 40, 20, last)
    stub.release("first released", first)
    stub.release("last released", last)
    stub.release("foreign released", foreign)
    stub.unmap("all unmapped", 0, 60)


def tiles(stub: Stub) -> None:
    """A sparse array costs nothing and keeps what is mapped into it."""
    array = stub.array("sparse", 1 << 20, SPARSE)
    handle = stub.create("made", 64)
    mapping = (Tile * 2)(*(Tile(resource=array, operation=1, handle=handle.value) for _ in "12"))
    stub.do("two tiles", "cuMemMapArrayAsync", mapping, 2, None)
    stub.do("again", "cuMemMapArrayAsync", mapping, 2, None)
    stub.release("released", handle)
    mapping[0].operation = mapping[1].operation = 2
    stub.do("unmapped some time", "cuMemMapArrayAsync", mapping, 2, None)
    stub.do("gone", "cuArrayDestroy", array)


def bound(stub: Stub) -> None:
    """Multicast objects and logical endpoints keep what is bound to them."""
    team, memory, other = U64(), stub.create("made", 64), stub.create("another", 32)
    stub.do("team", "cuMulticastCreate", ctypes.byref(team), None)
    binding = (team, SIZE(0), memory, SIZE(0), SIZE(64 * MIB), U64(0))
    stub.fail_next()
    stub.do("not bound", "cuMulticastBindMem", *binding)
    stub.do("bound", "cuMulticastBindMem", *binding)
    endpoint = (7, 0, U64(0), other, U64(0), U64(32 * MIB), U64(0))
    stub.do("bound to an endpoint", "cuLogicalEndpointBindMem", *endpoint)
    stub.release("memory released", memory)
    stub.release("another released", other)
    stub.do("endpoint gone", "cuLogicalEndpointDestroy", 7)
    stub.map("team mapped", 0, 64, team)
    stub.release("team released", team)
    stub.unmap("team unmapped", 0, 64)


def arrays(stub: Stub) -> None:
    """The size that only a twin tells: 16 bytes a texel and twice that for odd reasons."""
    million = 1 << 20
    first = stub.array("16 MiB", million - 1)
    stub.array("mapped later", million, MAPPED_LATER)
    small = [stub.array(f"small {number}", 20_000) for number in range(8)]
    mipmap, shape = PTR(), Shape(million, 0, 0, 0x20, 4, 0)
    stub.do("3 levels", "cuMipmappedArrayCreate", ctypes.byref(mipmap), ctypes.byref(shape), 3)
    stub.array("too large", 100 * million)
    stub.do("without levels", "cuMipmappedArrayDestroy", mipmap)
    for array in small:
        stub.do("without small", "cuArrayDestroy", array)
    stub.do("without the first", "cuArrayDestroy", first)


def limits(stub: Stub) -> None:
    """Device heap and stack grow a context."""
    context = stub.context()
    stub.do("heap 128 MiB", "cuCtxSetLimit", HEAP, SIZE(128 * MIB))
    stub.do("heap 108 MiB", "cuCtxSetLimit", HEAP, SIZE(108 * MIB))
    stub.do("stack 9 KiB", "cuCtxSetLimit", STACK, SIZE(9 << 10))  # of 10 x 1024 threads
    stub.fail_next()
    stub.do("driver says no", "cuCtxSetLimit", HEAP, SIZE(200 * MIB))
    stub.do("too large", "cuCtxSetLimit", HEAP, SIZE(4096 * MIB))
    stub.do("heap as at first", "cuCtxSetLimit", HEAP, SIZE(8 * MIB))
    stub.do("end", "cuCtxDestroy_v2", context)


def detached(stub: Stub) -> None:
    """The last use ends a context."""
    context = stub.context()
    stub.do("attach", "cuCtxAttach", ctypes.byref(context), 0)
    stub.do("memory", "cuMemAlloc_v2", ctypes.byref(U64()), SIZE(10 * MIB))
    stub.do("detach", "cuCtxDetach", context)
    stub.do("detach the last", "cuCtxDetach", context)


def surprise(stub: Stub) -> None:
    """A pool that takes 64 MiB more than anybody expects, in a quota of 100 MiB."""
    stub.driver.stubPoolSurprise(U64(64 * MIB))
    stub.do("first", "cuMemAllocAsync", ctypes.byref(U64()), SIZE(MIB), None)
    stub.do("second", "cuMemAllocAsync", ctypes.byref(U64()), SIZE(96 * MIB), None)
    stub.driver.stubPoolReserved.restype = U64
    reserved = stub.driver.stubPoolReserved() / MIB
    stub.notes.append(("reserved", 0, reserved))


def foreign(stub: Stub) -> None:
    """Another process' pool is free of charge, whatever is done with it."""
    pool = PTR()
    stub.do("own", "cuMemAllocAsync", ctypes.byref(U64()), SIZE(MIB), None)
    shared = (ctypes.byref(pool), None, 1, U64(0))
    stub.do("imported", "cuMemPoolImportFromShareableHandle", *shared)
    stub.do("refused", "cuMemAlloc_v2", ctypes.byref(U64()), SIZE(4096 * MIB))
    stub.do("trimmed", "cuMemPoolTrimTo", pool, SIZE(0))
    stub.do("destroyed", "cuMemPoolDestroy", pool)


def leaving(stub: Stub) -> None:
    """Memory freed in a stream is gone when the stream gets there."""
    context, pointer, busy, idle = stub.context(), U64(), PTR(5), PTR(6)
    length = U64(10**15)
    parameters = (PTR * 1)(ctypes.addressof(length))
    for note, stream in (("busy", busy), ("idle", idle)):
        stub.do("taken", "cuMemAlloc_v2", ctypes.byref(pointer), SIZE(100 * MIB))
        if stream is busy:
            stub.driver.cuLaunchKernel(PTR(0x1000), *(1,) * 6, 0, stream, parameters, None)
        stub.do(note, "cuMemFreeAsync", pointer, stream)
        stub.do("synchronised another", "cuStreamSynchronize", PTR(7))
    stub.do("too large", "cuMemAlloc_v2", ctypes.byref(pointer), SIZE(700 * MIB))
    stub.do("end", "cuCtxDestroy_v2", context)


def greedy(stub: Stub) -> None:
    """Takes all there is in odd pieces; notes the most that the card ever gave."""
    allocate: dict[str, Callable[[SIZE], int]] = {
        "cuMemAllocAsync": lambda size: stub.driver.cuMemAllocAsync(
            ctypes.byref(U64()), size, None
        ),
        "cuMemAllocPitch_v2": lambda size: stub.driver.cuMemAllocPitch_v2(
            ctypes.byref(U64()), ctypes.byref(SIZE()), SIZE(700), SIZE(size.value // 700), 4
        ),
        "cuArray3DCreate_v2": lambda size: stub.driver.cuArray3DCreate_v2(
            ctypes.byref(PTR()), ctypes.byref(Shape(size.value // 16, 1, 1, 0x20, 4, 0))
        ),
        "cuMemAlloc_v2": lambda size: stub.driver.cuMemAlloc_v2(ctypes.byref(U64()), size),
    }
    call = allocate[sys.argv[2]]
    size = 50 * MIB + 4321
    while size > MIB // 8:
        if call(SIZE(size)) != 0:
            size //= 2
    stub.driver.stubMostUsed.restype = U64
    stub.notes.append(("most", 0, stub.driver.stubMostUsed() / MIB))


def oversubscribed(stub: Stub) -> None:
    for number in range(2):
        stub.do(f"{number}", "cuMemAlloc_v2", ctypes.byref(U64()), SIZE(2048 * MIB))
    stub.notes.append(("asked to stay on the host", stub.driver.stubAdvisedHost(), 0))


SCENARIOS: dict[str, Callable[[Stub], None]] = {
    found.__name__: found
    for found in (
        physical, imports, tiles, bound, arrays, limits, detached, surprise, foreign, leaving,
        greedy,
        oversubscribed,
    )
}  # fmt: skip


def main() -> int:
    """Run the scenario named by the first argument."""
    stub = Stub()
    SCENARIOS[sys.argv[1]](stub)
    print(json.dumps(stub.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
