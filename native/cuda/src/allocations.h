// SPDX-License-Identifier: Apache-2.0
//
// What this process allocated: pointer or array -> size, card, context.
//
// A small allocation is cut out of a granule that it shares with others. What the card gives is the
// granule, so that is what is charged: once, from the first allocation in it to the last.
#ifndef XPU_CUDA_ALLOCATIONS_H
#define XPU_CUDA_ALLOCATIONS_H

#include <cstdint>

#include "table.h"
#include "xpu_cuda/driver.h"

namespace xpu {

constexpr std::uint64_t kSmall = 1u << 20; // below, an allocation shares a granule

struct Allocation {
    std::uint64_t key = 0; // pointer, or handle of an array
    std::uint64_t bytes = 0;
    CUcontext context = nullptr;
    int card = 0;
};

// What an allocation of this size costs at most before its place is known.
std::uint64_t most_of(std::uint64_t bytes) noexcept;

// Remember memory at `pointer`, for which `prepaid` is charged, and settle the difference to what it
// really costs. False: neither remembered nor charged any more, so it must go back to the driver.
bool keep_allocation(CUdeviceptr pointer, std::uint64_t bytes, int card,
                     std::uint64_t prepaid) noexcept;
// The same for an array, whose place nobody tells. Small ones of a card fill granules together.
bool keep_array(std::uint64_t handle, std::uint64_t bytes, int card, std::uint64_t prepaid) noexcept;

// Free by `free`, which returns CUresult. The entry is taken out before the driver frees: afterwards
// the same address may already be another thread's new allocation. A refused free puts it back.
// `known` tells whether it was ours to count.
template <typename Gone, typename Free>
CUresult free_kept(Table<Allocation>& table, std::uint64_t key, Gone gone, Free free,
                   bool* known = nullptr) noexcept {
    const Allocation held = table.take(key);
    const CUresult result = free();
    if (known != nullptr) *known = held.key != 0;
    if (held.key == 0) return result;
    if (result == CUDA_SUCCESS) gone(held);
    else (void)table.add(held); // just taken out, so there is room
    return result;
}

extern Table<Allocation> allocations;
extern Table<Allocation> arrays;
void refund_allocation(const Allocation& gone) noexcept;
void refund_array(const Allocation& gone) noexcept;

void end_allocations(CUcontext context) noexcept; // the context ended, its memory with it
void forget_all_allocations() noexcept;

} // namespace xpu
#endif
