# SPDX-License-Identifier: GPL-3.0-or-later
"""More properties of the driver (see properties.py): graph nodes, user objects, handles.

``python -m … NAME`` checks one.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

from simulators.tests.cudriver import PTR
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


PROPERTIES = collected(globals(), but=("importer",))

if __name__ == "__main__":
    if sys.argv[1] == "import":
        importer(sys.argv[2], sys.argv[3])
    else:
        PROPERTIES[sys.argv[1]]()
