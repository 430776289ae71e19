// SPDX-License-Identifier: Apache-2.0
#include "charges.h"

#include <limits>

#include "allocations.h"
#include "contexts.h"
#include "leaving.h"
#include "physical.h"
#include "pools.h"

namespace xpu {
namespace {

enum class Refusal { kCounts, kIsTriedAgain };

bool charge_once(int card, std::uint64_t bytes, Refusal refusal) noexcept {
    guard.join();
    const std::uint64_t limit = guard.grants(card).memory_limit.load(std::memory_order_relaxed);
    return guard.ledger().charge_memory(static_cast<unsigned>(card), bytes, limit,
                                        refusal == Refusal::kCounts) == Charge::kGranted;
}

} // namespace

std::uint64_t rounded_up(std::uint64_t bytes, std::uint64_t unit) noexcept {
    const std::uint64_t whole = (bytes + unit - 1) / unit * unit;
    return whole < bytes || bytes + unit - 1 < bytes ? std::numeric_limits<std::uint64_t>::max()
                                                     : whole;
}

int charged_card(CUdevice device) noexcept {
    guard.refresh();
    const int card = guard.card_of(device);
    return card == kNoCard || !guard.grants(card).present.load(std::memory_order_relaxed) ? kNoCard
                                                                                          : card;
}

CUdevice current_device() noexcept {
    CUdevice device = -1;
    return real.cuCtxGetDevice(&device) == CUDA_SUCCESS ? device : -1;
}

int current_charged_card() noexcept { return charged_card(current_device()); }

bool charge_if_free(int card, std::uint64_t bytes) noexcept {
    return charge_once(card, bytes, Refusal::kIsTriedAgain);
}

bool charge(int card, std::uint64_t bytes) noexcept {
    const bool leaving = any_leaving(), pooled = pools_hold_memory();
    if (!leaving && !pooled) return charge_once(card, bytes, Refusal::kCounts);
    if (charge_if_free(card, bytes)) return true;
    if (leaving) settle_leaving();
    if (pooled) give_up_unused(card);
    return charge_once(card, bytes, Refusal::kCounts);
}

void refund(int card, std::uint64_t bytes) noexcept {
    if (bytes != 0) guard.ledger().refund_memory(static_cast<unsigned>(card), bytes);
}

void forget_all_memory() noexcept {
    forget_all_allocations();
    forget_all_leaving();
    forget_all_contexts();
    forget_all_physical();
    forget_all_pools();
}

} // namespace xpu
