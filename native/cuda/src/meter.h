// SPDX-License-Identifier: Apache-2.0
//
// Admission and measurement of GPU work.
//
// Every launch is admitted by its predicted cost on the terms of the grant (xpu/terms.h). What it
// really took is measured by *segments*: a timing event before and one after a stretch of work on one
// stream, recorded with the driver's own functions, polled and never waited for, except that at most
// kPending segments of a stream may be unsettled - otherwise a deep queue of work whose cost is not
// yet known would run for seconds after the limit closed. A settled segment corrects the TAT by
// measured minus predicted, and teaches the cost table.
//
// Sampling: work that follows without a gap is measured without one, its segments share their
// boundary events, about one event per millisecond. Where a stream runs dry between launches, one
// launch per millisecond is measured by itself, the others are charged as predicted.
//
// While any stream capture is active in the process, no event is touched (captures.h). Work that is
// being captured is not work.
#ifndef XPU_CUDA_METER_H
#define XPU_CUDA_METER_H

#include <atomic>
#include <cstdint>

#include "captures.h"
#include "costs.h"
#include "lock.h"
#include "xpu/limiter.h"
#include "xpu_cuda/driver.h"

namespace xpu {

class StreamMeter;
class ContextMeter;

// One launch between its admission and its result.
struct Launch {
    ContextMeter* context = nullptr;
    StreamMeter* stream = nullptr; // where it counts; null: nowhere, it is charged as predicted
    CUstream handle = nullptr;
    Nanos now = 0;
    Nanos predicted = 0;
    bool holds = false; // the stream's lock; otherwise it only went by
    bool opens = false; // a segment on a stream that had nothing to do
    bool close = false; // measure up to here
};

// Admits; may wait. False when nothing is limited here, and end_launch() must not follow.
bool begin_launch(Launch& launch, const void* work, std::uint64_t blocks, CUstream stream) noexcept;
void end_launch(Launch& launch, CUresult result) noexcept;

// Around the application's own synchronisation: the work it waits for is measured up to here.
void before_sync(CUstream stream, bool all_streams) noexcept;
void after_sync() noexcept;

void forget_stream(CUstream stream) noexcept;  // before the driver destroys it
void settle_meter(CUcontext context) noexcept; // before the driver ends it; does not wait
void forget_meter(CUcontext context) noexcept; // the context ended, its events with it
void forget_all_meters() noexcept;             // in a forked child

} // namespace xpu
#endif
