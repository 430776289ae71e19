// SPDX-License-Identifier: Apache-2.0
//
// Work for the card, and the places where the application waits for it.
#include "call.h"
#include "graph_memory.h"
#include "meter.h"

namespace xpu {
namespace {

// Room for a graph's memory nodes is taken when it is admitted, so that nobody waits for a throttled
// launch.
CUresult launch_graph(CUgraphExec graph, CUstream stream) noexcept {
    return with_graph_memory(graph, stream, [=] { return call(real.cuGraphLaunch, graph, stream); });
}

CUresult launch_graph_ptsz(CUgraphExec graph, CUstream stream) noexcept {
    return with_graph_memory(graph, stream,
                             [=] { return call(real.cuGraphLaunch_ptsz, graph, stream); });
}

// The _ptsz entry points mean the calling thread's default stream where they say 0.
CUstream per_thread(CUstream stream) noexcept {
    return stream == nullptr ? XPU_STREAM_PER_THREAD : stream;
}

// 64 bits: a grid of 2^31 x 65535 x 65535 blocks is legal.
std::uint64_t blocks(unsigned x, unsigned y, unsigned z) noexcept {
    std::uint64_t product = 0;
    if (__builtin_mul_overflow(std::uint64_t{x} * y, std::uint64_t{z}, &product))
        return ~std::uint64_t{0};
    return product;
}

template <typename Function, typename... Arguments>
CUresult launch(const void* work, std::uint64_t size, CUstream stream, Function function,
                Arguments... arguments) noexcept {
    Launch ticket;
    if (function == nullptr || !begin_launch(ticket, work, size, stream))
        return call(function, arguments...);
    const CUresult result = function(arguments...);
    end_launch(ticket, result);
    return result;
}

template <typename Function, typename... Arguments>
CUresult synchronise(CUstream stream, bool all, Function function,
                     Arguments... arguments) noexcept {
    if (!guard.active()) return call(function, arguments...);
    before_sync(stream, all);
    const CUresult result = call(function, arguments...);
    after_sync();
    after_synchronisation();
    return result;
}

template <typename Function, typename... Arguments>
CUresult begin_capture(Function function, Arguments... arguments) noexcept {
    if (!guard.active()) return call(function, arguments...);
    // Counted before it begins, so that no event of ours can fall between.
    capture_began();
    const CUresult result = call(function, arguments...);
    if (result != CUDA_SUCCESS) capture_ended();
    return result;
}

template <typename Function>
CUresult end_capture(Function function, CUstream stream, CUgraph* graph) noexcept {
    if (!guard.active()) return call(function, stream, graph);
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    const bool was_capturing = real.cuStreamIsCapturing != nullptr &&
                               real.cuStreamIsCapturing(stream, &status) == CUDA_SUCCESS &&
                               status != CU_STREAM_CAPTURE_STATUS_NONE;
    const CUresult result = call(function, stream, graph);
    // An invalidated capture ends with an error, but it ends.
    if (was_capturing) capture_ended();
    return result;
}

} // namespace
} // namespace xpu

using namespace xpu;

#define LAUNCH_ARGUMENTS                                                                           \
    function, gridX, gridY, gridZ, blockX, blockY, blockZ, sharedBytes, stream, parameters

CUresult cuLaunchKernel(XPU_LAUNCH_PARAMETERS, void** extra) {
    if (!guard.active()) return call(real.cuLaunchKernel, LAUNCH_ARGUMENTS, extra);
    return launch(function, blocks(gridX, gridY, gridZ), stream, real.cuLaunchKernel,
                  LAUNCH_ARGUMENTS, extra);
}

CUresult cuLaunchKernel_ptsz(XPU_LAUNCH_PARAMETERS, void** extra) {
    if (!guard.active()) return call(real.cuLaunchKernel_ptsz, LAUNCH_ARGUMENTS, extra);
    return launch(function, blocks(gridX, gridY, gridZ), per_thread(stream),
                  real.cuLaunchKernel_ptsz, LAUNCH_ARGUMENTS, extra);
}

CUresult cuLaunchCooperativeKernel(XPU_LAUNCH_PARAMETERS) {
    if (!guard.active()) return call(real.cuLaunchCooperativeKernel, LAUNCH_ARGUMENTS);
    return launch(function, blocks(gridX, gridY, gridZ), stream, real.cuLaunchCooperativeKernel,
                  LAUNCH_ARGUMENTS);
}

CUresult cuLaunchCooperativeKernel_ptsz(XPU_LAUNCH_PARAMETERS) {
    if (!guard.active()) return call(real.cuLaunchCooperativeKernel_ptsz, LAUNCH_ARGUMENTS);
    return launch(function, blocks(gridX, gridY, gridZ), per_thread(stream),
                  real.cuLaunchCooperativeKernel_ptsz, LAUNCH_ARGUMENTS);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters,
                          void** extra) {
    if (!guard.active() || config == nullptr)
        return call(real.cuLaunchKernelEx, config, function, parameters, extra);
    return launch(function, blocks(config->gridDimX, config->gridDimY, config->gridDimZ),
                  config->hStream, real.cuLaunchKernelEx, config, function, parameters, extra);
}

CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig* config, CUfunction function,
                               void** parameters, void** extra) {
    if (!guard.active() || config == nullptr)
        return call(real.cuLaunchKernelEx_ptsz, config, function, parameters, extra);
    return launch(function, blocks(config->gridDimX, config->gridDimY, config->gridDimZ),
                  per_thread(config->hStream), real.cuLaunchKernelEx_ptsz, config, function,
                  parameters, extra);
}

CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    if (!guard.active()) return call(real.cuGraphLaunch, graph, stream);
    return launch(graph, 0, stream, launch_graph, graph, stream);
}

CUresult cuGraphLaunch_ptsz(CUgraphExec graph, CUstream stream) {
    if (!guard.active()) return call(real.cuGraphLaunch_ptsz, graph, stream);
    return launch(graph, 0, per_thread(stream), launch_graph_ptsz, graph, stream);
}

CUresult cuStreamSynchronize(CUstream stream) {
    return synchronise(stream, false, real.cuStreamSynchronize, stream);
}

CUresult cuStreamSynchronize_ptsz(CUstream stream) {
    return synchronise(per_thread(stream), false, real.cuStreamSynchronize_ptsz, stream);
}

CUresult cuCtxSynchronize(void) { return synchronise(nullptr, true, real.cuCtxSynchronize); }

CUresult cuEventSynchronize(CUevent event) {
    return synchronise(nullptr, true, real.cuEventSynchronize, event);
}

CUresult cuStreamBeginCapture(CUstream stream) {
    return begin_capture(real.cuStreamBeginCapture, stream);
}

CUresult cuStreamBeginCapture_ptsz(CUstream stream) {
    return begin_capture(real.cuStreamBeginCapture_ptsz, stream);
}

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    return begin_capture(real.cuStreamBeginCapture_v2, stream, mode);
}

CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, int mode) {
    return begin_capture(real.cuStreamBeginCapture_v2_ptsz, stream, mode);
}

CUresult cuStreamBeginCaptureToGraph(XPU_CAPTURE_TO_GRAPH_PARAMETERS) {
    return begin_capture(real.cuStreamBeginCaptureToGraph, stream, graph, dependencies, edges,
                         count, mode);
}

CUresult cuStreamBeginCaptureToGraph_ptsz(XPU_CAPTURE_TO_GRAPH_PARAMETERS) {
    return begin_capture(real.cuStreamBeginCaptureToGraph_ptsz, stream, graph, dependencies, edges,
                         count, mode);
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    return end_capture(real.cuStreamEndCapture, stream, graph);
}

CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph* graph) {
    return end_capture(real.cuStreamEndCapture_ptsz, stream, graph);
}
