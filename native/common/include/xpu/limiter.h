// SPDX-License-Identifier: Apache-2.0
//
// The compute limiter: GPU nanoseconds metered by GCRA on one shared integer, the theoretical
// arrival time (TAT). Every piece of work moves the TAT ahead by cost x 100 / P; work may start
// while the TAT is at most tau ahead of now. One integer means: nothing to refill, nothing to
// elect, nothing to repair when a process dies between any two instructions.
//
// Pure: time is a parameter, no clock, environment, log or allocation. The TAT lives in memory a
// tenant can write, so every value read from it is treated as possibly absurd.
#ifndef XPU_LIMITER_H
#define XPU_LIMITER_H

#include <atomic>
#include <cstdint>

namespace xpu {

using Nanos = std::int64_t;

// Waits shorter than this are not slept: a timer overshoots by about half of it, and the debt is
// carried by the TAT anyway, so accuracy does not suffer.
constexpr Nanos kShortestWait = 200'000;
// Longest single sleep, after which the grant is read again (a resize must not wait for a debt).
constexpr Nanos kLongestSleep = 10'000'000;
// One piece of work can put the TAT at most this far ahead: ten minutes. Only a nonsensical cost
// or page (or a clock that restarted with the machine) reaches it.
constexpr Nanos kLongestDebt = 600'000'000'000;

// What one card grants for compute.
struct Rate {
    std::uint64_t scale_q32 = 0; // TAT nanoseconds per GPU nanosecond, 32.32; 0 = no limit
    Nanos tau = 0;

    bool limited() const noexcept { return scale_q32 != 0; }
};

// The rate of a share. percent 0 or above 100 means no limit; trim_q16 0 reads as 1.0 and is
// clamped to [0.3, 1.2], the range in which an NVML correction can be honest.
Rate make_rate(std::uint32_t percent, std::uint32_t trim_q16, std::uint64_t tau_ns) noexcept;

// How far `cost` moves the TAT at this rate.
Nanos scaled(Nanos cost, Rate rate) noexcept;

// The answer to "may this start now?".
struct Grant {
    Nanos wait;        // 0: admitted and charged; otherwise nothing was charged, ask again then
    Nanos charged_tat; // what was added to the TAT; hand it to settle()
};

// Admit work of predicted `cost` at `now`, or say how long to wait.
Grant admit(std::atomic<Nanos>& tat, Nanos now, Nanos cost, Rate rate) noexcept;

// Charge without asking: work that cannot wait.
Nanos charge(std::atomic<Nanos>& tat, Nanos now, Nanos cost, Rate rate) noexcept;

// Replace an earlier charge by the measured cost.
void settle(std::atomic<Nanos>& tat, Nanos charged_tat, Nanos actual, Rate rate) noexcept;

// How much of the debt wait to sleep before looking at the grant again.
constexpr Nanos sleep_slice(Nanos wait) noexcept {
    return wait < kLongestSleep ? wait : kLongestSleep;
}

// A page that outlived its writers (a reboot restarts the clock) must not fine the next one: with
// nobody else alive, a TAT further ahead than `keep` is pulled back to it.
void forgive(std::atomic<Nanos>& tat, Nanos now, Nanos keep) noexcept;

// The part of the busy interval [start, end] that lies after everything counted so far, and
// remembers that it is counted now. Concurrent streams of a process are so charged once.
Nanos claim_busy(Nanos& counted_until, Nanos start, Nanos end) noexcept;

} // namespace xpu
#endif
