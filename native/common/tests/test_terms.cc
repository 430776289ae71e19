// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "xpu/terms.h"

using namespace xpu;

namespace {

constexpr Nanos kMs = 1'000'000;
constexpr Nanos kSecond = 1000 * kMs;
constexpr std::uint32_t kPercent = 1u << 16;

xpu_card_config granted(std::uint32_t mode, std::uint32_t cores, std::uint32_t effective_q16) {
    xpu_card_config card = {};
    card.mode = mode;
    card.cores_percent = cores;
    card.effective_q16 = effective_q16;
    return card;
}

// The share in force, in thousandths of a percent; 0: no limit.
Nanos share_of(const Terms& terms) {
    if (!terms.limited()) return 0;
    return (100'000 * kSecond + scaled(kSecond, terms.rate) / 2) / scaled(kSecond, terms.rate);
}

struct Page {
    std::atomic<Nanos> tat{0};
    std::atomic<std::uint64_t> stands_at{0};
    std::atomic<Nanos> busy_until{0};
    Account account{tat, stands_at, busy_until};
};

} // namespace

CASE(modes_table) {
    const struct {
        const char* name;
        std::uint32_t mode, cores, effective_q16;
        Nanos share;
    } rows[] = {
        {"none is no limit", XPU_MODE_NONE, 20, 10 * kPercent, 0},
        {"hard is the share", XPU_MODE_HARD, 20, 0, 20'000},
        {"hard may be lowered", XPU_MODE_HARD, 20, 12 * kPercent + kPercent / 2, 12'500},
        {"hard is never raised", XPU_MODE_HARD, 20, 60 * kPercent, 20'000},
        {"hard without a share is no limit", XPU_MODE_HARD, 0, 0, 0},
        {"hard without a share may be lowered", XPU_MODE_HARD, 0, 30 * kPercent, 30'000},
        {"elastic is the share", XPU_MODE_ELASTIC, 20, 0, 20'000},
        {"elastic may be raised", XPU_MODE_ELASTIC, 20, 100 * kPercent, 100'000},
        {"elastic may be lowered", XPU_MODE_ELASTIC, 20, 5 * kPercent, 5'000},
        {"elastic without a share is measured", XPU_MODE_ELASTIC, 0, 0, 100'000},
        {"priority may be raised", XPU_MODE_PRIORITY, 20, 90 * kPercent, 90'000},
        {"priority without a share is measured", XPU_MODE_PRIORITY, 0, 0, 100'000},
        {"fixed-share without windows is hard", XPU_MODE_FIXED_SHARE, 20, 60 * kPercent, 20'000},
        {"a mode of the future is no limit", 99, 20, 0, 0},
    };
    for (const auto& row : rows) {
        const Terms terms = terms_of(granted(row.mode, row.cores, row.effective_q16));
        if (share_of(terms) != row.share || terms.paused || terms.window.given())
            check::failed(__FILE__, __LINE__,
                          std::string(row.name) + ": " + check::shown(share_of(terms)));
    }
}

CASE(pause_holds_every_limited_mode) {
    for (const auto mode : {XPU_MODE_NONE, XPU_MODE_HARD, XPU_MODE_ELASTIC, XPU_MODE_FIXED_SHARE,
                            XPU_MODE_PRIORITY}) {
        xpu_card_config card = granted(mode, 20, 0);
        card.flags = XPU_CARD_PAUSED;
        CHECK_EQ(terms_of(card).paused, mode != XPU_MODE_NONE);
    }
}

CASE(paused_work_neither_starts_nor_is_charged) {
    Page page;
    Terms terms = terms_of(granted(XPU_MODE_PRIORITY, 20, 0));
    terms.paused = true;
    CHECK_EQ(start(page.account, terms, kSecond, kMs), kLongestSleep);
    CHECK_EQ(page.tat.load(), 0);
    terms.paused = false;
    CHECK_EQ(start(page.account, terms, kSecond, kMs), 0);
    CHECK_EQ(page.tat.load(), kSecond + 5 * kMs);
}

CASE(windows_belong_to_fixed_share_only) {
    xpu_card_config card = granted(XPU_MODE_HARD, 20, 0);
    card.frame_us = 100'000;
    card.window_start_us = 20'000;
    card.window_us = 30'000;
    CHECK(!terms_of(card).window.given());
    card.mode = XPU_MODE_FIXED_SHARE;
    const Terms terms = terms_of(card);
    CHECK_EQ(terms.window.frame, 100 * kMs);
    CHECK_EQ(terms.window.start, 20 * kMs);
    CHECK_EQ(terms.window.length, 30 * kMs);
    CHECK_EQ(share_of(terms), 20'000);
    card.cores_percent = 0;
    CHECK_EQ(share_of(terms_of(card)), 30'000); // its part of the frame
    card.window_us = 0;
    CHECK(!terms_of(card).window.given());
}

CASE(window_table) {
    const Window window = {100 * kMs, 20 * kMs, 30 * kMs};
    const struct {
        const char* name;
        Nanos now, free, cost, wait;
    } rows[] = {
        {"before it: until it opens", 5 * kMs, 0, kMs, 15 * kMs},
        {"at its first instant", 20 * kMs, 0, kMs, 0},
        {"in it", 30 * kMs, 0, kMs, 0},
        {"fits to its last instant", 45 * kMs, 0, 5 * kMs, 0},
        {"would end after it: the next one", 45 * kMs + 1, 0, 5 * kMs, 75 * kMs - 1},
        {"work ahead of it counts", 30 * kMs, 45 * kMs, 6 * kMs, 90 * kMs},
        {"work ahead of it, but it fits", 30 * kMs, 45 * kMs, 5 * kMs, 0},
        {"at its end: the next one", 50 * kMs, 0, 0, 70 * kMs},
        {"after it: the next one", 60 * kMs, 0, kMs, 60 * kMs},
        {"a much later frame", 1230 * kMs, 0, kMs, 0},
        {"longer than the window: may overrun it", 20 * kMs, 0, 300 * kMs, 0},
        {"longer than the window, outside of it", 60 * kMs, 0, 300 * kMs, 60 * kMs},
        {"behind one that overran: in the next window that is free", 60 * kMs, 310 * kMs, kMs,
         260 * kMs},
        {"behind one that overran into a window", 60 * kMs, 330 * kMs, kMs, 260 * kMs},
    };
    for (const auto& row : rows) {
        const Nanos wait = window.wait(row.now, row.free, row.cost);
        if (wait != row.wait)
            check::failed(__FILE__, __LINE__, std::string(row.name) + ": " + check::shown(wait));
    }
}

// Several slices with windows beside each other, several processes in each, on one card: what fits a
// window never runs outside its own, so neighbours never meet.
CASE(property_windows_never_meet) {
    std::mt19937_64 random(20261124);
    for (int history = 0; history < check::rounds(60); ++history) {
        const Nanos frame = 20 * kMs + static_cast<Nanos>(random() % (80 * kMs));
        const unsigned slices = 2 + static_cast<unsigned>(random() % 4);
        Page pages[6];
        Terms terms[6];
        for (unsigned i = 0; i < slices; ++i) {
            terms[i].rate = make_rate(100 * kPercent, 0, 500 * kMs);
            terms[i].window = {frame, frame / slices * i, frame / slices};
        }
        Nanos card_free = 0;
        Nanos now = static_cast<Nanos>(random() % kSecond);
        for (int piece = 0; piece < 2000; ++piece) {
            now += static_cast<Nanos>(random() % (frame / 20));
            const unsigned i = static_cast<unsigned>(random()) % slices;
            const Nanos length = 1 + static_cast<Nanos>(random() % (frame / slices));
            if (start(pages[i].account, terms[i], now, length) != 0) continue;
            const Nanos begin = std::max(now, card_free), end = begin + length;
            CHECK_EQ(pages[i].busy_until.load(), end); // nobody else was on the card
            CHECK(begin % frame >= terms[i].window.start);
            CHECK(begin % frame + length <= terms[i].window.start + terms[i].window.length);
            card_free = end;
        }
    }
}

// Work longer than its window overruns it, and gives its share back by the windows it skips.
CASE(simulation_long_work_keeps_the_share_of_its_windows) {
    xpu_card_config card = granted(XPU_MODE_FIXED_SHARE, 0, 0);
    card.tau_ns = 20'000'000;
    card.frame_us = 100'000;
    card.window_start_us = 30'000;
    card.window_us = 25'000;
    const Terms terms = terms_of(card);
    Page page;
    Nanos now = 0, busy = 0;
    while (now < 120 * kSecond) {
        if (const Nanos wait = start(page.account, terms, now, 300 * kMs)) {
            now += std::min(wait, kLongestSleep);
            continue;
        }
        now += 300 * kMs;
        busy += 300 * kMs;
    }
    CHECK_IN(100.0 * static_cast<double>(busy) / static_cast<double>(now), 22.0, 25.3);
}

// However small the credit is: what fits into the window may be used up.
CASE(simulation_a_window_may_be_used_up) {
    xpu_card_config card = granted(XPU_MODE_FIXED_SHARE, 0, 0);
    card.frame_us = 400'000;
    card.window_start_us = 100'000;
    card.window_us = 150'000;
    const Terms terms = terms_of(card);
    Page page;
    Nanos now = 0, busy = 0;
    while (now < 60 * kSecond) {
        if (const Nanos wait = start(page.account, terms, now, 2 * kMs)) {
            now += std::min(wait, kLongestSleep);
            continue;
        }
        busy += 2 * kMs;
        now += 2 * kMs;
    }
    CHECK_IN(100.0 * static_cast<double>(busy) / static_cast<double>(now), 37.0, 37.6);
}

CASE(an_absurd_end_of_work_is_waited_off) {
    Terms terms;
    terms.rate = make_rate(100 * kPercent, 0, 0);
    terms.window = {100 * kMs, 0, 50 * kMs};
    Page page;
    page.busy_until = INT64_MAX;
    Nanos now = 0;
    while (const Nanos wait = start(page.account, terms, now, kMs)) {
        CHECK(now <= kLongestDebt + kSecond);
        now += std::min(wait, kSecond);
    }
    page.tat = 0;
    page.busy_until = INT64_MIN;
    CHECK_EQ(start(page.account, terms, now - now % (100 * kMs), kMs), 0);
}

CASE(a_clock_that_started_anew_leaves_the_credit_s_debt) {
    Terms terms = terms_of(granted(XPU_MODE_HARD, 50, 0));
    terms.rate.tau = 20 * kMs;
    Page page;
    page.tat = 3600 * kSecond;
    page.busy_until = 3600 * kSecond;
    restart(page.account, terms, 5 * kSecond);
    CHECK_EQ(page.tat.load(), 5 * kSecond + 20 * kMs);
    CHECK_EQ(page.busy_until.load(), 5 * kSecond);
    CHECK_EQ(start(page.account, terms, 5 * kSecond, kMs), 0);
}

// A refusal by the share leaves no place taken in the window, a failed launch none in either.
CASE(what_did_not_run_holds_no_place) {
    Terms terms;
    terms.rate = make_rate(10 * kPercent, 0, 0);
    terms.window = {100 * kMs, 0, 50 * kMs};
    Page page;
    page.tat = kSecond;
    CHECK_EQ(start(page.account, terms, kMs, kMs), kSecond - kMs);
    CHECK_EQ(page.busy_until.load(), kMs);
    page.tat = 0;
    CHECK_EQ(start(page.account, terms, kMs, kMs), 0);
    settle(page.account, terms, kMs, 0);
    CHECK_EQ(page.busy_until.load(), kMs);
    CHECK_EQ(page.tat.load(), kMs);
}

int main(int argc, char** argv) { return check::run(argc, argv); }
