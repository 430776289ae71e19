# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties of the CUDA driver, each checked in a process of its own: ``python -m … NAME``.

Nothing here knows a simulator, so every property can be checked on a real card too (``-m gpu``).

What NVIDIA leaves open (how much a pool reserves, say) is stated as an inequality that both keep.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

from simulators.tests.cudriver import NOT_READY, PTR, Cuda

MIB = 1 << 20
MS = 1_000_000
U64 = ctypes.c_uint64
SIZE = ctypes.c_size_t
INVALID_VALUE = 1
INVALID_HANDLE = 400
ILLEGAL_STATE = 401
NOT_PERMITTED = 800
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED = range(900, 904)
UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT = range(904, 908)
WRONG_THREAD = 908
UPDATE_FAILURE = 910
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
KERNEL_NODE, MEMCPY_NODE, MEMSET_NODE, HOST_NODE, GRAPH_NODE, EMPTY_NODE = range(6)
ALLOC_NODE, FREE_NODE = 10, 11
HOST_FUNCTION = ctypes.CFUNCTYPE(None, PTR)
Property = Callable[[], None]


def equal(found: object, wanted: object) -> None:
    """Fail and say both."""
    if found != wanted:
        raise AssertionError(f"found {found}, wanted {wanted}")


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
        ("most_bytes", SIZE),
        ("reserved", ctypes.c_ubyte * 56),
    )


class Access(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class ArrayShape(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR."""

    _fields_ = (
        ("width", SIZE),
        ("height", SIZE),
        ("depth", SIZE),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS, version 2."""

    _fields_ = (
        ("function", PTR),
        *((f"grid_{axis}", ctypes.c_uint) for axis in "xyz"),
        *((f"block_{axis}", ctypes.c_uint) for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("parameters", ctypes.POINTER(PTR)),
        ("extra", PTR),
        ("kernel", PTR),
        ("context", PTR),
    )


class UpdateResult(ctypes.Structure):
    _fields_ = (("result", ctypes.c_int), ("node", PTR), ("before", PTR))


class HostNode(ctypes.Structure):
    _fields_ = (("function", HOST_FUNCTION), ("data", PTR))


class Driver(Cuda):
    """The driver with what the properties need of it."""

    def begin(self, stream: PTR, mode: int = GLOBAL) -> None:
        self.call("cuStreamBeginCapture_v2", stream, mode)

    def end(self, stream: PTR) -> PTR:
        graph = PTR()
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        return graph

    def end_code(self, stream: PTR) -> int:
        """How the capture ends; no graph may come of a failure."""
        graph = PTR(1)
        code = self.code("cuStreamEndCapture", stream, ctypes.byref(graph))
        if code not in (0, ILLEGAL_STATE, UNMATCHED, WRONG_THREAD):
            equal(graph.value, None)
        return code

    def status(self, stream: PTR) -> int:
        status = ctypes.c_int()
        self.call("cuStreamIsCapturing", stream, ctypes.byref(status))
        return status.value

    def instantiate(self, graph: PTR) -> PTR:
        executable = PTR()
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, U64(0))
        return executable

    def node_types(self, graph: PTR) -> list[int]:
        count = SIZE()
        self.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (PTR * count.value)()
        self.call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
        types = []
        for node in nodes:
            kind = ctypes.c_int()
            self.call("cuGraphNodeGetType", PTR(node), ctypes.byref(kind))
            types.append(kind.value)
        return sorted(types)

    def edge_count(self, graph: PTR) -> int:
        count = SIZE()
        self.call("cuGraphGetEdges", graph, None, None, ctypes.byref(count))
        return count.value

    def kernel_node(self, graph: PTR, ns: int, after: list[PTR]) -> PTR:
        node = PTR()
        how = self.kernel_parameters(ns)
        before = (PTR * len(after))(*after)
        self.call(
            "cuGraphAddKernelNode_v2",
            ctypes.byref(node),
            graph,
            before if after else None,
            SIZE(len(after)),
            ctypes.byref(how),
        )
        return node

    def kernel_parameters(self, ns: int) -> KernelNode:
        value = U64(ns)
        places = (PTR * 1)(ctypes.cast(ctypes.byref(value), PTR))
        how = KernelNode(self.spin, 1, 1, 1, 1, 1, 1, 0, places, None, None, None)
        self.kept = (value, places)
        return how

    def run_ms(self, executable: PTR, stream: PTR) -> float:
        """The card's time for one launch of a graph."""
        first, last = self.event(), self.event()
        self.call("cuEventRecord", first, stream)
        self.call("cuGraphLaunch", executable, stream)
        self.call("cuEventRecord", last, stream)
        self.call("cuEventSynchronize", last)
        return self.elapsed_ms(first, last)

    def used(self) -> int:
        """Bytes of the card in use, by whomever."""
        free, total = self.memory()
        return total - free

    def pool_number(self, pool: PTR, which: int) -> int:
        value = U64()
        self.call("cuMemPoolGetAttribute", pool, which, ctypes.byref(value))
        return value.value

    def default_pool(self) -> PTR:
        pool = PTR()
        self.call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), 0)
        return pool

    def allocate_async(self, size: int, stream: PTR) -> int:
        address = U64()
        self.call("cuMemAllocAsync", ctypes.byref(address), SIZE(size), stream)
        return address.value

    def free_async(self, address: int, stream: PTR) -> None:
        self.call("cuMemFreeAsync", U64(address), stream)


# --- graphs and capture ------------------------------------------------------------------------


def a_captured_kernel_runs_only_when_its_graph_is_launched() -> None:
    cuda = Driver()
    stream = cuda.stream()
    cuda.begin(stream)
    equal(cuda.status(stream), 1)
    begin = time.monotonic_ns()
    cuda.launch(20 * MS, stream)
    cuda.launch(30 * MS, stream)
    graph = cuda.end(stream)
    equal(cuda.status(stream), 0)
    cuda.synchronize()
    assert time.monotonic_ns() - begin < 15_000 * MS
    equal(cuda.node_types(graph), [KERNEL_NODE, KERNEL_NODE])
    equal(cuda.edge_count(graph), 1)
    executable = cuda.instantiate(graph)
    for _ in range(2):
        assert cuda.run_ms(executable, stream) >= 50
    cuda.call("cuGraphExecDestroy", executable)
    cuda.call("cuGraphDestroy", graph)


def a_capture_follows_events_into_other_streams_and_back() -> None:
    cuda = Driver()
    first, second = cuda.stream(), cuda.stream()
    fork, join = cuda.event(), cuda.event()
    cuda.begin(first)
    cuda.launch(MS, first)
    cuda.call("cuEventRecord", fork, first)
    cuda.call("cuStreamWaitEvent", second, fork, 0)
    equal(cuda.status(second), 1)
    cuda.launch(MS, second)
    cuda.launch(MS, first)
    cuda.call("cuEventRecord", join, second)
    cuda.call("cuStreamWaitEvent", first, join, 0)
    cuda.launch(MS, first)
    graph = cuda.end(first)
    equal(cuda.status(second), 0)
    equal(cuda.node_types(graph), [KERNEL_NODE] * 4)
    equal(cuda.edge_count(graph), 4)


def a_fork_that_does_not_come_back_is_unjoined() -> None:
    cuda = Driver()
    first, second = cuda.stream(), cuda.stream()
    fork = cuda.event()
    cuda.begin(first)
    cuda.call("cuEventRecord", fork, first)
    cuda.call("cuStreamWaitEvent", second, fork, 0)
    cuda.launch(MS, second)
    equal(cuda.end_code(first), UNJOINED)
    equal(cuda.status(first), 0)
    equal(cuda.status(second), 0)


def _invalidates(cuda: Driver, stream: PTR, code: int, wanted: int) -> None:
    """A forbidden call names its reason, and no graph comes of the capture."""
    equal(code, wanted)
    equal(cuda.status(stream), 2)
    equal(cuda.code("cuStreamEndCapture", stream, ctypes.byref(PTR())), INVALIDATED)
    equal(cuda.status(stream), 0)
    cuda.launch(1000, stream)
    cuda.synchronize()


def waiting_for_a_capturing_stream_invalidates_its_capture() -> None:
    cuda = Driver()
    stream = cuda.stream()
    for call in ("cuStreamSynchronize", "cuStreamQuery"):
        cuda.begin(stream, RELAXED)
        cuda.launch(MS, stream)
        _invalidates(cuda, stream, cuda.code(call, stream), UNSUPPORTED)


def synchronising_the_context_invalidates_a_capture() -> None:
    cuda = Driver()
    stream = cuda.stream()
    cuda.begin(stream)
    cuda.launch(MS, stream)
    _invalidates(cuda, stream, cuda.code("cuCtxSynchronize"), UNSUPPORTED)


def a_captured_event_cannot_be_asked() -> None:
    cuda = Driver()
    stream, event = cuda.stream(), cuda.event()
    for call in ("cuEventQuery", "cuEventSynchronize"):
        cuda.begin(stream, RELAXED)
        cuda.launch(MS, stream)
        cuda.call("cuEventRecord", event, stream)
        _invalidates(cuda, stream, cuda.code(call, event), CAPTURED_EVENT)


def an_event_recorded_again_outside_is_an_event_again() -> None:
    cuda = Driver()
    stream, event = cuda.stream(), cuda.event()
    cuda.begin(stream, RELAXED)
    cuda.call("cuEventRecord", event, stream)
    cuda.end(stream)
    cuda.launch(MS, stream)
    cuda.call("cuEventRecord", event, stream)
    cuda.call("cuEventSynchronize", event)
    equal(cuda.code("cuEventQuery", event), 0)


def allocating_is_unsafe_in_a_global_capture_only() -> None:
    cuda = Driver()
    stream = cuda.stream()
    address = U64()
    cuda.begin(stream, GLOBAL)
    cuda.launch(MS, stream)
    code = cuda.code("cuMemAlloc_v2", ctypes.byref(address), SIZE(MIB))
    _invalidates(cuda, stream, code, UNSUPPORTED)
    cuda.begin(stream, RELAXED)
    cuda.call("cuMemAlloc_v2", ctypes.byref(address), SIZE(MIB))
    cuda.end(stream)
    cuda.begin(stream, GLOBAL)
    mode = ctypes.c_int(RELAXED)
    cuda.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    equal(mode.value, GLOBAL)
    cuda.call("cuMemFree_v2", address)
    cuda.end(stream)


def another_thread_s_capture_binds_this_one_only_if_it_is_global() -> None:
    cuda = Driver()
    stream = cuda.stream()
    codes = []

    def allocate() -> None:
        cuda.call("cuCtxSetCurrent", cuda.context)
        codes.append(cuda.code("cuMemAlloc_v2", ctypes.byref(U64()), SIZE(MIB)))

    def beside() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()

    cuda.begin(stream, THREAD_LOCAL)
    beside()
    cuda.end(stream)
    cuda.begin(stream, GLOBAL)
    beside()
    equal(cuda.end_code(stream), INVALIDATED)
    equal(codes, [0, UNSUPPORTED])


def the_legacy_stream_cannot_be_used_beside_a_captured_blocking_stream() -> None:
    cuda = Driver()
    blocking, apart = PTR(), cuda.stream()
    cuda.call("cuStreamCreate", ctypes.byref(blocking), 0)
    cuda.begin(blocking, RELAXED)
    value = U64(1000)
    places = (PTR * 1)(ctypes.cast(ctypes.byref(value), PTR))
    code = cuda.code("cuLaunchKernel", cuda.spin, 1, 1, 1, 1, 1, 1, 0, None, places, None)
    _invalidates(cuda, blocking, code, IMPLICIT)
    cuda.begin(apart, RELAXED)
    cuda.launch(1000)
    cuda.end(apart)
    equal(cuda.code("cuStreamBeginCapture_v2", None, GLOBAL), UNSUPPORTED)


def captures_begin_once_and_end_where_they_began() -> None:
    cuda = Driver()
    first, second = cuda.stream(), cuda.stream()
    fork = cuda.event()
    equal(cuda.code("cuStreamEndCapture", first, ctypes.byref(PTR())), ILLEGAL_STATE)
    cuda.begin(first)
    equal(cuda.code("cuStreamBeginCapture_v2", first, GLOBAL), ILLEGAL_STATE)
    cuda.end_code(first)
    cuda.begin(first)
    cuda.call("cuEventRecord", fork, first)
    cuda.call("cuStreamWaitEvent", second, fork, 0)
    equal(cuda.code("cuStreamEndCapture", second, ctypes.byref(PTR())), UNMATCHED)
    cuda.end_code(first)


def a_thread_s_capture_ends_in_that_thread() -> None:
    cuda = Driver()
    stream = cuda.stream()
    codes = []

    def end() -> None:
        cuda.call("cuCtxSetCurrent", cuda.context)
        codes.append(cuda.code("cuStreamEndCapture", stream, ctypes.byref(PTR())))

    for mode in (GLOBAL, RELAXED):
        cuda.begin(stream, mode)
        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
        cuda.code("cuStreamEndCapture", stream, ctypes.byref(PTR()))
    equal(codes, [WRONG_THREAD, 0])


def captures_do_not_merge_and_do_not_wait_for_the_outside() -> None:
    cuda = Driver()
    first, second = cuda.stream(), cuda.stream()
    event = cuda.event()
    cuda.call("cuEventRecord", event, first)
    cuda.begin(first, RELAXED)
    equal(cuda.code("cuStreamWaitEvent", first, event, 0), ISOLATION)
    equal(cuda.end_code(first), INVALIDATED)
    cuda.begin(first, RELAXED)
    cuda.begin(second, RELAXED)
    cuda.launch(1000, first)
    cuda.call("cuEventRecord", event, first)
    equal(cuda.code("cuStreamWaitEvent", second, event, 0), MERGE)
    equal(cuda.end_code(second), INVALIDATED)
    cuda.code("cuStreamEndCapture", first, ctypes.byref(PTR()))


def a_graph_made_by_hand_runs_in_the_order_of_its_edges() -> None:
    cuda = Driver()
    stream, graph = cuda.stream(), PTR()
    address = cuda.allocate(MIB)
    back = ctypes.create_string_buffer(16)
    cuda.call("cuGraphCreate", ctypes.byref(graph), 0)
    cuda.call("cuMemsetD8_v2", U64(address), ctypes.c_ubyte(0), SIZE(16))
    ran = []
    host = HOST_FUNCTION(lambda _: ran.append(time.monotonic_ns()))
    kernel = cuda.kernel_node(graph, 30 * MS, [])
    node = PTR()
    before = (PTR * 1)(kernel)
    how = HostNode(host, None)
    cuda.call("cuGraphAddHostNode", ctypes.byref(node), graph, before, SIZE(1), ctypes.byref(how))
    equal(cuda.node_types(graph), [KERNEL_NODE, HOST_NODE])
    executable = cuda.instantiate(graph)
    begin = time.monotonic_ns()
    cuda.call("cuGraphLaunch", executable, stream)
    cuda.call("cuStreamSynchronize", stream)
    equal(len(ran), 1)
    assert ran[0] - begin >= 30 * MS
    cuda.call("cuMemcpyDtoH_v2", back, U64(address), SIZE(16))
    equal(back.raw, bytes(16))


def a_graph_with_a_circle_is_refused() -> None:
    cuda = Driver()
    graph = PTR()
    cuda.call("cuGraphCreate", ctypes.byref(graph), 0)
    first = cuda.kernel_node(graph, 1000, [])
    second = cuda.kernel_node(graph, 1000, [first])
    code = cuda.code("cuGraphAddDependencies", graph, (PTR * 1)(second), (PTR * 1)(first), SIZE(1))
    refused = cuda.code("cuGraphInstantiateWithFlags", ctypes.byref(PTR()), graph, U64(0))
    assert code != 0 or refused != 0


def an_executable_graph_takes_new_parameters_but_no_new_shape() -> None:
    cuda = Driver()
    stream = cuda.stream()
    graphs = [PTR() for _ in range(3)]
    for graph in graphs:
        cuda.call("cuGraphCreate", ctypes.byref(graph), 0)
    short, long, other = graphs
    node = cuda.kernel_node(short, 2 * MS, [])
    cuda.kernel_node(long, 60 * MS, [])
    cuda.kernel_node(other, MS, [cuda.kernel_node(other, MS, [])])
    executable = cuda.instantiate(short)
    told = UpdateResult()
    update = "cuGraphExecUpdate_v2"
    cuda.call(update, executable, long, ctypes.byref(told))
    equal(told.result, 0)
    assert cuda.run_ms(executable, stream) >= 60
    equal(cuda.code(update, executable, other, ctypes.byref(told)), UPDATE_FAILURE)
    assert told.result != 0
    how = cuda.kernel_parameters(90 * MS)
    cuda.call("cuGraphExecKernelNodeSetParams_v2", executable, node, ctypes.byref(how))
    assert cuda.run_ms(executable, stream) >= 90


def a_launch_into_a_capture_becomes_a_child_graph() -> None:
    cuda = Driver()
    stream = cuda.stream()
    cuda.begin(stream)
    cuda.launch(20 * MS, stream)
    inner = cuda.instantiate(cuda.end(stream))
    cuda.begin(stream)
    cuda.call("cuGraphLaunch", inner, stream)
    cuda.call("cuGraphLaunch", inner, stream)
    graph = cuda.end(stream)
    equal(cuda.node_types(graph), [GRAPH_NODE, GRAPH_NODE])
    assert cuda.run_ms(cuda.instantiate(graph), stream) >= 40


def copies_and_fills_are_captured_with_their_bytes() -> None:
    cuda = Driver()
    stream = cuda.stream()
    address = cuda.allocate(MIB)
    back = PTR()
    cuda.call("cuMemAllocHost_v2", ctypes.byref(back), SIZE(16))
    cuda.call("cuMemsetD8_v2", U64(address), ctypes.c_ubyte(1), SIZE(16))
    cuda.begin(stream)
    cuda.call("cuMemsetD8Async", U64(address), ctypes.c_ubyte(7), SIZE(16), stream)
    cuda.call("cuMemcpyDtoHAsync_v2", back, U64(address), SIZE(16), stream)
    graph = cuda.end(stream)
    equal(cuda.node_types(graph), [MEMCPY_NODE, MEMSET_NODE])
    now = ctypes.create_string_buffer(16)
    cuda.call("cuMemcpyDtoH_v2", now, U64(address), SIZE(16))
    equal(now.raw, b"\1" * 16)
    cuda.call("cuGraphLaunch", cuda.instantiate(graph), stream)
    cuda.call("cuStreamSynchronize", stream)
    equal(ctypes.string_at(back.value or 0, 16), b"\7" * 16)


def memory_of_a_graph_is_the_card_s_only_while_it_runs() -> None:
    cuda = Driver()
    stream = cuda.stream()
    size = 256 * MIB
    cuda.begin(stream)
    address = cuda.allocate_async(size, stream)
    cuda.launch(MS, stream)
    cuda.free_async(address, stream)
    graph = cuda.end(stream)
    equal(cuda.node_types(graph), [KERNEL_NODE, ALLOC_NODE, FREE_NODE])
    executable = cuda.instantiate(graph)
    before = cuda.used()
    cuda.run_ms(executable, stream)
    assert cuda.used() >= before + size, "it stays with the graphs until it is trimmed"
    cuda.call("cuDeviceGraphMemTrim", 0)
    assert cuda.used() <= before


def memory_ends_with_its_context() -> None:
    cuda = Driver()
    before = cuda.used()
    context, address = PTR(), U64()
    cuda.call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    cuda.call("cuMemAlloc_v2", ctypes.byref(address), SIZE(256 * MIB))
    cuda.call("cuCtxDestroy_v2", context)
    assert cuda.used() <= before


# --- host functions ----------------------------------------------------------------------------


def a_host_function_runs_between_what_is_before_and_behind_it() -> None:
    cuda = Driver()
    stream, event = cuda.stream(), cuda.event()
    seen: list[tuple[int, int]] = []

    def call(_: object) -> None:
        seen.append((time.monotonic_ns(), cuda.code("cuCtxSynchronize")))
        time.sleep(0.05)

    function = HOST_FUNCTION(call)
    begin = time.monotonic_ns()
    cuda.launch(30 * MS, stream)
    cuda.call("cuLaunchHostFunc", stream, function, None)
    cuda.launch(1000, stream)
    cuda.call("cuEventRecord", event, stream)
    equal(cuda.code("cuEventQuery", event), NOT_READY)
    cuda.call("cuEventSynchronize", event)
    equal([code for _, code in seen], [NOT_PERMITTED])
    assert seen[0][0] - begin >= 30 * MS
    assert time.monotonic_ns() - seen[0][0] >= 50 * MS


# --- pools -------------------------------------------------------------------------------------

RELEASE_THRESHOLD, RESERVED, RESERVED_HIGH, USED, USED_HIGH = range(4, 9)


def a_pool_gives_back_at_a_synchronisation_what_its_threshold_does_not_keep() -> None:
    cuda = Driver()
    stream, pool = cuda.stream(), cuda.default_pool()
    size = 100 * MIB
    before = cuda.used()
    address = cuda.allocate_async(size, stream)
    cuda.call("cuStreamSynchronize", stream)
    equal(cuda.pool_number(pool, USED), size)
    reserved = cuda.pool_number(pool, RESERVED)
    assert reserved >= size
    equal(cuda.used() - before, reserved)
    cuda.free_async(address, stream)
    cuda.call("cuStreamSynchronize", stream)
    equal(cuda.pool_number(pool, USED), 0)
    equal(cuda.pool_number(pool, RESERVED), 0)
    equal(cuda.used(), before)
    cuda.call("cuMemPoolSetAttribute", pool, RELEASE_THRESHOLD, ctypes.byref(U64(2**64 - 1)))
    cuda.free_async(cuda.allocate_async(size, stream), stream)
    cuda.call("cuStreamSynchronize", stream)
    kept = cuda.pool_number(pool, RESERVED)
    assert kept >= size
    again = cuda.allocate_async(size, stream)
    equal(cuda.pool_number(pool, RESERVED), kept)
    cuda.free_async(again, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemPoolTrimTo", pool, SIZE(0))
    equal(cuda.pool_number(pool, RESERVED), 0)
    equal(cuda.used(), before)
    assert cuda.pool_number(pool, USED_HIGH) >= size
    cuda.call("cuMemPoolSetAttribute", pool, USED_HIGH, ctypes.byref(U64(0)))
    equal(cuda.pool_number(pool, USED_HIGH), 0)


def a_pool_of_one_s_own_counts_apart() -> None:
    cuda = Driver()
    stream, pool, address = cuda.stream(), PTR(), U64()
    how = PoolProperties(type=1, location=Location(1, 0))
    cuda.call("cuMemPoolCreate", ctypes.byref(pool), ctypes.byref(how))
    cuda.call("cuMemAllocFromPoolAsync", ctypes.byref(address), SIZE(MIB), pool, stream)
    cuda.call("cuStreamSynchronize", stream)
    equal(cuda.pool_number(pool, USED), MIB)
    equal(cuda.pool_number(cuda.default_pool(), USED), 0)
    cuda.free_async(address.value, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemPoolDestroy", pool)


# --- virtual memory ----------------------------------------------------------------------------


def _physical(cuda: Driver, size: int, handle_types: int = 0) -> U64:
    handle = U64()
    how = AllocationProperties(type=1, handle_types=handle_types, location=Location(1, 0))
    cuda.call("cuMemCreate", ctypes.byref(handle), SIZE(size), ctypes.byref(how), U64(0))
    return handle


def _reserved(cuda: Driver, size: int) -> U64:
    address = U64()
    cuda.call("cuMemAddressReserve", ctypes.byref(address), SIZE(size), SIZE(0), U64(0), U64(0))
    return address


def _map(cuda: Driver, address: int, size: int, handle: U64) -> None:
    cuda.call("cuMemMap", U64(address), SIZE(size), SIZE(0), handle, U64(0))
    access = Access(Location(1, 0), 3)
    cuda.call("cuMemSetAccess", U64(address), SIZE(size), ctypes.byref(access), SIZE(1))


def physical_memory_lives_as_long_as_a_handle_or_a_mapping() -> None:
    cuda = Driver()
    size = 64 * MIB
    before = cuda.used()
    handle = _physical(cuda, size)
    equal(cuda.used() - before, size)
    address = _reserved(cuda, 2 * size).value
    equal(cuda.used() - before, size)
    _map(cuda, address, size, handle)
    cuda.call("cuMemRelease", handle)
    equal(cuda.used() - before, size)
    second = U64()
    cuda.call("cuMemRetainAllocationHandle", ctypes.byref(second), PTR(address))
    _map(cuda, address + size, size, second)
    cuda.call("cuMemRelease", second)
    equal(cuda.used() - before, size)
    # Two addresses, one memory; a copy may run across the border.
    cuda.call("cuMemsetD8_v2", U64(address), ctypes.c_ubyte(9), SIZE(2 * MIB))
    back = ctypes.create_string_buffer(2)
    cuda.call("cuMemcpyDtoH_v2", back, U64(address + size - 1), SIZE(2))
    equal(back.raw[1:], b"\x09")
    cuda.call("cuMemUnmap", U64(address), SIZE(size))
    equal(cuda.used() - before, size)
    cuda.call("cuMemUnmap", U64(address + size), SIZE(size))
    equal(cuda.used(), before)
    cuda.call("cuMemAddressFree", U64(address), SIZE(2 * size))


def mappings_do_not_overlap_and_need_an_address() -> None:
    cuda = Driver()
    size = 2 * MIB
    handle = _physical(cuda, size)
    address = _reserved(cuda, size).value
    _map(cuda, address, size, handle)
    again = cuda.code("cuMemMap", U64(address), SIZE(size), SIZE(0), handle, U64(0))
    assert again != 0
    odd = cuda.code(
        "cuMemCreate",
        ctypes.byref(U64()),
        SIZE(size + 1),
        ctypes.byref(AllocationProperties(type=1, location=Location(1, 0))),
        U64(0),
    )
    equal(odd, INVALID_VALUE)
    equal(cuda.code("cuMemFree_v2", U64(address)), INVALID_VALUE)


def exported_memory_is_the_same_memory() -> None:
    cuda = Driver()
    size = 2 * MIB
    handle = _physical(cuda, size, handle_types=1)
    file, imported = ctypes.c_int(), U64()
    cuda.call("cuMemExportToShareableHandle", ctypes.byref(file), handle, 1, U64(0))
    cuda.call("cuMemImportFromShareableHandle", ctypes.byref(imported), PTR(file.value), 1)
    os.close(file.value)
    one, other = _reserved(cuda, size).value, _reserved(cuda, size).value
    _map(cuda, one, size, handle)
    _map(cuda, other, size, imported)
    cuda.call("cuMemsetD8_v2", U64(one), ctypes.c_ubyte(5), SIZE(16))
    cuda.synchronize()
    back = ctypes.create_string_buffer(16)
    cuda.call("cuMemcpyDtoH_v2", back, U64(other), SIZE(16))
    equal(back.raw, b"\5" * 16)


# --- arrays, managed memory, IPC, libraries ----------------------------------------------------


def an_array_costs_at_least_its_elements() -> None:
    cuda = Driver()
    before = cuda.used()
    array = PTR()
    shape = ArrayShape(4096, 4096, 0, 0x20, 4, 0)  # float4
    cuda.call("cuArray3DCreate_v2", ctypes.byref(array), ctypes.byref(shape))
    cost = cuda.used() - before
    assert 256 * MIB <= cost <= 300 * MIB, cost
    told = ArrayShape()
    cuda.call("cuArray3DGetDescriptor_v2", ctypes.byref(told), array)
    equal((told.width, told.height, told.channels), (4096, 4096, 4))
    cuda.call("cuArrayDestroy", array)
    equal(cuda.used(), before)


def a_mipmapped_array_costs_a_third_more() -> None:
    cuda = Driver()
    before = cuda.used()
    array, level = PTR(), PTR()
    shape = ArrayShape(4096, 4096, 0, 0x20, 4, 0)
    cuda.call("cuMipmappedArrayCreate", ctypes.byref(array), ctypes.byref(shape), 13)
    cost = cuda.used() - before
    assert 340 * MIB <= cost <= 400 * MIB, cost
    cuda.call("cuMipmappedArrayGetLevel", ctypes.byref(level), array, 3)
    told = ArrayShape()
    cuda.call("cuArray3DGetDescriptor_v2", ctypes.byref(told), level)
    equal((told.width, told.height), (512, 512))
    cuda.call("cuMipmappedArrayDestroy", array)
    equal(cuda.used(), before)


def managed_memory_is_the_card_s_once_it_is_there() -> None:
    cuda = Driver()
    address, size = U64(), 64 * MIB
    before = cuda.used()
    cuda.call("cuMemAllocManaged", ctypes.byref(address), SIZE(size), 1)
    assert cuda.used() - before < size
    cuda.call("cuMemPrefetchAsync", address, SIZE(size), 0, None)
    cuda.synchronize()
    assert cuda.used() - before >= size
    cuda.call("cuMemPrefetchAsync", address, SIZE(size), -1, None)
    cuda.synchronize()
    assert cuda.used() - before < size
    cuda.call("cuMemFree_v2", address)


def memory_crosses_processes_by_its_handle() -> None:
    cuda = Driver()
    address = cuda.allocate(4 * MIB)
    cuda.call("cuMemsetD8_v2", U64(address), ctypes.c_ubyte(1), SIZE(4 * MIB))
    handle = (ctypes.c_ubyte * 64)()
    cuda.call("cuIpcGetMemHandle", handle, U64(address))
    cuda.synchronize()
    argv = [sys.executable, "-m", "simulators.tests.properties", "import", bytes(handle).hex()]
    subprocess.run(argv, check=True)
    back = ctypes.create_string_buffer(4)
    cuda.call("cuMemcpyDtoH_v2", back, U64(address), SIZE(4))
    equal(back.raw, b"\1\2\2\1")


class IpcHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * 64),)


def importer(handle: str) -> None:
    """The other process of memory_crosses_processes_by_its_handle."""
    cuda = Driver()
    address = U64()
    given = IpcHandle((ctypes.c_ubyte * 64)(*bytes.fromhex(handle)))
    cuda.library.cuIpcOpenMemHandle_v2.argtypes = [PTR, IpcHandle, ctypes.c_uint]
    cuda.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), given, 1)
    before = cuda.used()
    cuda.call("cuMemsetD8_v2", U64(address.value + 1), ctypes.c_ubyte(2), SIZE(2))
    cuda.synchronize()
    equal(cuda.used(), before)
    equal(cuda.code("cuMemFree_v2", address), INVALID_VALUE)
    cuda.call("cuIpcCloseMemHandle", address)


def a_library_s_kernel_launches_like_a_function() -> None:
    cuda = Driver()
    library, kernel, function = PTR(), PTR(), PTR()
    image = (Path(__file__).resolve().parents[1] / "kernels/spin.ptx").read_bytes()
    none = (None, None, 0, None, None, 0)
    cuda.call("cuLibraryLoadData", ctypes.byref(library), image, *none)
    cuda.call("cuLibraryGetKernel", ctypes.byref(kernel), library, b"spin_ns")
    cuda.call("cuKernelGetFunction", ctypes.byref(function), kernel)
    first, last = cuda.event(), cuda.event()
    cuda.call("cuEventRecord", first, None)
    for cuda.spin in (kernel, function):
        cuda.launch(10 * MS)
    cuda.call("cuEventRecord", last, None)
    cuda.synchronize()
    assert cuda.elapsed_ms(first, last) >= 20
    equal(cuda.code("cuLibraryGetKernel", ctypes.byref(kernel), library, b"none"), 500)
    cuda.call("cuLibraryUnload", library)


def collected(namespace: dict[str, object], but: tuple[str, ...] = ()) -> dict[str, Property]:
    """The properties among a module's names: its own functions that take nothing."""
    return {
        name: found
        for name, found in namespace.items()
        if isinstance(found, FunctionType)
        and found.__module__ == namespace["__name__"]
        and not name.startswith("_")
        and name not in but
    }


PROPERTIES = collected(globals(), but=("equal", "importer", "collected"))

if __name__ == "__main__":
    if sys.argv[1] == "import":
        importer(sys.argv[2])
    else:
        PROPERTIES[sys.argv[1]]()
