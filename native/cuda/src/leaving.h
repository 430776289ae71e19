// SPDX-License-Identifier: Apache-2.0
//
// cuMemAlloc'ed memory that was freed in a stream is the card's again when the stream gets there, and
// not before; so long it stays charged. An event behind the free tells. It is looked at when the
// application synchronises or asks for free memory, and before anything is refused.
#ifndef XPU_CUDA_LEAVING_H
#define XPU_CUDA_LEAVING_H

#include <atomic>

#include "allocations.h"

namespace xpu {

void leave_in_stream(const Allocation& held, CUstream stream) noexcept;

extern std::atomic<std::uint32_t> allocations_leaving;
inline bool any_leaving() noexcept {
    return allocations_leaving.load(std::memory_order_relaxed) != 0;
}
void settle_leaving() noexcept;                   // refunds what is gone by now
void end_leaving(CUcontext context) noexcept;     // the context ended, its streams with it
void forget_all_leaving() noexcept;

} // namespace xpu
#endif
