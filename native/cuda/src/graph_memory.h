// SPDX-License-Identifier: Apache-2.0
//
// A call that may give a graph its memory, charged around it.
#ifndef XPU_CUDA_GRAPH_MEMORY_H
#define XPU_CUDA_GRAPH_MEMORY_H

#include "pools.h"

namespace xpu {

// What was given can't be taken back from a graph that runs; should the driver have taken more than
// was charged before, which it has not been seen to do, the excess is charged as soon as there is room.
template <typename Call>
CUresult with_room_for(const GraphMemory& memory, CUstream stream, Call call) noexcept {
    Growth growth(pool_of_graphs(memory.device), memory.bytes, stream);
    if (!growth.admitted()) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = call();
    (void)growth.settled();
    return result;
}

// For graphs without memory nodes this is one load and a compare.
template <typename Call>
CUresult with_graph_memory(CUgraphExec exec, CUstream stream, Call call) noexcept {
    if (!graphs_take_memory()) return call();
    const GraphMemory memory = memory_of(exec);
    return memory.bytes == 0 ? call() : with_room_for(memory, stream, call);
}

} // namespace xpu
#endif
