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

// CLOCK_MONOTONIC starts anew where a process is restored on another machine. Every instant that was
// kept then lies in the future, by more than two threads that run are apart.
constexpr Nanos kClockRestarted = 1'000'000'000;
constexpr bool went_back(Nanos kept, Nanos now) noexcept { return now < kept - kClockRestarted; }

// Whether an interval is over; also where the clock started anew in it.
constexpr bool passed(Nanos since, Nanos now, Nanos interval) noexcept {
    return now - since >= interval || went_back(since, now);
}

// What one card grants for compute.
struct Rate {
    std::uint64_t scale_q32 = 0; // TAT nanoseconds per GPU nanosecond, 32.32; 0 = no limit
    Nanos tau = 0;

    bool limited() const noexcept { return scale_q32 != 0; }
};

// The rate of a share in percent, 16.16. 0 or above 100 % means no limit; trim_q16 0 reads as 1.0 and
// is clamped to [0.3, 1.2], the range in which an NVML correction can be honest.
Rate make_rate(std::uint32_t share_q16, std::uint32_t trim_q16, std::uint64_t tau_ns) noexcept;

// How far `cost` moves the TAT at this rate.
Nanos scaled(Nanos cost, Rate rate) noexcept;

// Admit work of predicted `cost` at `now`: 0, and it is charged; otherwise how long to wait before
// asking again, and nothing is charged.
Nanos admit(std::atomic<Nanos>& tat, Nanos now, Nanos cost, Rate rate) noexcept;

// Replace a charge of `predicted` by the measured cost. In GPU time, so that it is right also when
// the rate changed in between and the debt was restated.
void settle(std::atomic<Nanos>& tat, Nanos predicted, Nanos actual, Rate rate) noexcept;

// The same debt at another rate. A TAT counts time in which nothing may start, not GPU time, so it
// means something else at another share. Up to tau it says which part of the credit is used up, and
// stays: a tenant that runs steadily at its share has used all of it, before a change and after. What
// lies beyond tau is GPU time used too early; how long that takes to make up depends on the share. What
// exceeds a tau that was made smaller is taken for such too.
Nanos restated(Nanos debt, std::uint64_t from_scale_q32, Rate to) noexcept;

// Makes the TAT stand at `rate`. `stands_at` is the scale at which it stands, 0 while nobody charged
// anything: one of all processes that share both restates the debt, whoever sees the change first.
// One that is killed just between leaves the debt as long as it was.
void restate(std::atomic<Nanos>& tat, std::atomic<std::uint64_t>& stands_at, Nanos now,
             Rate rate) noexcept;

// How much of the debt wait to sleep before looking at the grant again.
constexpr Nanos sleep_slice(Nanos wait) noexcept {
    return wait < kLongestSleep ? wait : kLongestSleep;
}

// A page that outlived its writers (a reboot restarts the clock) must not fine the next one: with
// nobody else alive, a TAT further ahead than `keep` is pulled back to it.
void forgive(std::atomic<Nanos>& tat, Nanos now, Nanos keep) noexcept;

// The value of a shared instant, after one further ahead than the longest debt was pulled back to it:
// otherwise nonsense would be waited for anew for ever.
Nanos credible(std::atomic<Nanos>& instant, Nanos now) noexcept;

// What was counted of a card's time. Streams and contexts of a process overlap, and are measured in any
// order; whatever ran at the same time is counted once. Of time longer ago than the stretches that are
// kept nothing is known, so it is counted, rather twice than not at all.
class BusyTime {
  public:
    // The part of [start, end) that was not counted yet; it is counted from now on.
    Nanos claim(Nanos start, Nanos end) noexcept;

  private:
    static constexpr unsigned kKept = 64;
    struct Stretch {
        Nanos start = 0, end = 0;
    };

    Stretch kept_[kKept] = {}; // disjoint, in order
    unsigned count_ = 0;
};

} // namespace xpu
#endif
