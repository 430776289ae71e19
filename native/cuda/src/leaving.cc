// SPDX-License-Identifier: Apache-2.0
#include "leaving.h"

#include <cstdlib>
#include <new>

#include "call.h"

namespace xpu {

std::atomic<std::uint32_t> allocations_leaving{0};

namespace {

struct Leaving {
    Allocation held;
    CUevent behind; // null: it could not be recorded, so only the context's end tells
    Leaving* next;
};

SpinLock lock;
Leaving* first = nullptr;
SpinLock settling; // one at a time, so that none misses what another has taken out to look at

// Our events are no part of anybody's capture, so nothing that is captured elsewhere is spoilt.
class Relaxed {
  public:
    Relaxed() noexcept { (void)call(real.cuThreadExchangeStreamCaptureMode, &mode_); }
    ~Relaxed() { (void)call(real.cuThreadExchangeStreamCaptureMode, &mode_); }
    Relaxed(const Relaxed&) = delete;
    Relaxed& operator=(const Relaxed&) = delete;

  private:
    int mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

CUevent event_in(CUstream stream) noexcept {
    const Relaxed here;
    CUevent event = nullptr;
    if (call(real.cuEventCreate, &event, unsigned{CU_EVENT_DISABLE_TIMING}) != CUDA_SUCCESS)
        return nullptr;
    if (call(real.cuEventRecord, event, stream) == CUDA_SUCCESS) return event;
    (void)call(real.cuEventDestroy_v2, event);
    return nullptr;
}

// Takes out what `gone` wants; the list is cut off meanwhile, so that nobody who frees waits for it.
template <typename Gone>
void refund_if(Gone gone) noexcept {
    Hold turn(settling);
    Leaving* here = nullptr;
    {
        Hold hold(lock);
        here = first;
        first = nullptr;
    }
    Leaving* staying = nullptr;
    while (here != nullptr) {
        Leaving* next = here->next;
        if (gone(*here)) {
            refund_allocation(here->held);
            std::free(here);
            allocations_leaving.fetch_sub(1, std::memory_order_relaxed);
        } else {
            here->next = staying;
            staying = here;
        }
        here = next;
    }
    Hold hold(lock);
    while (staying != nullptr) {
        Leaving* next = staying->next;
        staying->next = first;
        first = staying;
        staying = next;
    }
}

} // namespace

void leave_in_stream(const Allocation& held, CUstream stream) noexcept {
    void* place = std::malloc(sizeof(Leaving));
    if (place == nullptr) return; // stays charged until the process ends
    auto* fresh = new (place) Leaving{held, event_in(stream), nullptr};
    Hold hold(lock);
    fresh->next = first;
    first = fresh;
    allocations_leaving.fetch_add(1, std::memory_order_relaxed);
}

void settle_leaving() noexcept {
    const Relaxed here;
    refund_if([](const Leaving& leaving) {
        if (leaving.behind == nullptr || call(real.cuEventQuery, leaving.behind) != CUDA_SUCCESS)
            return false;
        (void)call(real.cuEventDestroy_v2, leaving.behind);
        return true;
    });
}

void end_leaving(CUcontext context) noexcept {
    refund_if([=](const Leaving& leaving) { return leaving.held.context == context; });
}

void forget_all_leaving() noexcept {
    lock.unlock();
    settling.unlock();
    first = nullptr;
    allocations_leaving.store(0);
}

} // namespace xpu
