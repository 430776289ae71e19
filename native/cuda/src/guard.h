// SPDX-License-Identifier: Apache-2.0
//
// What this process knows of its slice: the grant as last read, the ledger, and which of the
// process' devices is which card. One object, initialised at the first hooked call, never torn down.
#ifndef XPU_CUDA_GUARD_H
#define XPU_CUDA_GUARD_H

#include <atomic>

#include "lock.h"
#include "real.h"
#include "xpu/place.h"
#include "xpu/slice.h"
#include "xpu/terms.h"

namespace xpu {

constexpr int kNoCard = -1;
constexpr int kMaxDevices = 64;

// One card's grant. Each field is read on its own; a launch between two stores of a resize uses a
// mixture once, which the next settlement evens out.
struct Grants {
    std::atomic<std::uint64_t> scale_q32{0};
    std::atomic<Nanos> tau{0};
    std::atomic<std::uint64_t> memory_quota{0}; // what the application is told it has
    std::atomic<std::uint64_t> memory_limit{0}; // what may be charged: the quota less overhead_bytes
    std::atomic<std::uint64_t> context_bytes{0};
    std::atomic<std::uint32_t> flags{0}; // XPU_CARD_…
    std::atomic<bool> present{false};
    std::atomic<bool> paused{false};
    std::atomic<Nanos> frame{0};
    std::atomic<Nanos> window_start{0};
    std::atomic<Nanos> window_length{0};

    bool limited() const noexcept { return scale_q32.load(std::memory_order_relaxed) != 0; }
    Terms terms() const noexcept {
        return {{scale_q32.load(std::memory_order_relaxed), tau.load(std::memory_order_relaxed)},
                paused.load(std::memory_order_relaxed),
                {frame.load(std::memory_order_relaxed), window_start.load(std::memory_order_relaxed),
                 window_length.load(std::memory_order_relaxed)}};
    }
    void set_terms(const Terms& terms) noexcept;
};

class Guard {
  public:
    // True when this process has a slice. The first call resolves the driver and maps the pages.
    bool active() noexcept {
        if (state_.load(std::memory_order_acquire) < State::kIdle) initialise();
        return state_.load(std::memory_order_relaxed) == State::kActive;
    }

    // Take over a changed grant; a load and a compare when nothing changed.
    void refresh() noexcept {
        const std::uint32_t epoch = shared(page_->epoch).load(std::memory_order_relaxed);
        if (epoch != seen_epoch_.load(std::memory_order_relaxed)) reread();
    }

    int card_of(CUdevice device) noexcept; // kNoCard: not part of the slice, so not limited
    int current_card() noexcept;           // of the calling thread's current context
    Grants& grants(int card) noexcept { return grants_[card]; }
    Ledger& ledger() noexcept { return ledger_; }
    // The policy deny-new-memory is in force: quotas are none that could be shown.
    bool denies_memory() const noexcept {
        return deny_.load(std::memory_order_relaxed) != Deny::kNothing;
    }
    void join() noexcept {
        if (!joined_.load(std::memory_order_acquire)) join_now();
    }

    // Called in the child of a fork: nothing of the parent's accounting is ours.
    void after_fork() noexcept;

  private:
    enum class State { kFresh, kBusy, kIdle, kActive };
    enum class Deny { kNothing, kCards, kEveryDevice };

    enum class Found { kGrant, kNone, kNotNow };

    void initialise() noexcept;
    bool take_turn() noexcept;
    Found map_pages() noexcept;
    Found without_grant(const char* file, PageState state, OnError policy) noexcept;
    void reread() noexcept;
    void apply(const Config& config) noexcept;
    int find_card(CUdevice device) noexcept;
    void join_now() noexcept;

    std::atomic<State> state_{State::kFresh};
    std::atomic<int> initialiser_{0}; // pid of the process in which somebody initialises
    std::atomic<Deny> deny_{Deny::kNothing};
    const xpu_config_page* page_ = nullptr;
    xpu_config_page made_page_ = {}; // of upstream's text files, where there is no config.page
    std::atomic<std::uint32_t> seen_epoch_{0};
    SpinLock rereading_;
    SpinLock joining_;
    std::atomic<bool> joined_{false};
    Config config_; // guarded by rereading_
    Grants grants_[XPU_MAX_CARDS];
    std::atomic<int> card_of_device_[kMaxDevices] = {}; // index + 2; 0: not looked up
    Ledger ledger_;
};

extern Guard guard;

Nanos monotonic_now() noexcept;

// A thread that stood still holds an old `now`; only a clock that still says so has started anew.
inline bool clock_restarted(Nanos kept, Nanos now) noexcept {
    return went_back(kept, now) && went_back(kept, monotonic_now());
}

} // namespace xpu
#endif
