// SPDX-License-Identifier: Apache-2.0
//
// Stream captures of this process, and the promise that no event of ours falls into one: recording
// would become part of somebody's graph, asking may invalidate it, whatever stream and thread it is.
// So events are only touched inside a Touch, which is refused while a capture is going on, and a
// capture waits until none is left before it begins.
#ifndef XPU_CUDA_CAPTURES_H
#define XPU_CUDA_CAPTURES_H

#include <atomic>
#include <cstdint>

#include "lock.h"
#include "xpu_cuda/driver.h"

namespace xpu {

// A stream as we tell it from others. Everybody's own default stream has one handle.
using StreamKey = std::uintptr_t;
StreamKey key_of(CUstream stream) noexcept;

class Captures {
  public:
    bool any() const noexcept { return count_.load(std::memory_order_relaxed) > 0; }

    void begins() noexcept; // before the driver is asked
    void began(CUcontext context, StreamKey origin) noexcept;
    void refused() noexcept { count_.fetch_sub(1); }

    // A capture ends with the one at its origin, or with the stream or the context of that.
    void ended(StreamKey origin) noexcept;
    void context_ended(CUcontext context) noexcept;

    void forget_all() noexcept; // in a forked child

  private:
    friend class Touch;
    static constexpr unsigned kOrigins = 64;
    struct Origin {
        CUcontext context = nullptr;
        StreamKey stream = 0; // 0: a free place
    };

    SpinLock lock_;
    Origin origins_[kOrigins];
    std::atomic<int> count_{0};
    std::atomic<int> touching_{0};
};

extern Captures captures;

// The permission to touch events; keep it short, and never wait inside.
class Touch {
  public:
    Touch() noexcept {
        // The order is the promise: we are counted before we look, a capture before it does.
        captures.touching_.fetch_add(1);
        allowed_ = captures.count_.load() <= 0;
    }
    ~Touch() { captures.touching_.fetch_sub(1, std::memory_order_release); }
    Touch(const Touch&) = delete;
    Touch& operator=(const Touch&) = delete;

    explicit operator bool() const noexcept { return allowed_; }

  private:
    bool allowed_ = false;
};

} // namespace xpu
#endif
