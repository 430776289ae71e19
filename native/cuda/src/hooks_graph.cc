// SPDX-License-Identifier: Apache-2.0
//
// Memory nodes of graphs. The driver gives a graph its memory when it is made, uploaded or launched,
// and keeps it reserved for the next one until it is trimmed.
#include "call.h"
#include "graph_memory.h"
#include "pools.h"

namespace xpu {
namespace {

template <typename Make>
CUresult instantiate(CUgraphExec* exec, CUgraph graph, Make make) noexcept {
    if (!guard.active() || exec == nullptr) return make();
    const GraphMemory memory = memory_of(graph);
    if (memory.bytes == 0) return make();
    const CUresult result = with_room_for(memory, nullptr, make);
    if (result == CUDA_SUCCESS) graph_made(*exec, memory);
    return result;
}

template <typename Function>
CUresult upload(Function function, CUgraphExec exec, CUstream stream) noexcept {
    return with_graph_memory(exec, stream, [=] { return call(function, exec, stream); });
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuGraphInstantiate(CUgraphExec* exec, CUgraph graph, CUgraphNode* error, char* text,
                            size_t size) {
    return instantiate(exec, graph,
                       [=] { return call(real.cuGraphInstantiate, exec, graph, error, text, size); });
}

CUresult cuGraphInstantiate_v2(CUgraphExec* exec, CUgraph graph, CUgraphNode* error, char* text,
                               size_t size) {
    return instantiate(
        exec, graph, [=] { return call(real.cuGraphInstantiate_v2, exec, graph, error, text, size); });
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    return instantiate(exec, graph,
                       [=] { return call(real.cuGraphInstantiateWithFlags, exec, graph, flags); });
}

CUresult cuGraphInstantiateWithParams(CUgraphExec* exec, CUgraph graph, void* how) {
    return instantiate(exec, graph,
                       [=] { return call(real.cuGraphInstantiateWithParams, exec, graph, how); });
}

CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec* exec, CUgraph graph, void* how) {
    return instantiate(
        exec, graph, [=] { return call(real.cuGraphInstantiateWithParams_ptsz, exec, graph, how); });
}

CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
    return upload(real.cuGraphUpload, exec, stream);
}

CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream) {
    return upload(real.cuGraphUpload_ptsz, exec, stream);
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    if (!guard.active() || !graphs_take_memory()) return call(real.cuGraphExecDestroy, exec);
    const GraphMemory memory = memory_of(exec);
    graph_destroyed(exec); // first, since its handle may be another graph's at once
    const CUresult result = call(real.cuGraphExecDestroy, exec);
    if (result != CUDA_SUCCESS && memory.bytes != 0) graph_made(exec, memory);
    return result;
}

CUresult cuDeviceGraphMemTrim(CUdevice device) {
    const CUresult result = call(real.cuDeviceGraphMemTrim, device);
    if (guard.active() && result == CUDA_SUCCESS) settle(pool_of_graphs(device));
    return result;
}
