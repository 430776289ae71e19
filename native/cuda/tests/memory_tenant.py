# SPDX-License-Identifier: Apache-2.0
"""A tenant that allocates in every way there is: ``memory_tenant.py SEED``, a word a line.

``random N`` does N things by chance, ``threads M N`` the same in M threads, ``take KIND BYTES`` one
thing, ``drop`` gives one back, ``clear`` all of them, ``synchronise`` waits for the card, ``begin``
and ``end`` make and destroy a context, ``retain`` and ``release`` the primary one, ``info`` is what
the driver says is free. Each answers with a line of JSON. Only ctypes and the driver API: what is
tested is what any program would see.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20
OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_SUPPORTED = 0, 1, 2, 801
GRANULE = 2 * MIB
FLOAT = 0x20
TEXEL_BYTES = 16
SIZE, U64, PTR = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p


class Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class AllocationProperties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("windows", PTR),
        ("flags", ctypes.c_ubyte * 8),
    )


class PoolProperties(ctypes.Structure):
    """CUmemPoolProps."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("windows", PTR),
        ("max_size", SIZE),
        ("reserved", ctypes.c_ubyte * 56),
    )


class NodeProperties(ctypes.Structure):
    """CUDA_MEM_ALLOC_NODE_PARAMS."""

    _fields_ = (
        ("pool", PoolProperties),
        ("access", PTR),
        ("access_count", SIZE),
        ("bytes", SIZE),
        ("pointer", U64),
    )


class Shape(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR."""

    _fields_ = (
        ("width", SIZE),
        ("height", SIZE),
        ("depth", SIZE),
        ("format", ctypes.c_uint),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


ON_THE_CARD = Location(1, 0)


class Failed(RuntimeError):
    """The driver gave an answer that is neither yes nor out of memory."""


class OutOfMemory(RuntimeError):
    """What the quota says."""


@dataclass
class Tenant:
    """A process with a context; what it holds, each with the way to give it back."""

    seed: int
    driver: ctypes.CDLL = field(init=False)
    chance: random.Random = field(init=False)
    held: list[Callable[[], None]] = field(default_factory=list)
    contexts: list[ctypes.c_void_p] = field(default_factory=list)
    granted: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.chance = random.Random(self.seed)
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.driver, name)(*arguments)
        if code == OUT_OF_MEMORY:
            raise OutOfMemory(name)
        if code != OK:
            raise Failed(f"{name} answered {code}")

    def out(self, kind: Any, name: str, *arguments: Any) -> Any:
        """Call with a first parameter that the driver fills; returns that."""
        made = kind()
        self.call(name, ctypes.byref(made), *arguments)
        return made

    # -- ways to take memory; each returns the way to give it back --------------------------------

    def plain(self, size: int) -> Callable[[], None]:
        pointer = self.out(U64, "cuMemAlloc_v2", SIZE(size))
        return lambda: self.call("cuMemFree_v2", pointer)

    def pitch(self, size: int) -> Callable[[], None]:
        pitch = SIZE()
        rows = max(1, size // 1000)
        pointer = self.out(
            U64, "cuMemAllocPitch_v2", ctypes.byref(pitch), SIZE(1000), SIZE(rows), 4
        )
        return lambda: self.call("cuMemFree_v2", pointer)

    def managed(self, size: int) -> Callable[[], None]:
        pointer = self.out(U64, "cuMemAllocManaged", SIZE(size), 1)
        try:  # so that the card holds it
            self.call("cuMemPrefetchAsync", pointer, SIZE(size), 0, None)
        except BaseException:
            self.call("cuMemFree_v2", pointer)
            raise
        return lambda: self.call("cuMemFree_v2", pointer)

    def asynchronous(self, size: int) -> Callable[[], None]:
        suffix = self.chance.choice(["", "_ptsz"])
        pointer = self.out(U64, f"cuMemAllocAsync{suffix}", SIZE(size), None)
        return lambda: self.call(f"cuMemFreeAsync{suffix}", pointer, None)

    def freed_at_once(self, size: int) -> Callable[[], None]:
        pointer = self.out(U64, "cuMemAllocAsync", SIZE(size), None)
        return lambda: self.call("cuMemFree_v2", pointer)

    def pool(self, size: int) -> Callable[[], None]:
        """Two pieces of a pool of its own, which is destroyed while one of them lives."""
        pool = self.out(PTR, "cuMemPoolCreate", ctypes.byref(PoolProperties(1, 0, ON_THE_CARD)))
        stream = self.out(PTR, "cuStreamCreate", 1)
        pieces: list[Any] = []

        def give_back() -> None:
            for piece in pieces:
                self.call("cuMemFreeAsync", piece, stream)
            self.call("cuStreamSynchronize", stream)
            self.call("cuStreamDestroy_v2", stream)

        try:
            for _ in range(2):
                pieces.append(self.out(U64, "cuMemAllocFromPoolAsync", SIZE(size), pool, stream))
        except BaseException:
            self.call("cuMemPoolDestroy", pool)
            give_back()
            raise
        self.call("cuMemFreeAsync", pieces.pop(), stream)
        self.call("cuMemPoolDestroy", pool)
        return give_back

    def physical(self, size: int) -> Callable[[], None]:
        """Made, mapped, released: from then on the mapping alone holds it."""
        whole = SIZE(-(-size // GRANULE) * GRANULE)
        how = AllocationProperties(1, 0, ON_THE_CARD)
        handle = self.out(U64, "cuMemCreate", whole, ctypes.byref(how), U64(0))
        address = self.out(U64, "cuMemAddressReserve", whole, SIZE(0), U64(0), U64(0))
        self.call("cuMemMap", address, whole, SIZE(0), handle, U64(0))
        self.call("cuMemRelease", handle)

        def give_back() -> None:
            again = self.out(U64, "cuMemRetainAllocationHandle", PTR(address.value + GRANULE // 2))
            self.call("cuMemUnmap", address, whole)
            self.call("cuMemRelease", again)
            self.call("cuMemAddressFree", address, whole)

        return give_back

    def array(self, size: int) -> Callable[[], None]:
        height = max(1, size // (1000 * TEXEL_BYTES))
        shape = Shape(1000, height, self.chance.choice([0, 1]), FLOAT, 4, 0)
        array = self.out(PTR, "cuArray3DCreate_v2", ctypes.byref(shape))
        return lambda: self.call("cuArrayDestroy", array)

    def mipmap(self, size: int) -> Callable[[], None]:
        height = max(1, size // (1000 * TEXEL_BYTES))
        shape = Shape(1000, height, 0, FLOAT, 4, 0)
        mipmap = self.out(PTR, "cuMipmappedArrayCreate", ctypes.byref(shape), 4)
        return lambda: self.call("cuMipmappedArrayDestroy", mipmap)

    def graph(self, size: int) -> Callable[[], None]:
        """A graph that allocates when it runs; what it got is freed outside."""
        graph = self.out(PTR, "cuGraphCreate", 0)
        node = PTR()
        how = NodeProperties(PoolProperties(1, 0, ON_THE_CARD), None, 0, size)
        self.call(
            "cuGraphAddMemAllocNode", ctypes.byref(node), graph, None, SIZE(0), ctypes.byref(how)
        )
        executable = None
        try:
            executable = self.out(PTR, "cuGraphInstantiateWithFlags", graph, U64(0))
            self.call("cuGraphLaunch", executable, None)
        except BaseException:
            if executable is not None:
                self.call("cuGraphExecDestroy", executable)
            self.call("cuGraphDestroy", graph)
            raise

        def give_back() -> None:
            self.call("cuMemFreeAsync", U64(how.pointer), None)
            self.call("cuGraphExecDestroy", executable)
            self.call("cuGraphDestroy", graph)

        return give_back

    def context(self, _size: int) -> Callable[[], None]:
        """A context more, with memory that ends with it."""
        context = self.out(PTR, "cuCtxCreate_v2", 0, 0)
        try:
            self.out(U64, "cuMemAlloc_v2", SIZE(3 * MIB))
        except OutOfMemory:
            pass
        self.call("cuCtxPopCurrent_v2", None)
        return lambda: self.call("cuCtxDestroy_v2", context)

    KINDS = (
        "plain", "pitch", "managed", "asynchronous", "freed_at_once", "pool", "physical", "array",
        "mipmap", "graph", "context",
    )  # fmt: skip

    # -- what can be asked -------------------------------------------------------------------------

    def take(self, kind: str, size: str | int) -> dict[str, Any]:
        try:
            self.held.append(getattr(self, kind)(int(size)))
        except OutOfMemory:
            self.refused += 1
            return {"granted": False}
        self.granted += 1
        return {"granted": True}

    def drop(self) -> dict[str, Any]:
        if self.held:
            self.held.pop(self.chance.randrange(len(self.held)))()
        return {"left": len(self.held)}

    def size(self) -> int:
        """Mostly of the order of the quota's tenth, often small, seldom more than there is."""
        largest = self.chance.choice([4096, MIB // 2, 3 * MIB, 64 * MIB, 64 * MIB, 512 * MIB])
        return self.chance.randint(1, largest)

    def random(self, count: str) -> dict[str, Any]:
        for _ in range(int(count)):
            dice = self.chance.random()
            if dice < 0.55 or not self.held:
                self.take(self.chance.choice(self.KINDS), self.size())
            elif dice < 0.97:
                self.drop()
            else:
                self.synchronise()
        return {"granted": self.granted, "refused": self.refused, "held": len(self.held)}

    def threads(self, number: str, count: str) -> dict[str, Any]:
        """So many threads of this process do *count* things each, at once."""
        others = [Tenant(self.seed * 1000 + each) for each in range(int(number))]
        finished = []

        def run(other: Tenant) -> None:
            self.call("cuCtxSetCurrent", self.contexts[-1])
            other.random(count)
            other.clear()
            finished.append(other)

        running = [threading.Thread(target=run, args=(other,)) for other in others]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert len(finished) == int(number), "a thread failed; it says why above"
        return {
            "granted": sum(other.granted for other in others),
            "refused": sum(other.refused for other in others),
        }

    def synchronise(self) -> dict[str, Any]:
        self.call("cuCtxSynchronize")
        return {}

    def clear(self) -> dict[str, Any]:
        """Give everything back but the contexts."""
        while self.held:
            self.drop()
        self.call("cuDeviceGraphMemTrim", 0)
        self.synchronise()
        return {}

    def begin(self) -> dict[str, Any]:
        """The context that all this needs."""
        try:
            self.contexts.append(self.out(PTR, "cuCtxCreate_v2", 0, 0))
        except OutOfMemory:
            return {"granted": False}
        return {"granted": True}

    def end(self) -> dict[str, Any]:
        self.call("cuCtxDestroy_v2", self.contexts.pop())
        return {}

    def retain(self) -> dict[str, Any]:
        """The primary context, made current."""
        try:
            self.call("cuCtxSetCurrent", self.out(PTR, "cuDevicePrimaryCtxRetain", 0))
        except OutOfMemory:
            return {"granted": False}
        return {"granted": True}

    def release(self) -> dict[str, Any]:
        self.call("cuDevicePrimaryCtxRelease_v2", 0)
        return {}

    def info(self) -> dict[str, Any]:
        total = SIZE()
        free = self.out(SIZE, "cuMemGetInfo_v2", ctypes.byref(total))
        return {"free": free.value, "total": total.value}


WORDS = {
    "take", "drop", "random", "threads", "synchronise", "clear", "begin", "end", "retain",
    "release", "info",
}  # fmt: skip


def main() -> int:
    tenant = Tenant(int(sys.argv[1]))
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        word, *arguments = line.split()
        assert word in WORDS, line
        print(json.dumps(getattr(tenant, word)(*arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
