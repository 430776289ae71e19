// SPDX-License-Identifier: Apache-2.0
//
// What this process allocated: pointer -> size, card, context. Sharded, so that threads that
// allocate at once rarely meet; open addressing, so that an entry costs no allocation of its own.
#ifndef XPU_CUDA_ALLOCATIONS_H
#define XPU_CUDA_ALLOCATIONS_H

#include <cstdint>

#include "lock.h"
#include "xpu_cuda/driver.h"

namespace xpu {

struct Allocation {
    CUdeviceptr pointer = 0; // 0: free entry
    std::uint64_t bytes = 0;
    CUcontext context = nullptr;
    int card = 0;
};

class Allocations {
  public:
    // False when no memory is left for the entry; the caller then must not keep the allocation.
    bool add(const Allocation& allocation) noexcept;
    // Removes and returns the entry; bytes 0 when the pointer is not ours to count.
    Allocation take(CUdeviceptr pointer) noexcept;
    // Calls `gone` for every entry of a context that ended, and removes them.
    void take_context(CUcontext context, void (*gone)(const Allocation&)) noexcept;
    void forget_all() noexcept; // in a forked child: the entries are the parent's

  private:
    static constexpr unsigned kShards = 64;
    struct Shard {
        SpinLock lock;
        Allocation* entries = nullptr;
        std::uint32_t capacity = 0; // power of two
        std::uint32_t used = 0;

        bool grow() noexcept;
        void place(const Allocation& allocation) noexcept;
        void erase(std::uint32_t at) noexcept;
    };
    Shard& shard(CUdeviceptr pointer) noexcept;

    Shard shards_[kShards];
};

extern Allocations allocations;

} // namespace xpu
#endif
