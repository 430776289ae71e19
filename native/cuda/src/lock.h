// SPDX-License-Identifier: Apache-2.0
//
// Locks small enough to live by the thousand, without a destructor or a syscall when free.
#ifndef XPU_CUDA_LOCK_H
#define XPU_CUDA_LOCK_H

#include <atomic>
#include <sched.h>

namespace xpu {

class SpinLock {
  public:
    bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
    void lock() noexcept {
        while (!try_lock()) sched_yield();
    }
    void unlock() noexcept { taken_.store(false, std::memory_order_release); }

  private:
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
