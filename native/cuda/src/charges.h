// SPDX-License-Identifier: Apache-2.0
//
// What every kind of memory has in common: it is charged to a card of the slice before the driver is
// asked, and refunded after the driver took it back or said no, so that the sum never shows less than
// is held.
#ifndef XPU_CUDA_CHARGES_H
#define XPU_CUDA_CHARGES_H

#include <cstdint>

#include "guard.h"

namespace xpu {

// The driver takes memory from the card in granules.
constexpr std::uint64_t kGranule = 2u << 20;

// `bytes` in whole units; the largest number where that does not fit.
std::uint64_t rounded_up(std::uint64_t bytes, std::uint64_t unit) noexcept;

// The card whose quota a device's memory counts against; kNoCard where the slice does not cover it.
int charged_card(CUdevice device) noexcept;
int current_charged_card() noexcept; // of the calling thread's current context
CUdevice current_device() noexcept;  // -1 where no context is current

// False where the slice has no room. Before it says so, what pools keep unused is given up.
bool charge(int card, std::uint64_t bytes) noexcept;
// The same without giving anything up and without counting a refusal.
bool charge_if_free(int card, std::uint64_t bytes) noexcept;
void refund(int card, std::uint64_t bytes) noexcept;

void forget_all_memory() noexcept; // in a forked child

} // namespace xpu
#endif
