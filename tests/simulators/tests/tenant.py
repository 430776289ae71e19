# SPDX-License-Identifier: GPL-3.0-or-later
"""A tenant of a simulated card, for tests: one verb, JSON lines out.

A process of its own, because what is tested is what processes do to each other.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from simulators.tests.cudriver import PTR, Cuda, CudaError


def say(**facts: object) -> None:
    # One write, so that a forked child's line does not get into its parent's.
    os.write(sys.stdout.fileno(), (json.dumps({"pid": os.getpid(), **facts}) + "\n").encode())


def wait_for_start() -> None:
    say(ready=True)
    sys.stdin.readline()


def flood(kernel_ns: str, seconds: str) -> None:
    """Keep the queue full of equal kernels for so long, then leave the rest behind."""
    cuda = Cuda()
    wait_for_start()
    deadline = time.monotonic() + float(seconds)
    # The queue is deep; a bound on what is outstanding lets the tenant stop in time.
    events = [cuda.event() for _ in range(8)]
    count = 0
    while time.monotonic() < deadline:
        event = events[count % len(events)]
        cuda.call("cuEventSynchronize", event)
        cuda.launch(int(kernel_ns))
        cuda.call("cuEventRecord", event, None)
        count += 1
    say(launched=count)
    sys.stdin.readline()


def latency(kernel_ns: str, count: str) -> None:
    """Launch and wait, again and again: times on the wall, of the card, and of submission."""
    cuda = Cuda()
    first, last = cuda.event(), cuda.event()
    wait_for_start()
    took, submitted, walls = [], [], []
    for _ in range(int(count)):
        begin = time.monotonic_ns()
        cuda.call("cuEventRecord", first, None)
        cuda.launch(int(kernel_ns))
        cuda.call("cuEventRecord", last, None)
        submitted.append((time.monotonic_ns() - begin) / 1e6)
        cuda.synchronize()
        walls.append((time.monotonic_ns() - begin) / 1e6)
        took.append(cuda.elapsed_ms(first, last))
    say(most_ms=max(took), submission_ms=max(submitted), least_wall_ms=min(walls))


def hold(mebibytes: str, kernel_ns: str = "0") -> None:
    """Take memory, launch one kernel, and stay."""
    cuda = Cuda()
    try:
        cuda.allocate(int(mebibytes) << 20)
    except CudaError as error:
        say(code=error.code)
        return
    if int(kernel_ns) > 0:
        cuda.launch(int(kernel_ns))
    say(code=0)
    signal.pause()


def events(kernel_ns: str, count: str) -> None:
    """What events say of kernels whose length is known."""
    cuda = Cuda()
    first, last = cuda.event(), cuda.event()
    unrecorded = cuda.code("cuEventQuery", first)
    begin = time.monotonic_ns()
    cuda.launch(1000)
    cuda.call("cuEventRecord", first, None)
    for _ in range(int(count)):
        cuda.launch(int(kernel_ns))
    cuda.call("cuEventRecord", last, None)
    submitted = time.monotonic_ns()
    at_once = cuda.code("cuEventQuery", last)
    too_early = cuda.code("cuEventElapsedTime", ctypes.byref(ctypes.c_float()), first, last)
    cuda.call("cuEventSynchronize", last)
    say(
        unrecorded=unrecorded,
        at_once=at_once,
        too_early=too_early,
        after=cuda.code("cuEventQuery", last),
        wall_ns=time.monotonic_ns() - begin,
        submission_ns=submitted - begin,
        elapsed_ms=cuda.elapsed_ms(first, last),
        cpu_s=time.process_time(),
    )


def streams() -> None:
    """A stream's own work, and a wait of one for another."""
    cuda = Cuda()
    slow, quick = cuda.stream(), cuda.stream()
    done = cuda.event()
    cuda.launch(200_000_000, slow)
    cuda.call("cuEventRecord", done, slow)
    busy = cuda.code("cuStreamQuery", slow)
    idle = cuda.code("cuStreamQuery", quick)
    cuda.call("cuStreamWaitEvent", quick, done, 0)
    dependent = cuda.code("cuStreamQuery", quick)
    cuda.call("cuStreamSynchronize", quick)
    say(
        busy=busy,
        idle=idle,
        dependent=dependent,
        done=cuda.code("cuEventQuery", done),
        after=cuda.code("cuStreamQuery", slow),
    )


def queue(kernel_ns: str, count: str) -> None:
    """When the last of many launches returned: the queue takes 1024 and then blocks."""
    cuda = Cuda()
    begin = time.monotonic_ns()
    for _ in range(int(count)):
        cuda.launch(int(kernel_ns))
    say(last_returned_ns=time.monotonic_ns() - begin)


def full_queue() -> None:
    """Behind a kernel of an hour nothing leaves the queue: 1024 launches return, one more waits."""
    cuda = Cuda()
    cuda.launch(3600 * 10**9)
    for _ in range(1023):
        cuda.launch(1000)
    say(launched=1024)

    def launch_one_more() -> None:
        cuda.call("cuCtxSetCurrent", cuda.context)  # a context is a thread's own
        cuda.launch(1000)

    one_more = threading.Thread(target=launch_one_more, daemon=True)
    one_more.start()
    one_more.join(0.2)
    say(waits=one_more.is_alive())
    signal.pause()


def backlog(kernel_ns: str, count: str) -> None:
    """Queue so many kernels at once and stay: the card then needs nothing of this process."""
    cuda = Cuda()
    wait_for_start()
    for _ in range(int(count)):
        cuda.launch(int(kernel_ns))
    say(queued=int(count))
    signal.pause()


def memory() -> None:
    """Accounting, errors and round trips of one process' memory."""
    cuda = Cuda()
    free, total = cuda.memory()
    small = [cuda.allocate(1000) for _ in range(100)]
    after_small = cuda.memory()[0]
    large = cuda.allocate((3 << 20) + 1)
    after_large = cuda.memory()[0]
    text = os.urandom(1 << 20)
    back = ctypes.create_string_buffer(len(text))
    size = ctypes.c_size_t(len(text))
    cuda.call("cuMemcpyHtoD_v2", ctypes.c_uint64(large + 4096), text, size)
    cuda.call("cuMemcpyDtoH_v2", back, ctypes.c_uint64(large + 4096), size)
    cuda.call("cuMemsetD32_v2", ctypes.c_uint64(large), 0x01020304, ctypes.c_size_t(2))
    word = ctypes.create_string_buffer(8)
    cuda.call("cuMemcpyDtoH_v2", word, ctypes.c_uint64(large), ctypes.c_size_t(8))
    beyond = cuda.code("cuMemcpyHtoD_v2", ctypes.c_uint64(large + (3 << 20)), text, size)
    for address in small:
        cuda.free(address)
    cuda.free(large)
    twice = cuda.code("cuMemFree_v2", ctypes.c_uint64(large))
    say(
        total=total,
        free=free,
        small_cost=free - after_small,
        large_cost=after_small - after_large,
        same=back.raw == text,
        word=word.raw.hex(),
        beyond=beyond,
        twice=twice,
        free_after=cuda.memory()[0],
    )


def paths() -> None:
    """The three ways to a function: by symbol, by cuGetProcAddress v1 and v2, with every flag."""
    cuda = Cuda()

    def address(name: str) -> int:
        return ctypes.cast(getattr(cuda.library, name), PTR).value or 0

    def asked(name: str, version: int, flags: int) -> tuple[int, int, int]:
        found, status = PTR(), ctypes.c_int(-1)
        code = cuda.code(
            "cuGetProcAddress_v2",
            name.encode(),
            ctypes.byref(found),
            version,
            ctypes.c_uint64(flags),
            ctypes.byref(status),
        )
        return code, found.value or 0, status.value

    rows = {
        "alloc": asked("cuMemAlloc", 12000, 0) == (0, address("cuMemAlloc_v2"), 0),
        "alloc_too_old": asked("cuMemAlloc", 2000, 0) == (0, 0, 2),
        "unknown": asked("cuNoSuchThing", 12000, 0) == (0, 0, 1),
        "legacy": asked("cuLaunchKernel", 12000, 1) == (0, address("cuLaunchKernel"), 0),
        "own": asked("cuLaunchKernel", 12000, 2) == (0, address("cuLaunchKernel_ptsz"), 0),
        "own_without_variant": asked("cuCtxSynchronize", 12000, 2)[1]
        == address("cuCtxSynchronize"),
        "bad_flags": asked("cuInit", 12000, 8)[0] == 1,
        "self_new": asked("cuGetProcAddress", 12000, 0)[1] == address("cuGetProcAddress_v2"),
        "self_old": asked("cuGetProcAddress", 11030, 0)[1] == address("cuGetProcAddress"),
    }
    found = PTR()
    rows["v1"] = cuda.code(
        "cuGetProcAddress", b"cuMemFree", ctypes.byref(found), 11040, ctypes.c_uint64(0)
    ) == 0 and found.value == address("cuMemFree_v2")
    rows["v1_unknown"] = (
        cuda.code("cuGetProcAddress", b"cuNo", ctypes.byref(found), 11040, ctypes.c_uint64(0))
        == 500
    )
    cuda.launch(1000, name="cuLaunchKernel_ptsz")
    say(rows=rows)


def fork() -> None:
    """A child may not use what its parent initialised, and does not keep the parent's seat."""
    cuda = Cuda()
    cuda.allocate(64 << 20)
    child = os.fork()
    if child == 0:
        say(child=True, code=cuda.code("cuCtxSynchronize"), init=cuda.code("cuInit", 0))
        signal.pause()
    say(child=False, code=cuda.code("cuCtxSynchronize"), other=child)
    signal.pause()


def devices() -> None:
    """Count, UUID prefix and capability of what is seen; the code of cuInit when it fails."""
    library = ctypes.CDLL("libcuda.so.1")
    code = library.cuInit(0)
    count = ctypes.c_int()
    seen = []
    if code == 0:
        library.cuDeviceGetCount(ctypes.byref(count))
        for ordinal in range(count.value):
            uuid = (ctypes.c_ubyte * 16)()
            major = ctypes.c_int()
            library.cuDeviceGetUuid_v2(uuid, ordinal)
            library.cuDeviceGetAttribute(ctypes.byref(major), 75, ordinal)
            seen.append({"uuid": bytes(uuid).hex(), "major": major.value})
    say(code=code, seen=seen)


class ExternalHandle(ctypes.Structure):
    """CUDA_EXTERNAL_MEMORY_HANDLE_DESC with a descriptor in it."""

    _fields_ = (
        ("type", ctypes.c_ulonglong),  # with what fills it up
        ("file", ctypes.c_ulonglong),
        ("name", PTR),
        ("size", ctypes.c_ulonglong),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 16),
    )


class ExternalBuffer(ctypes.Structure):
    """CUDA_EXTERNAL_MEMORY_BUFFER_DESC."""

    _fields_ = (
        ("offset", ctypes.c_ulonglong),
        ("size", ctypes.c_ulonglong),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 16),
    )


def external(size: str) -> None:
    """Memory that is somebody else's, here a memory file: mapped, written, never charged."""
    cuda = Cuda()
    bytes_ = int(size)
    file = os.memfd_create("foreign")
    os.ftruncate(file, bytes_)
    before = cuda.memory()[0]
    memory, address = PTR(), ctypes.c_uint64()
    given = ExternalHandle(type=1, file=os.dup(file), size=bytes_)
    too_long = ExternalHandle(type=1, file=file, size=bytes_ + 1)
    refused = cuda.code("cuImportExternalMemory", ctypes.byref(memory), ctypes.byref(too_long))
    cuda.call("cuImportExternalMemory", ctypes.byref(memory), ctypes.byref(given))
    what = ExternalBuffer(offset=4096, size=bytes_ - 4096)
    map_ = "cuExternalMemoryGetMappedBuffer"
    cuda.call(map_, ctypes.byref(address), memory, ctypes.byref(what))
    beyond = ExternalBuffer(offset=4096, size=bytes_)
    outside = cuda.code(map_, ctypes.byref(ctypes.c_uint64()), memory, ctypes.byref(beyond))
    cuda.call("cuMemsetD8_v2", address, ctypes.c_ubyte(9), ctypes.c_size_t(4))
    cuda.call("cuDestroyExternalMemory", memory)
    cost = before - cuda.memory()[0]
    cuda.free(address.value)
    written = os.pread(file, 5, 4096)
    say(refused=refused, outside=outside, cost=cost, written=written.hex())


def stamps(count: str) -> None:
    """Spans between neighbouring events with nothing between them, each asked twice."""
    cuda = Cuda()
    events = [cuda.event() for _ in range(int(count))]
    for event in events:
        cuda.call("cuEventRecord", event, None)
    cuda.synchronize()
    pairs = list(itertools.pairwise(events))
    spans = [cuda.elapsed_ms(first, last) for first, last in pairs]
    say(spans=spans, again=[cuda.elapsed_ms(first, last) for first, last in pairs])


class EventHandle(ctypes.Structure):
    """CUipcEventHandle."""

    _fields_ = (("data", ctypes.c_ubyte * 64),)


def share_event(kernel_ns: str) -> None:
    """An event behind a kernel, for another process; stays."""
    cuda = Cuda()
    event, handle = cuda.event(2 | 4), EventHandle()
    cuda.launch(int(kernel_ns))
    cuda.call("cuEventRecord", event, None)
    cuda.call("cuIpcGetEventHandle", ctypes.byref(handle), event)
    say(handle=bytes(handle.data).hex())
    signal.pause()


def await_event(handle: str) -> None:
    """Wait for another process' event, in a stream and by itself."""
    cuda = Cuda()
    event, stream = PTR(), cuda.stream()
    given = EventHandle((ctypes.c_ubyte * 64)(*bytes.fromhex(handle)))
    cuda.library.cuIpcOpenEventHandle.argtypes = [PTR, EventHandle]
    cuda.call("cuIpcOpenEventHandle", ctypes.byref(event), given)
    cuda.call("cuStreamWaitEvent", stream, event, 0)
    cuda.launch(1000, stream)
    say(before=cuda.code("cuStreamQuery", stream))
    cuda.call("cuEventSynchronize", event)
    cuda.call("cuStreamSynchronize", stream)
    say(after=cuda.code("cuEventQuery", event))


VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        *(flood, backlog, latency, hold, events, streams, queue, full_queue),
        *(memory, paths, fork, devices, external, stamps),
        *(share_event, await_event),
    )
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
