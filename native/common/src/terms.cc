// SPDX-License-Identifier: Apache-2.0
#include "xpu/terms.h"

#include <algorithm>

namespace xpu {
namespace {

constexpr Rate kWholeCard = {1ull << 32, 0};
constexpr std::uint32_t kAllQ16 = 100u << 16;

// The only two ways in which modes read the shares of a grant.
std::uint32_t lowered(std::uint32_t granted_q16, std::uint32_t effective_q16) noexcept {
    if (effective_q16 == 0) return granted_q16;
    return granted_q16 == 0 ? effective_q16 : std::min(granted_q16, effective_q16);
}

std::uint32_t replaced(std::uint32_t granted_q16, std::uint32_t effective_q16) noexcept {
    if (effective_q16 != 0) return effective_q16;
    // The agent lends and takes back what it sees used, so work must be measured without a share too.
    return granted_q16 != 0 ? granted_q16 : kAllQ16;
}

Window window_of(const xpu_card_config& card) noexcept {
    return {card.frame_us * Nanos{1000}, card.window_start_us * Nanos{1000},
            card.window_us * Nanos{1000}};
}

std::uint32_t part_of_frame(const Window& window) noexcept {
    if (!window.given()) return 0;
    return static_cast<std::uint32_t>(window.length * Nanos{kAllQ16} / window.frame);
}

std::uint32_t share_of(const xpu_card_config& card, const Window& window) noexcept {
    const std::uint32_t granted = std::min(card.cores_percent, 100u) << 16;
    switch (card.mode) {
    case XPU_MODE_HARD: return lowered(granted, card.effective_q16);
    case XPU_MODE_FIXED_SHARE:
        return lowered(granted != 0 ? granted : part_of_frame(window), card.effective_q16);
    case XPU_MODE_ELASTIC:
    case XPU_MODE_PRIORITY: return replaced(granted, card.effective_q16);
    default: return 0;
    }
}

// Takes a place behind the work of this slice that the card already has, if it lies in a window.
Nanos enter(std::atomic<Nanos>& busy_until, const Window& window, Nanos now, Nanos cost) noexcept {
    Nanos seen = credible(busy_until, now);
    for (;;) {
        const Nanos free = std::clamp(seen, now, now + kLongestDebt);
        const Nanos wait = window.wait(now, free, cost);
        if (wait > 0) return wait;
        if (busy_until.compare_exchange_weak(seen, free + scaled(cost, kWholeCard),
                                             std::memory_order_relaxed)) {
            return 0;
        }
    }
}

} // namespace

Nanos Window::wait(Nanos now, Nanos free, Nanos cost) const noexcept {
    const Nanos begin = std::max(now, free);
    const Nanos phase = begin % frame;
    const bool over = phase >= start + length;
    const bool fits = cost > length || phase + cost <= start + length;
    const Nanos missed = phase >= start && (over || !fits) ? frame : 0;
    return std::max<Nanos>(0, begin - phase + missed + start - now);
}

Terms terms_of(const xpu_card_config& card) noexcept {
    const Window window = card.mode == XPU_MODE_FIXED_SHARE ? window_of(card) : Window{};
    Terms terms;
    terms.rate = make_rate(share_of(card, window), card.trim_q16, card.tau_ns);
    if (!terms.limited()) return terms;
    terms.paused = (card.flags & XPU_CARD_PAUSED) != 0;
    if (!window.given()) return terms;
    terms.window = window;
    // The window itself is the burst: credit for less would not let it be used up.
    terms.rate.tau = std::max(terms.rate.tau, window.frame);
    return terms;
}

Nanos start(const Account& account, const Terms& terms, Nanos now, Nanos cost) noexcept {
    if (!terms.limited()) return 0;
    if (terms.paused) return kLongestSleep;
    restate(account.tat, account.stands_at, now, terms.rate);
    if (!terms.window.given()) return admit(account.tat, now, cost, terms.rate);
    if (const Nanos wait = enter(account.busy_until, terms.window, now, cost)) return wait;
    const Nanos wait = admit(account.tat, now, cost, terms.rate);
    if (wait > 0) settle(account.busy_until, cost, 0, kWholeCard);
    return wait;
}

void settle(const Account& account, const Terms& terms, Nanos predicted, Nanos actual) noexcept {
    if (!terms.limited()) return;
    settle(account.tat, predicted, actual, terms.rate);
    if (terms.window.given()) settle(account.busy_until, predicted, actual, kWholeCard);
}

void restart(const Account& account, const Terms& terms, Nanos now) noexcept {
    forgive(account.tat, now, terms.rate.tau);
    forgive(account.busy_until, now, 0);
}

} // namespace xpu
