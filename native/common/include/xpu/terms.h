// SPDX-License-Identifier: Apache-2.0
//
// What a grant says about starting work on one card, and the decision. The modes of pages.h differ
// in three things only, so this table is all there is to a mode:
//
//   mode         share in force                                    held back while paused   windows
//   none         none: no limit, not measured                      no                       no
//   hard         cores_percent, lowered by effective_q16           yes                      no
//   elastic      effective_q16, else cores_percent, else 100 %     yes                      no
//   priority     effective_q16, else cores_percent, else 100 %     yes                      no
//   fixed-share  as hard; without either its part of the frame     yes                      yes
//
// Pure, like limiter.h: time is a parameter, and what other processes change is handed in.
#ifndef XPU_TERMS_H
#define XPU_TERMS_H

#include "xpu/limiter.h"
#include "xpu/pages.h"

namespace xpu {

// A stretch of every frame that is one slice's alone. Frames are counted from 0 of CLOCK_MONOTONIC, so
// nothing has to be handed over and nothing can be lost when a process dies.
struct Window {
    Nanos frame = 0;
    Nanos start = 0;
    Nanos length = 0;

    // A window of no length says nothing: the share alone holds then.
    bool given() const noexcept { return frame > 0 && length > 0; }

    // How long from `now` until work that takes `cost` may be handed to a card that is busy with
    // ours until `free`: it must begin and end inside one window. Longer than a whole window, it may
    // overrun it; what it took too much is the share's to make up.
    Nanos wait(Nanos now, Nanos free, Nanos cost) const noexcept;
};

struct Terms {
    Rate rate;
    bool paused = false;
    Window window;

    // Whether work is admitted and measured at all.
    bool limited() const noexcept { return rate.limited(); }
};

Terms terms_of(const xpu_card_config& card) noexcept;

// What all processes of a slice share of one card.
struct Account {
    std::atomic<Nanos>& tat;
    std::atomic<std::uint64_t>& stands_at;
    std::atomic<Nanos>& busy_until;
};

// May work of predicted `cost` start now? 0: yes, and it is charged. Otherwise how long to wait before
// asking again, with the terms read anew; nothing is charged.
Nanos start(const Account& account, const Terms& terms, Nanos now, Nanos cost) noexcept;

// What was charged as `predicted` took `actual`; 0 when it never ran.
void settle(const Account& account, const Terms& terms, Nanos predicted, Nanos actual) noexcept;

// The clock started anew: of the old debt only what the credit covers is kept.
void restart(const Account& account, const Terms& terms, Nanos now) noexcept;

} // namespace xpu
#endif
