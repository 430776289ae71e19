# SPDX-License-Identifier: GPL-3.0-or-later
"""More properties of the driver (see properties.py): graph nodes, user objects, handles.

``python -m … NAME`` checks one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys

from simulators.tests.cudriver import NOT_READY, PTR, SPIN
from simulators.tests.properties import (
    ALLOC_NODE,
    EMPTY_NODE,
    FREE_NODE,
    GRAPH_NODE,
    HOST_FUNCTION,
    HOST_NODE,
    INVALID_VALUE,
    KERNEL_NODE,
    MEMCPY_NODE,
    MEMSET_NODE,
    MIB,
    MS,
    NOT_PERMITTED,
    SIZE,
    U64,
    ArrayShape,
    Driver,
    HostNode,
    Location,
    PoolProperties,
    collected,
    equal,
)

WAIT_NODE, RECORD_NODE = 6, 7


class NodeParameters(ctypes.Structure):
    """CUgraphNodeParams; what a kind of node needs lies at the beginning of ``data``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
        ("data", ctypes.c_ubyte * 232),
        ("reserved_too", ctypes.c_longlong),
    )


class AllocationNode(ctypes.Structure):
    """CUDA_MEM_ALLOC_NODE_PARAMS."""

    _fields_ = (
        ("pool", PoolProperties),
        ("access", PTR),
        ("access_count", SIZE),
        ("size", SIZE),
        ("address", U64),
    )


class FillNode(ctypes.Structure):
    """CUDA_MEMSET_NODE_PARAMS, version 2."""

    _fields_ = (
        ("to", U64),
        ("pitch", SIZE),
        ("value", ctypes.c_uint),
        ("element", ctypes.c_uint),
        ("width", SIZE),
        ("height", SIZE),
        ("context", PTR),
    )


class CopyNode(ctypes.Structure):
    """CUDA_MEMCPY_NODE_PARAMS with its CUDA_MEMCPY3D."""

    _fields_ = (
        ("flags", ctypes.c_int),
        ("reserved", ctypes.c_int),
        ("context", PTR),
        ("from_x", SIZE * 4),
        ("from_type", ctypes.c_int),
        ("from_host", PTR),
        ("from_device", U64),
        ("from_array", PTR),
        ("from_rest", SIZE * 3),
        ("to_x", SIZE * 4),
        ("to_type", ctypes.c_int),
        ("to_host", PTR),
        ("to_device", U64),
        ("to_array", PTR),
        ("to_rest", SIZE * 3),
        ("extent", SIZE * 3),
    )


def _add(
    cuda: Driver, graph: PTR, kind: int, what: ctypes.Structure | PTR | U64 | None, after: list[PTR]
) -> tuple[PTR, NodeParameters]:
    """A node of any kind by the one function for all of them."""
    how = NodeParameters(type=kind)
    if what is not None:
        ctypes.memmove(how.data, ctypes.byref(what), ctypes.sizeof(what))
    node = PTR()
    before = (PTR * len(after))(*after)
    cuda.call(
        "cuGraphAddNode",
        ctypes.byref(node),
        graph,
        before if after else None,
        SIZE(len(after)),
        ctypes.byref(how),
    )
    return node, how


def _graph(cuda: Driver) -> PTR:
    graph = PTR()
    cuda.call("cuGraphCreate", ctypes.byref(graph), 0)
    return graph


def _add_memory(cuda: Driver, graph: PTR, size: int, after: list[PTR]) -> tuple[PTR, int]:
    pool = PoolProperties(type=1, location=Location(1, 0))
    node, how = _add(cuda, graph, ALLOC_NODE, AllocationNode(pool, None, 0, size, 0), after)
    return node, AllocationNode.from_buffer(how.data).address


# --- graphs ------------------------------------------------------------------------------------


def nodes_of_every_kind_are_added_by_one_function() -> None:
    cuda = Driver()
    stream, event, graph = cuda.stream(), cuda.event(), _graph(cuda)
    address = cuda.allocate(MIB)
    back = PTR()
    cuda.call("cuMemAllocHost_v2", ctypes.byref(back), SIZE(16))
    ran: list[int] = []
    function = HOST_FUNCTION(lambda _: ran.append(1))
    node, _ = _add(cuda, graph, EMPTY_NODE, None, [])
    node, _ = _add(cuda, graph, KERNEL_NODE, cuda.kernel_parameters(20 * MS), [node])
    fill = FillNode(address, 0, 7, 1, 16, 1, None)
    node, _ = _add(cuda, graph, MEMSET_NODE, fill, [node])
    copy = CopyNode(
        from_type=2, from_device=address, to_type=1, to_host=back, extent=(SIZE * 3)(16, 1, 1)
    )
    node, _ = _add(cuda, graph, MEMCPY_NODE, copy, [node])
    node, _ = _add(cuda, graph, HOST_NODE, HostNode(function, None), [node])
    node, _ = _add(cuda, graph, RECORD_NODE, event, [node])
    node, _ = _add(cuda, graph, WAIT_NODE, event, [node])
    inner = _graph(cuda)
    cuda.kernel_node(inner, 10 * MS, [])
    node, _ = _add(cuda, graph, GRAPH_NODE, inner, [node])
    kinds = [EMPTY_NODE, KERNEL_NODE, MEMSET_NODE, MEMCPY_NODE, HOST_NODE]
    equal(cuda.node_types(graph), sorted([*kinds, RECORD_NODE, WAIT_NODE, GRAPH_NODE]))
    equal(cuda.edge_count(graph), 7)
    executable = cuda.instantiate(graph)
    assert cuda.run_ms(executable, stream) >= 30
    equal(ran, [1])
    equal(ctypes.string_at(back.value or 0, 16), b"\7" * 16)
    wrong = NodeParameters(type=99)
    code = cuda.code(
        "cuGraphAddNode", ctypes.byref(PTR()), graph, None, SIZE(0), ctypes.byref(wrong)
    )
    assert code != 0, "a kind of node that there is not"
    cuda.free(address)


def memory_of_generic_nodes_is_the_card_s_while_it_is_allocated() -> None:
    cuda = Driver()
    stream, graph = cuda.stream(), _graph(cuda)
    size = 128 * MIB
    take, address = _add_memory(cuda, graph, size, [])
    assert address != 0, "the address is known before the graph runs"
    kernel = cuda.kernel_node(graph, MS, [take])
    free, _ = _add(cuda, graph, FREE_NODE, U64(address), [kernel])
    told = AllocationNode()
    cuda.call("cuGraphMemAllocNodeGetParams", take, ctypes.byref(told))
    equal((told.size, told.address, told.pool.location.id), (size, address, 0))
    freed = U64()
    cuda.call("cuGraphMemFreeNodeGetParams", free, ctypes.byref(freed))
    equal(freed.value, address)
    executable = cuda.instantiate(graph)
    before = cuda.used()
    cuda.run_ms(executable, stream)
    numbers = []
    for which in range(4):
        value = U64()
        cuda.call("cuDeviceGetGraphMemAttribute", 0, which, ctypes.byref(value))
        numbers.append(value.value)
    used, used_high, reserved, reserved_high = numbers
    equal(used, 0)
    assert size <= used_high <= reserved_high and size <= reserved
    equal(cuda.used() - before, reserved)
    cuda.call("cuDeviceGraphMemTrim", 0)
    equal(cuda.used(), before)


def what_a_graph_allocates_and_does_not_free_outlives_its_launch() -> None:
    cuda = Driver()
    stream, graph = cuda.stream(), _graph(cuda)
    _, address = _add_memory(cuda, graph, 64 * MIB, [])
    executable = cuda.instantiate(graph)
    cuda.call("cuGraphLaunch", executable, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemsetD8_v2", U64(address), ctypes.c_ubyte(3), SIZE(MIB))
    value = U64()
    cuda.call("cuDeviceGetGraphMemAttribute", 0, 0, ctypes.byref(value))
    equal(value.value, 64 * MIB)
    equal(cuda.code("cuGraphLaunch", executable, stream), INVALID_VALUE)
    cuda.free_async(address, stream)
    cuda.call("cuGraphLaunch", executable, stream)
    cuda.call("cuStreamSynchronize", stream)
    freeing = PTR()
    cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(freeing), graph, U64(1))
    for _ in range(2):  # freed by the next launch, as asked for
        cuda.call("cuGraphLaunch", freeing, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemFree_v2", U64(address))
    cuda.call("cuDeviceGraphMemTrim", 0)


def a_node_takes_new_parameters_of_its_own_kind_only() -> None:
    cuda = Driver()
    stream, graph = cuda.stream(), _graph(cuda)
    node, _ = _add(cuda, graph, KERNEL_NODE, cuda.kernel_parameters(MS), [])
    executable = cuda.instantiate(graph)
    how = NodeParameters(type=KERNEL_NODE)
    kernel = cuda.kernel_parameters(40 * MS)
    ctypes.memmove(how.data, ctypes.byref(kernel), ctypes.sizeof(kernel))
    cuda.call("cuGraphExecNodeSetParams", executable, node, ctypes.byref(how))
    assert cuda.run_ms(executable, stream) >= 40
    cuda.call("cuGraphNodeSetParams", node, ctypes.byref(how))
    assert cuda.run_ms(cuda.instantiate(graph), stream) >= 40
    equal(
        cuda.code("cuGraphNodeSetParams", node, ctypes.byref(NodeParameters(type=5))), INVALID_VALUE
    )


def edges_are_told_with_their_data() -> None:
    cuda = Driver()
    graph = _graph(cuda)
    first = cuda.kernel_node(graph, MS, [])
    second = cuda.kernel_node(graph, MS, [])
    one = (PTR * 1)(first)
    other = (PTR * 1)(second)
    cuda.call("cuGraphAddDependencies_v2", graph, one, other, None, SIZE(1))
    data = (ctypes.c_ubyte * 8)(*[255] * 8)
    count, found, to = SIZE(1), (PTR * 1)(), (PTR * 1)()
    cuda.call("cuGraphGetEdges_v2", graph, found, to, data, ctypes.byref(count))
    equal((count.value, found[0], to[0]), (1, first.value, second.value))
    equal(bytes(data), bytes(8))
    cuda.call("cuGraphRemoveDependencies_v2", graph, one, other, None, SIZE(1))
    equal(cuda.edge_count(graph), 0)


def a_user_object_goes_with_the_last_graph_that_keeps_it() -> None:
    cuda = Driver()
    graph, copy, kept = _graph(cuda), PTR(), PTR()
    gone: list[int] = []
    # The driver may not be used there.
    destroy = HOST_FUNCTION(lambda _: gone.append(cuda.code("cuCtxSynchronize")))
    cuda.call("cuUserObjectCreate", ctypes.byref(kept), None, destroy, 1, 1)
    cuda.call("cuGraphRetainUserObject", graph, kept, 1, 1)  # moved, not shared
    cuda.kernel_node(graph, MS, [])
    cuda.call("cuGraphClone", ctypes.byref(copy), graph)
    executable = cuda.instantiate(copy)
    cuda.call("cuGraphDestroy", graph)
    cuda.call("cuGraphDestroy", copy)
    equal(gone, [])
    cuda.call("cuGraphExecDestroy", executable)
    cuda.synchronize()
    equal(gone, [NOT_PERMITTED])


# --- pools of other processes ------------------------------------------------------------------


class PointerData(ctypes.Structure):
    """CUmemPoolPtrExportData."""

    _fields_ = (("data", ctypes.c_ubyte * 64),)


def _exportable_pool(cuda: Driver) -> PTR:
    pool = PTR()
    how = PoolProperties(type=1, handle_types=1, location=Location(1, 0))
    cuda.call("cuMemPoolCreate", ctypes.byref(pool), ctypes.byref(how))
    return pool


def a_pool_s_memory_crosses_processes_by_descriptor_and_pointer() -> None:
    cuda = Driver()
    stream, pool, file = cuda.stream(), _exportable_pool(cuda), ctypes.c_int()
    address, data = U64(), PointerData()
    cuda.call("cuMemPoolExportToShareableHandle", ctypes.byref(file), pool, 1, U64(0))
    cuda.call("cuMemAllocFromPoolAsync", ctypes.byref(address), SIZE(4096), pool, stream)
    cuda.call("cuMemsetD8Async", address, ctypes.c_ubyte(1), SIZE(4), stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemPoolExportPointer", ctypes.byref(data), address)
    os.set_inheritable(file.value, True)
    argv = [sys.executable, "-m", "simulators.tests.properties_objects", "import"]
    argv += [str(file.value), bytes(data.data).hex()]
    subprocess.run(argv, check=True, pass_fds=[file.value])
    os.close(file.value)
    back = ctypes.create_string_buffer(4)
    cuda.call("cuMemcpyDtoH_v2", back, address, SIZE(4))
    equal(back.raw, b"\1\2\2\1")
    cuda.free_async(address.value, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemPoolDestroy", pool)


def importer(file: str, data: str) -> None:
    """The other process of a_pool_s_memory_crosses_processes_by_descriptor_and_pointer."""
    cuda = Driver()
    pool, address, stream = PTR(), U64(), cuda.stream()
    given = PointerData((ctypes.c_ubyte * 64)(*bytes.fromhex(data)))
    cuda.call("cuMemPoolImportFromShareableHandle", ctypes.byref(pool), PTR(int(file)), 1, U64(0))
    before = cuda.used()
    cuda.call("cuMemPoolImportPointer", ctypes.byref(address), pool, ctypes.byref(given))
    cuda.call("cuMemsetD8_v2", U64(address.value + 1), ctypes.c_ubyte(2), SIZE(2))
    cuda.synchronize()
    equal(cuda.used(), before)
    own = U64()
    code = cuda.code("cuMemAllocFromPoolAsync", ctypes.byref(own), SIZE(4096), pool, stream)
    assert code != 0, "nobody allocates from another process' pool"
    cuda.free_async(address.value, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuMemPoolDestroy", pool)


def a_pool_that_is_not_made_for_it_is_not_exported() -> None:
    cuda = Driver()
    stream, pool, address = cuda.stream(), cuda.default_pool(), U64()
    export = "cuMemPoolExportToShareableHandle"
    assert cuda.code(export, ctypes.byref(ctypes.c_int()), pool, 1, U64(0)) != 0
    cuda.call("cuMemAllocAsync", ctypes.byref(address), SIZE(4096), stream)
    assert cuda.code("cuMemPoolExportPointer", ctypes.byref(PointerData()), address) != 0
    cuda.free_async(address.value, stream)


class EventHandle(ctypes.Structure):
    """CUipcEventHandle."""

    _fields_ = (("data", ctypes.c_ubyte * 64),)


def an_event_crosses_processes() -> None:
    """Another process' stream waits for it. Pipes tell who goes on when; no clock judges."""
    cuda = Driver()
    stream, event = cuda.stream(), cuda.event(2 | 4)  # without timing, for other processes
    address, word = _host_word(cuda)
    handle = EventHandle()
    cuda.call("cuIpcGetEventHandle", ctypes.byref(handle), event)
    cuda.call("cuStreamWaitValue32_v2", stream, address, 1, 0)
    cuda.launch(MS, stream)
    cuda.call("cuEventRecord", event, stream)
    argv = [sys.executable, "-m", "simulators.tests.properties_objects", "await"]
    argv += [bytes(handle.data).hex()]
    with subprocess.Popen(argv, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        equal(other.stdout.readline(), "waiting\n")
        equal(cuda.code("cuEventQuery", event), NOT_READY)
        word.value = 1
        equal(other.stdout.readline(), "done\n")
        equal(cuda.code("cuEventQuery", event), 0)
        # And back: recorded there, asked here.
        print("go", file=other.stdin, flush=True)
        equal(other.stdout.readline(), "recorded\n")
        equal(cuda.code("cuEventQuery", event), NOT_READY)
        print("go", file=other.stdin, flush=True)
        cuda.call("cuEventSynchronize", event)
        equal(other.wait(), 0)
    equal(cuda.code("cuEventCreate", ctypes.byref(PTR()), 4), INVALID_VALUE)


def waiter(handle: str) -> None:
    """The other process of an_event_crosses_processes."""
    cuda = Driver()
    event, stream = PTR(), cuda.stream()
    given = EventHandle((ctypes.c_ubyte * 64)(*bytes.fromhex(handle)))
    cuda.library.cuIpcOpenEventHandle.argtypes = [PTR, EventHandle]
    cuda.call("cuIpcOpenEventHandle", ctypes.byref(event), given)
    equal(cuda.code("cuEventQuery", event), NOT_READY)
    cuda.call("cuStreamWaitEvent", stream, event, 0)
    cuda.launch(MS, stream)
    equal(cuda.code("cuStreamQuery", stream), NOT_READY)
    print("waiting", flush=True)
    cuda.call("cuStreamSynchronize", stream)
    equal(cuda.code("cuEventQuery", event), 0)
    print("done", flush=True)
    equal(sys.stdin.readline(), "go\n")
    address, word = _host_word(cuda)
    cuda.call("cuStreamWaitValue32_v2", stream, address, 1, 0)
    cuda.call("cuEventRecord", event, stream)
    print("recorded", flush=True)
    equal(sys.stdin.readline(), "go\n")
    word.value = 1
    cuda.call("cuEventSynchronize", event)
    cuda.call("cuEventDestroy_v2", event)


# --- addresses ---------------------------------------------------------------------------------

_CONTEXT, _MEMORY_TYPE, _DEVICE_POINTER, _HOST_POINTER = range(1, 5)
_IS_MANAGED, _ORDINAL, _RANGE_START, _RANGE_SIZE = 8, 9, 11, 12
_ON_HOST, _ON_CARD = 1, 2
_ALREADY_REGISTERED, _NOT_REGISTERED = 712, 713


def _told(cuda: Driver, which: int, address: int) -> int:
    value = U64()
    cuda.call("cuPointerGetAttribute", ctypes.byref(value), which, U64(address))
    return value.value


def an_address_says_what_it_is() -> None:
    cuda = Driver()
    address = cuda.allocate(4 * MIB)
    inside = address + 4096
    equal(_told(cuda, _MEMORY_TYPE, inside), _ON_CARD)
    equal(_told(cuda, _DEVICE_POINTER, inside), inside)
    equal(_told(cuda, _RANGE_START, inside), address)
    equal(_told(cuda, _RANGE_SIZE, inside), 4 * MIB)
    equal(_told(cuda, _ORDINAL, inside), 0)
    equal(_told(cuda, _CONTEXT, inside), cuda.context.value)
    host, managed = PTR(), U64()
    cuda.call("cuMemAllocHost_v2", ctypes.byref(host), SIZE(4096))
    equal(_told(cuda, _MEMORY_TYPE, host.value or 0), _ON_HOST)
    equal(_told(cuda, _HOST_POINTER, host.value or 0), host.value)
    cuda.call("cuMemAllocManaged", ctypes.byref(managed), SIZE(4096), 1)
    equal(_told(cuda, _IS_MANAGED, managed.value) & 1, 1)
    foreign = ctypes.create_string_buffer(16)
    place = U64(ctypes.addressof(foreign))
    code = cuda.code("cuPointerGetAttribute", ctypes.byref(U64()), _MEMORY_TYPE, place)
    equal(code, INVALID_VALUE)
    # Several at once are no error of what the driver doesn't know: they are null.
    which, kind = (ctypes.c_int * 1)(_MEMORY_TYPE), ctypes.c_int(7)
    data = (PTR * 1)(ctypes.addressof(kind))
    cuda.call("cuPointerGetAttributes", 1, which, data, place)
    equal(kind.value, 0)
    cuda.free(address)


def the_application_s_own_memory_is_registered_once() -> None:
    cuda = Driver()
    memory = mmap.mmap(-1, 2 * MIB)
    view = (ctypes.c_ubyte * (2 * MIB)).from_buffer(memory)
    place = PTR(ctypes.addressof(view))
    equal(cuda.code("cuMemHostUnregister", place), _NOT_REGISTERED)
    cuda.call("cuMemHostRegister_v2", place, SIZE(2 * MIB), 2)
    code = cuda.code("cuMemHostRegister_v2", place, SIZE(2 * MIB), 2)
    equal(code, _ALREADY_REGISTERED)
    equal(_told(cuda, _MEMORY_TYPE, place.value or 0), _ON_HOST)
    flags = ctypes.c_uint()
    cuda.call("cuMemHostGetFlags", ctypes.byref(flags), place)
    equal(flags.value & 2, 2)
    there = U64()
    cuda.call("cuMemHostGetDevicePointer_v2", ctypes.byref(there), place, 0)
    cuda.call("cuMemsetD8_v2", there, ctypes.c_ubyte(3), SIZE(16))
    cuda.synchronize()
    equal(bytes(view[:16]), b"\3" * 16)
    cuda.call("cuMemHostUnregister", place)


def an_array_that_gets_its_memory_later_costs_nothing_and_says_how_much() -> None:
    cuda = Driver()
    can = ctypes.c_int()
    cuda.call("cuDeviceGetAttribute", ctypes.byref(can), 121, 0)
    if can.value == 0:
        return
    before = cuda.used()
    array, needs = PTR(), (U64 * 8)()
    shape = ArrayShape(4096, 4096, 0, 0x20, 4, 0x80)  # float4, deferred
    cuda.call("cuArray3DCreate_v2", ctypes.byref(array), ctypes.byref(shape))
    assert cuda.used() - before < 16 * MIB
    cuda.call("cuArrayGetMemoryRequirements", needs, array, 0)
    assert 256 * MIB <= needs[0] <= 300 * MIB, needs[0]
    cuda.call("cuArrayDestroy", array)
    shape.flags = 0
    cuda.call("cuArray3DCreate_v2", ctypes.byref(array), ctypes.byref(shape))
    equal(cuda.code("cuArrayGetMemoryRequirements", needs, array, 0), INVALID_VALUE)
    cuda.call("cuArrayDestroy", array)


# --- streams -----------------------------------------------------------------------------------


def _host_word(cuda: Driver) -> tuple[U64, ctypes.c_uint]:
    """A word that host and card see."""
    host = PTR()
    cuda.call("cuMemHostAlloc", ctypes.byref(host), SIZE(4096), 2)
    word = ctypes.c_uint.from_address(host.value or 0)
    word.value = 0
    return U64(host.value or 0), word


def a_stream_waits_for_a_value_that_the_host_writes() -> None:
    cuda = Driver()
    stream, event = cuda.stream(), cuda.event()
    address, word = _host_word(cuda)
    cuda.call("cuStreamWaitValue32_v2", stream, address, 5, 0)  # at least
    cuda.launch(MS, stream)
    cuda.call("cuEventRecord", event, stream)
    equal(cuda.code("cuEventQuery", event), NOT_READY)
    word.value = 4
    equal(cuda.code("cuEventQuery", event), NOT_READY)
    word.value = 6
    cuda.call("cuEventSynchronize", event)


def a_stream_writes_a_value_behind_its_work() -> None:
    cuda = Driver()
    stream = cuda.stream()
    address, word = _host_word(cuda)
    cuda.launch(50 * MS, stream)
    cuda.call("cuStreamWriteValue32_v2", stream, address, 9, 0)
    equal(word.value, 0)
    cuda.call("cuStreamSynchronize", stream)
    equal(word.value, 9)


def one_stream_s_value_lets_another_go_on() -> None:
    cuda = Driver()
    first, second = cuda.stream(), cuda.stream()
    address, word = _host_word(cuda)
    cuda.call("cuStreamWaitValue32_v2", first, address, 1, 1)
    cuda.launch(MS, first)
    cuda.call("cuStreamWriteValue32_v2", second, address, 1, 0)
    cuda.call("cuStreamSynchronize", first)
    equal(word.value, 1)
    odd = U64(address.value + 1)
    equal(cuda.code("cuStreamWriteValue32_v2", second, odd, 1, 0), INVALID_VALUE)


class StreamAttribute(ctypes.Structure):
    """CUstreamAttrValue."""

    _fields_ = (("words", ctypes.c_int * 16),)


def a_stream_keeps_its_attributes() -> None:
    cuda = Driver()
    stream, other = PTR(), cuda.stream()
    cuda.call("cuStreamCreateWithPriority", ctypes.byref(stream), 1, -1)
    value, found = StreamAttribute(), ctypes.c_int()
    cuda.call("cuStreamGetAttribute", stream, 8, ctypes.byref(value))
    cuda.call("cuStreamGetPriority", stream, ctypes.byref(found))
    equal(value.words[0], found.value)
    policy = StreamAttribute((ctypes.c_int * 16)(2))
    cuda.call("cuStreamSetAttribute", stream, 3, ctypes.byref(policy))  # synchronisation policy
    cuda.call("cuStreamCopyAttributes", other, stream)
    cuda.call("cuStreamGetAttribute", other, 3, ctypes.byref(value))
    equal(value.words[0], 2)


class Resource(ctypes.Structure):
    """CUdevResource."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("padding", ctypes.c_ubyte * 92),
        ("multiprocessors", ctypes.c_uint),
        ("rest", ctypes.c_ubyte * 44),
    )


def a_green_context_has_its_part_and_streams_that_work() -> None:
    cuda = Driver()
    whole, parts, rest = Resource(), (Resource * 1)(), Resource()
    count = ctypes.c_uint(1)
    cuda.call("cuDeviceGetDevResource", 0, ctypes.byref(whole), 1)
    split = "cuDevSmResourceSplitByCount"
    cuda.call(split, parts, ctypes.byref(count), ctypes.byref(whole), ctypes.byref(rest), 0, 8)
    equal(count.value, 1)
    assert 8 <= parts[0].multiprocessors < whole.multiprocessors
    assert parts[0].multiprocessors + rest.multiprocessors <= whole.multiprocessors
    how, green, stream, context = PTR(), PTR(), PTR(), PTR()
    cuda.call("cuDevResourceGenerateDesc", ctypes.byref(how), parts, 1)
    cuda.call("cuGreenCtxCreate", ctypes.byref(green), how, 0, 1)
    cuda.call("cuGreenCtxStreamCreate", ctypes.byref(stream), green, 1, 0)
    cuda.call("cuCtxFromGreenCtx", ctypes.byref(context), green)
    told = Resource()
    cuda.call("cuCtxGetDevResource", context, ctypes.byref(told), 1)
    equal(told.multiprocessors, parts[0].multiprocessors)
    found = PTR()
    cuda.call("cuStreamGetGreenCtx", stream, ctypes.byref(found))
    equal(found.value, green.value)
    cuda.launch(MS, stream)
    cuda.call("cuStreamSynchronize", stream)
    cuda.call("cuStreamDestroy_v2", stream)
    cuda.call("cuGreenCtxDestroy", green)


# --- contexts and functions --------------------------------------------------------------------


def a_context_ends_with_its_last_use() -> None:
    cuda = Driver()
    before = cuda.used()
    context, again = PTR(), PTR()
    cuda.call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    assert cuda.used() > before
    cuda.call("cuCtxAttach", ctypes.byref(again), 0)
    equal(again.value, context.value)
    cuda.call("cuCtxDetach", context)
    cuda.synchronize()
    cuda.call("cuCtxDetach", context)
    cuda.call("cuCtxSetCurrent", cuda.context)
    equal(cuda.used(), before)
    assert cuda.code("cuCtxDetach", context) != 0


def a_context_keeps_its_limits() -> None:
    cuda = Driver()
    value = SIZE()
    cuda.call("cuCtxGetLimit", ctypes.byref(value), 0)
    assert value.value > 0
    cuda.call("cuCtxSetLimit", 0, SIZE(4096))
    cuda.call("cuCtxGetLimit", ctypes.byref(value), 0)
    equal(value.value, 4096)
    equal(cuda.code("cuCtxGetLimit", ctypes.byref(value), 99), 215)  # unsupported limit


def a_function_tells_name_parameters_and_how_many_blocks_fit() -> None:
    cuda = Driver()
    name, offset, size = ctypes.c_char_p(), SIZE(), SIZE()
    cuda.call("cuFuncGetName", ctypes.byref(name), cuda.spin)
    equal(name.value, b"spin_ns")
    cuda.call("cuFuncGetParamInfo", cuda.spin, SIZE(0), ctypes.byref(offset), ctypes.byref(size))
    equal((offset.value, size.value), (0, 8))
    beyond = cuda.code("cuFuncGetParamInfo", cuda.spin, SIZE(1), ctypes.byref(offset), None)
    equal(beyond, INVALID_VALUE)
    blocks, grid, block = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    fit = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    cuda.call(fit, ctypes.byref(blocks), cuda.spin, 1024, SIZE(0))
    assert 1 <= blocks.value <= 2
    best = "cuOccupancyMaxPotentialBlockSize"
    cuda.call(best, ctypes.byref(grid), ctypes.byref(block), cuda.spin, None, SIZE(0), 0)
    assert block.value % 32 == 0 and 0 < block.value <= 1024 and grid.value > 0


def _fatbin(ptx: bytes, capability: int) -> bytes:
    """A fatbin with nothing but PTX in it."""
    text = ptx + b"\0"
    text += bytes(-len(text) % 8)
    head = struct.pack("<HHIQIIHHI", 1, 0x101, 64, len(text), 0, 0, 0, 6, capability)
    entry = (head + bytes(8) + struct.pack("<QQQ", 0x11, 0, 0)).ljust(64, b"\0") + text
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry)) + entry


def code_in_a_fatbin_is_found_by_its_name() -> None:
    cuda = Driver()
    image = _fatbin(SPIN.read_bytes(), 50)
    module, library, kernel = PTR(), PTR(), PTR()
    first, last = cuda.event(), cuda.event()
    none = (None, None, 0, None, None, 0)
    cuda.call("cuModuleLoadFatBinary", ctypes.byref(module), image)
    cuda.call("cuModuleGetFunction", ctypes.byref(cuda.spin), module, b"spin_ns")
    cuda.call("cuEventRecord", first, None)
    cuda.launch(10 * MS)
    cuda.call("cuLibraryLoadData", ctypes.byref(library), image, *none)
    cuda.call("cuLibraryGetKernel", ctypes.byref(kernel), library, b"spin_ns")
    cuda.spin = kernel
    cuda.launch(10 * MS)
    cuda.call("cuEventRecord", last, None)
    cuda.synchronize()
    assert cuda.elapsed_ms(first, last) >= 20
    newer = _fatbin(SPIN.read_bytes(), 999)
    assert cuda.code("cuModuleLoadData", ctypes.byref(module), newer) != 0


class ResourceDescription(ctypes.Structure):
    """CUDA_RESOURCE_DESC of an array."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("array", PTR),
        ("rest", ctypes.c_int * 30),
        ("flags", ctypes.c_uint),
    )


def textures_and_surfaces_say_what_they_are_made_of() -> None:
    cuda = Driver()
    array, texture, surface = PTR(), U64(), U64()
    shape = ArrayShape(64, 64, 0, 0x20, 1, 2)  # may be a surface
    cuda.call("cuArray3DCreate_v2", ctypes.byref(array), ctypes.byref(shape))
    of = ResourceDescription(type=0, array=array)
    how = (ctypes.c_int * 32)()
    create = "cuTexObjectCreate"
    cuda.call(create, ctypes.byref(texture), ctypes.byref(of), how, None)
    cuda.call("cuSurfObjectCreate", ctypes.byref(surface), ctypes.byref(of))
    told = ResourceDescription(type=9)
    cuda.call("cuTexObjectGetResourceDesc", ctypes.byref(told), texture)
    equal((told.type, told.array), (0, array.value))
    cuda.call("cuSurfObjectDestroy", surface)
    cuda.call("cuTexObjectDestroy", texture)
    cuda.call("cuArrayDestroy", array)


def names_of_cuda_13_mean_what_its_header_says() -> None:
    cuda = Driver()
    version = ctypes.c_int()
    cuda.call("cuDriverGetVersion", ctypes.byref(version))
    if version.value < 13000:
        return
    device, pool = ctypes.c_int(-1), PTR()
    cuda.call("cuCtxGetDevice_v2", ctypes.byref(device), None)
    equal(device.value, 0)
    cuda.launch(MS)
    cuda.call("cuCtxSynchronize_v2", cuda.context)
    where = Location(1, 0)
    cuda.call("cuMemGetMemPool", ctypes.byref(pool), ctypes.byref(where), 1)
    equal(pool.value, cuda.default_pool().value)
    for name, wanted in (
        ("cuCtxGetDevice", "cuCtxGetDevice_v2"),
        ("cuGraphAddNode", "cuGraphAddNode_v2"),
    ):
        found, status = PTR(), ctypes.c_int()
        asked = (name.encode(), ctypes.byref(found), 13000, U64(0), ctypes.byref(status))
        cuda.call("cuGetProcAddress_v2", *asked)
        equal(found.value, ctypes.cast(getattr(cuda.library, wanted), PTR).value)


PROPERTIES = collected(globals(), but=("importer", "waiter"))

if __name__ == "__main__":
    if sys.argv[1] == "import":
        importer(sys.argv[2], sys.argv[3])
    elif sys.argv[1] == "await":
        waiter(sys.argv[2])
    else:
        PROPERTIES[sys.argv[1]]()
