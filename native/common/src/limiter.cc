// SPDX-License-Identifier: Apache-2.0
#include "xpu/limiter.h"

#include <algorithm>

namespace xpu {
namespace {

constexpr std::uint64_t kOneQ16 = 1u << 16;
constexpr std::uint64_t kWholeCardQ16 = 100u << 16;
constexpr std::uint64_t kTrimFloor = kOneQ16 * 3 / 10;
constexpr std::uint64_t kTrimCeiling = kOneQ16 * 12 / 10;
constexpr Nanos kLongestTau = 10'000'000'000;

// value x numerator / denominator, at most the longest debt.
Nanos times(Nanos value, std::uint64_t numerator, std::uint64_t denominator) noexcept {
    const auto wide = static_cast<unsigned __int128>(value) * numerator / denominator;
    return static_cast<Nanos>(std::min<unsigned __int128>(wide, kLongestDebt));
}

// How far a TAT is ahead of now; one too far in the future is nonsense, whoever wrote it.
Nanos debt(Nanos tat, Nanos now) noexcept {
    return std::min(tat - std::min(tat, now), kLongestDebt);
}

// Adds `amount`, starting at `now` when the TAT lies in the past: unused time is not saved up
// beyond tau. A TAT too far in the future is pulled back, whoever wrote it.
Nanos advanced(Nanos tat, Nanos now, Nanos amount) noexcept {
    return std::clamp(tat, now, now + kLongestDebt) + amount;
}

} // namespace

Rate make_rate(std::uint32_t share_q16, std::uint32_t trim_q16, std::uint64_t tau_ns) noexcept {
    if (share_q16 == 0 || share_q16 > kWholeCardQ16) return {};
    const std::uint64_t trim =
        trim_q16 == 0 ? kOneQ16
                      : std::clamp<std::uint64_t>(trim_q16, kTrimFloor, kTrimCeiling);
    return {(trim << 16) * kWholeCardQ16 / share_q16,
            static_cast<Nanos>(std::min<std::uint64_t>(tau_ns, kLongestTau))};
}

Nanos scaled(Nanos cost, Rate rate) noexcept {
    return cost <= 0 ? 0 : times(cost, rate.scale_q32, 1ull << 32);
}

Nanos admit(std::atomic<Nanos>& tat, Nanos now, Nanos cost, Rate rate) noexcept {
    if (!rate.limited()) return 0;
    const Nanos amount = scaled(cost, rate);
    Nanos seen = credible(tat, now);
    for (;;) {
        const Nanos over = debt(seen, now) - rate.tau;
        if (over >= kShortestWait) return over;
        if (tat.compare_exchange_weak(seen, advanced(seen, now, amount),
                                      std::memory_order_relaxed)) {
            return 0;
        }
    }
}

void settle(std::atomic<Nanos>& tat, Nanos predicted, Nanos actual, Rate rate) noexcept {
    const Nanos correction = scaled(actual, rate) - scaled(predicted, rate);
    if (correction != 0) tat.fetch_add(correction, std::memory_order_relaxed);
}

Nanos restated(Nanos debt, std::uint64_t from_scale_q32, Rate to) noexcept {
    if (debt <= to.tau) return debt;
    return std::min(to.tau + times(debt - to.tau, to.scale_q32, from_scale_q32), kLongestDebt);
}

void restate(std::atomic<Nanos>& tat, std::atomic<std::uint64_t>& stands_at, Nanos now,
             Rate rate) noexcept {
    if (!rate.limited()) return;
    std::uint64_t from = stands_at.load(std::memory_order_relaxed);
    if (from == rate.scale_q32 ||
        !stands_at.compare_exchange_strong(from, rate.scale_q32, std::memory_order_relaxed))
        return;
    if (from == 0) return;
    Nanos seen = tat.load(std::memory_order_relaxed);
    while (seen > now && !tat.compare_exchange_weak(
                             seen, now + restated(debt(seen, now), from, rate),
                             std::memory_order_relaxed)) {
    }
}

Nanos credible(std::atomic<Nanos>& instant, Nanos now) noexcept {
    forgive(instant, now, kLongestDebt);
    return instant.load(std::memory_order_relaxed);
}

void forgive(std::atomic<Nanos>& tat, Nanos now, Nanos keep) noexcept {
    Nanos seen = tat.load(std::memory_order_relaxed);
    while (seen > now + keep &&
           !tat.compare_exchange_weak(seen, now + keep, std::memory_order_relaxed)) {
    }
}

Nanos BusyTime::claim(Nanos start, Nanos end) noexcept {
    if (end <= start) return 0;
    // Those that touch the new stretch become one with it: [first, last) of those that are kept.
    unsigned last = count_;
    while (last > 0 && kept_[last - 1].start > end) --last;
    unsigned first = last;
    Nanos fresh = end - start;
    Stretch whole = {start, end};
    while (first > 0 && kept_[first - 1].end >= start) {
        const Stretch& known = kept_[--first];
        fresh -= std::min(known.end, end) - std::max(known.start, start);
        whole = {std::min(whole.start, known.start), std::max(whole.end, known.end)};
    }
    if (first == last && count_ == kKept) { // one more: the oldest is forgotten
        if (first == 0) return fresh;
        std::copy(kept_ + 1, kept_ + first, kept_);
        kept_[first - 1] = whole;
        return fresh;
    }
    if (first == last) {
        std::copy_backward(kept_ + last, kept_ + count_, kept_ + count_ + 1);
        ++count_;
    } else {
        std::copy(kept_ + last, kept_ + count_, kept_ + first + 1);
        count_ -= last - first - 1;
    }
    kept_[first] = whole;
    return fresh;
}

} // namespace xpu
