// SPDX-License-Identifier: Apache-2.0
#include "xpu/limiter.h"

#include <algorithm>

namespace xpu {
namespace {

constexpr std::uint64_t kOneQ16 = 1u << 16;
constexpr std::uint64_t kTrimFloor = kOneQ16 * 3 / 10;
constexpr std::uint64_t kTrimCeiling = kOneQ16 * 12 / 10;
constexpr Nanos kLongestTau = 10'000'000'000;

// Adds `amount`, starting at `now` when the TAT lies in the past: unused time is not saved up
// beyond tau. A TAT too far in the future is pulled back, whoever wrote it.
Nanos advanced(Nanos tat, Nanos now, Nanos amount) noexcept {
    return std::clamp(tat, now, now + kLongestDebt) + amount;
}

} // namespace

Rate make_rate(std::uint32_t percent, std::uint32_t trim_q16, std::uint64_t tau_ns) noexcept {
    if (percent == 0 || percent > 100) return {};
    const std::uint64_t trim =
        trim_q16 == 0 ? kOneQ16
                      : std::clamp<std::uint64_t>(trim_q16, kTrimFloor, kTrimCeiling);
    return {(trim << 16) * 100 / percent,
            static_cast<Nanos>(std::min<std::uint64_t>(tau_ns, kLongestTau))};
}

Nanos scaled(Nanos cost, Rate rate) noexcept {
    if (cost <= 0) return 0;
    const auto wide = static_cast<unsigned __int128>(cost) * rate.scale_q32;
    return static_cast<Nanos>(std::min<unsigned __int128>(wide >> 32, kLongestDebt));
}

Grant admit(std::atomic<Nanos>& tat, Nanos now, Nanos cost, Rate rate) noexcept {
    if (!rate.limited()) return {0, 0};
    const Nanos amount = scaled(cost, rate);
    Nanos seen = tat.load(std::memory_order_relaxed);
    for (;;) {
        if (seen > now + kLongestDebt) { // a clock that jumped back, or a page that was scribbled on
            tat.compare_exchange_weak(seen, now + kLongestDebt, std::memory_order_relaxed);
            continue;
        }
        const Nanos debt = std::min(seen - std::min(seen, now), kLongestDebt) - rate.tau;
        if (debt >= kShortestWait) return {debt, 0};
        if (tat.compare_exchange_weak(seen, advanced(seen, now, amount),
                                      std::memory_order_relaxed)) {
            return {0, amount};
        }
    }
}

Nanos charge(std::atomic<Nanos>& tat, Nanos now, Nanos cost, Rate rate) noexcept {
    const Nanos amount = scaled(cost, rate);
    Nanos seen = tat.load(std::memory_order_relaxed);
    while (!tat.compare_exchange_weak(seen, advanced(seen, now, amount),
                                      std::memory_order_relaxed)) {
    }
    return amount;
}

void settle(std::atomic<Nanos>& tat, Nanos charged_tat, Nanos actual, Rate rate) noexcept {
    const Nanos correction = scaled(actual, rate) - charged_tat;
    if (correction != 0) tat.fetch_add(correction, std::memory_order_relaxed);
}

void forgive(std::atomic<Nanos>& tat, Nanos now, Nanos keep) noexcept {
    Nanos seen = tat.load(std::memory_order_relaxed);
    while (seen > now + keep &&
           !tat.compare_exchange_weak(seen, now + keep, std::memory_order_relaxed)) {
    }
}

Nanos claim_busy(Nanos& counted_until, Nanos start, Nanos end) noexcept {
    const Nanos from = std::max(start, counted_until);
    if (end <= from) return 0;
    counted_until = end;
    return end - from;
}

} // namespace xpu
