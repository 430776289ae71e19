// SPDX-License-Identifier: Apache-2.0
//
// Locks small enough to live by the thousand, without a destructor or a syscall when free.
#ifndef XPU_CUDA_LOCK_H
#define XPU_CUDA_LOCK_H

#include <atomic>
#include <cerrno>
#include <ctime>
#include <sched.h>

#include "xpu/uncancelled.h"

namespace xpu {

class SpinLock {
  public:
    bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
    // To yield alone would be for ever where the holder has a lower real-time priority.
    void lock() noexcept {
        for (unsigned tries = 1; !try_lock(); ++tries) give_way(tries);
    }
    // False after about 10 ms: where the holder may be a thread that ended inside the driver.
    bool lock_soon() noexcept {
        for (unsigned tries = 1; !try_lock(); ++tries) {
            if (tries == kYields * kPatience) return false;
            give_way(tries);
        }
        return true;
    }
    void unlock() noexcept { taken_.store(false, std::memory_order_release); }

  private:
    static constexpr unsigned kYields = 64, kPatience = 200;
    static void give_way(unsigned tries) noexcept {
        if (tries % kYields != 0) {
            sched_yield();
            return;
        }
        const Uncancelled here;
        const int saved = errno;
        const timespec little = {0, 50'000};
        (void)nanosleep(&little, nullptr);
        errno = saved;
    }

    std::atomic<bool> taken_{false};
};

class Hold {
  public:
    explicit Hold(SpinLock& lock) noexcept : lock_(lock) { lock_.lock(); }
    ~Hold() { lock_.unlock(); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

  private:
    SpinLock& lock_;
};

} // namespace xpu
#endif
