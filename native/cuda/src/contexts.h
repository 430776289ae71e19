// SPDX-License-Identifier: Apache-2.0
//
// Contexts of this process: what each costs the card (the grant's context_bytes, and what its limits
// were raised by), charged when it begins and refunded when it ends.
#ifndef XPU_CUDA_CONTEXTS_H
#define XPU_CUDA_CONTEXTS_H

#include <cstddef>
#include <cstdint>

#include "xpu_cuda/driver.h"

namespace xpu {

// The charge for one context, taken before the driver makes it.
struct ContextCharge {
    int card;
    std::uint64_t bytes;
    bool granted;
};
ContextCharge charge_context(CUdevice device) noexcept;
void context_began(CUcontext context, const ContextCharge& charge) noexcept;
void context_not_made(const ContextCharge& charge) noexcept;
void context_ended(CUcontext context) noexcept; // refunds it and all memory that ended with it

void context_attached(CUcontext context) noexcept;
bool context_detached(CUcontext context) noexcept; // true: that was its last use

// The primary context of a device begins with its first use, whoever uses it.
bool primary_needs_room(CUdevice device) noexcept; // false: refused
void primary_used(CUdevice device, CUcontext context, CUresult result) noexcept;
CUcontext primary_context(CUdevice device) noexcept; // null where none was retained
void primary_released(CUdevice device) noexcept;   // asks the driver whether it is gone
void primaries_released() noexcept;                // of any device

// A limit of the current context goes to `wanted`: charges what that adds, by `set`, which asks the
// driver and returns its answer.
CUresult change_limit(int limit, std::uint64_t wanted, CUresult (*set)(int, std::size_t)) noexcept;

void forget_all_contexts() noexcept;

} // namespace xpu
#endif
