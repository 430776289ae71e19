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

// Of the oldest launches, which take a grid of signed numbers.
std::uint64_t flat(int width, int height) noexcept {
    return width <= 0 || height <= 0
               ? 0
               : blocks(static_cast<unsigned>(width), static_cast<unsigned>(height), 1);
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

bool capturing(CUstream stream) noexcept {
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    return real.cuStreamIsCapturing != nullptr &&
           real.cuStreamIsCapturing(stream, &status) == CUDA_SUCCESS &&
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

template <typename Function, typename... Arguments>
CUresult begin_capture(CUstream origin, Function function, Arguments... arguments) noexcept {
    if (!guard.active()) return call(function, arguments...);
    captures.begins();
    const CUresult result = call(function, arguments...);
    if (result != CUDA_SUCCESS) {
        captures.refused();
        return result;
    }
    CUcontext context = nullptr;
    (void)real.cuCtxGetCurrent(&context);
    captures.began(context, key_of(origin));
    return result;
}

// Whatever the answer: a capture that was invalidated ends with an error, and one that is asked to
// end by the wrong stream or thread goes on.
template <typename Function>
CUresult end_capture(CUstream origin, Function function, CUstream stream, CUgraph* graph) noexcept {
    const CUresult result = call(function, stream, graph);
    if (guard.active() && captures.any() && !capturing(origin)) captures.ended(key_of(origin));
    return result;
}

// A capture ends with the stream where it began. The driver may give the handle to another stream as
// soon as it is free, so it is forgotten before.
template <typename Function>
CUresult destroy_stream(Function function, CUstream stream) noexcept {
    if (!guard.active() || stream == nullptr) return call(function, stream);
    forget_stream(stream);
    const bool was_capturing = captures.any() && capturing(stream);
    const CUresult result = call(function, stream);
    if (was_capturing && result == CUDA_SUCCESS) captures.ended(key_of(stream));
    return result;
}

// One call, several cards: each part is admitted in the context of its stream.
class Parts {
  public:
    explicit Parts(const CUDA_LAUNCH_PARAMS* parts, unsigned count) noexcept
        : parts_(parts), count_(count < kMost ? count : kMost) {}

    void begin() noexcept {
        for (unsigned index = 0; index < count_; ++index) {
            const CUDA_LAUNCH_PARAMS& part = parts_[index];
            limited_[index] = within(part.hStream, [&] {
                return begin_launch(launches_[index], part.function,
                                    blocks(part.gridDimX, part.gridDimY, part.gridDimZ),
                                    part.hStream);
            });
        }
    }

    void end(CUresult result) noexcept {
        for (unsigned index = count_; index-- > 0;) {
            if (!limited_[index]) continue;
            within(parts_[index].hStream, [&] {
                end_launch(launches_[index], result);
                return true;
            });
        }
    }

  private:
    static constexpr unsigned kMost = 64; // one a device

    template <typename Act>
    static bool within(CUstream stream, Act act) noexcept {
        CUcontext context = nullptr;
        if (call(real.cuStreamGetCtx, stream, &context) != CUDA_SUCCESS ||
            call(real.cuCtxPushCurrent_v2, context) != CUDA_SUCCESS)
            return false;
        const bool done = act();
        (void)call(real.cuCtxPopCurrent_v2, &context);
        return done;
    }

    const CUDA_LAUNCH_PARAMS* parts_;
    unsigned count_;
    Launch launches_[kMost];
    bool limited_[kMost] = {};
};

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

CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS* launches, unsigned int count,
                                              unsigned int flags) {
    if (!guard.active() || launches == nullptr)
        return call(real.cuLaunchCooperativeKernelMultiDevice, launches, count, flags);
    Parts parts(launches, count);
    parts.begin();
    const CUresult result =
        call(real.cuLaunchCooperativeKernelMultiDevice, launches, count, flags);
    parts.end(result);
    return result;
}

CUresult cuLaunch(CUfunction function) {
    if (!guard.active()) return call(real.cuLaunch, function);
    return launch(function, 1, nullptr, real.cuLaunch, function);
}

CUresult cuLaunchGrid(CUfunction function, int width, int height) {
    if (!guard.active()) return call(real.cuLaunchGrid, function, width, height);
    return launch(function, flat(width, height), nullptr, real.cuLaunchGrid, function, width, height);
}

CUresult cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream) {
    if (!guard.active()) return call(real.cuLaunchGridAsync, function, width, height, stream);
    return launch(function, flat(width, height), stream, real.cuLaunchGridAsync, function, width,
                  height, stream);
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

CUresult cuStreamDestroy(CUstream stream) { return destroy_stream(real.cuStreamDestroy, stream); }

CUresult cuStreamDestroy_v2(CUstream stream) {
    return destroy_stream(real.cuStreamDestroy_v2, stream);
}

CUresult cuStreamBeginCapture(CUstream stream) {
    return begin_capture(stream, real.cuStreamBeginCapture, stream);
}

CUresult cuStreamBeginCapture_ptsz(CUstream stream) {
    return begin_capture(per_thread(stream), real.cuStreamBeginCapture_ptsz, stream);
}

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    return begin_capture(stream, real.cuStreamBeginCapture_v2, stream, mode);
}

CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, int mode) {
    return begin_capture(per_thread(stream), real.cuStreamBeginCapture_v2_ptsz, stream, mode);
}

CUresult cuStreamBeginCaptureToGraph(XPU_CAPTURE_TO_GRAPH_PARAMETERS) {
    return begin_capture(stream, real.cuStreamBeginCaptureToGraph, stream, graph, dependencies,
                         edges, count, mode);
}

CUresult cuStreamBeginCaptureToGraph_ptsz(XPU_CAPTURE_TO_GRAPH_PARAMETERS) {
    return begin_capture(per_thread(stream), real.cuStreamBeginCaptureToGraph_ptsz, stream, graph,
                         dependencies, edges, count, mode);
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    return end_capture(stream, real.cuStreamEndCapture, stream, graph);
}

CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph* graph) {
    return end_capture(per_thread(stream), real.cuStreamEndCapture_ptsz, stream, graph);
}
