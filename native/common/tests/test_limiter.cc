// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "xpu/limiter.h"

using namespace xpu;

namespace {

constexpr Nanos kMs = 1'000'000;
constexpr Nanos kSecond = 1000 * kMs;

Rate share(unsigned percent, Nanos tau = 0) {
    return make_rate(percent << 16, 0, static_cast<std::uint64_t>(tau));
}

struct Row {
    const char* name;
    Nanos tat, now, cost;
    unsigned percent;
    Nanos tau;
    Nanos wait, tat_after;
};

// A card under one tenant whose predictions are off by a factor, driven by the limiter alone.
struct Simulation {
    std::atomic<Nanos> tat{0};
    Nanos now = 0;
    Nanos busy = 0;

    void work(Nanos predicted, Nanos actual, Rate rate) {
        for (;;) {
            const Nanos wait = admit(tat, now, predicted, rate);
            if (wait == 0) {
                now += actual; // runs at once, alone
                busy += actual;
                settle(tat, predicted, actual, rate);
                return;
            }
            now += sleep_slice(wait);
        }
    }
};

} // namespace

CASE(admit_table) {
    const Row rows[] = {
        {"idle card starts at once", 0, 100, 10 * kMs, 20, 0, 0, 100 + 50 * kMs},
        {"unused time is not saved up", 5, 9 * kSecond, kMs, 50, 0, 0, 9 * kSecond + 2 * kMs},
        {"debt beyond tau waits for it", 30 * kMs, 0, kMs, 50, 10 * kMs, 20 * kMs, 30 * kMs},
        {"debt within tau does not wait", 10 * kMs, 0, kMs, 50, 10 * kMs, 0, 12 * kMs},
        {"a wait too short to sleep is carried", 10 * kMs + 199'999, 0, kMs, 50, 10 * kMs, 0,
         12 * kMs + 199'999},
        {"the shortest wait is waited", 10 * kMs + 200'000, 0, kMs, 50, 10 * kMs, 200'000,
         10 * kMs + 200'000},
        {"100 percent is charged too", 0, 0, kMs, 100, 0, 0, kMs},
        {"free work moves nothing", 7 * kMs, 0, 0, 20, 10 * kMs, 0, 7 * kMs},
        {"negative cost is no credit", 7 * kMs, 0, -kMs, 20, 10 * kMs, 0, 7 * kMs},
        {"an absurd TAT is pulled back to ten minutes", INT64_MAX, 0, kMs, 20, 0, kLongestDebt,
         kLongestDebt},
        {"a TAT far in the past is now", INT64_MIN, 5, kMs, 50, 0, 0, 5 + 2 * kMs},
    };
    for (const Row& row : rows) {
        std::atomic<Nanos> tat{row.tat};
        const Nanos wait = admit(tat, row.now, row.cost, share(row.percent, row.tau));
        if (wait != row.wait || tat.load() != row.tat_after) {
            check::failed(__FILE__, __LINE__,
                          std::string(row.name) + ": wait " + check::shown(wait) + ", tat " +
                              check::shown(tat.load()));
        }
    }
}

CASE(no_limit_touches_nothing) {
    std::atomic<Nanos> tat{42};
    CHECK_EQ(admit(tat, 0, kSecond, Rate{}), 0);
    CHECK_EQ(tat.load(), 42);
    CHECK(!share(0).limited());
    CHECK(!share(101).limited());
}

CASE(rates_are_exact_and_trims_clamped) {
    CHECK_EQ(scaled(kSecond, share(20)), 5 * kSecond);
    CHECK_EQ(scaled(kSecond, share(100)), kSecond);
    CHECK_IN(scaled(kSecond, share(30)), 3'333'333'332, 3'333'333'334);
    const Nanos least = scaled(kSecond, make_rate(100u << 16, 1, 0));
    CHECK_IN(least, 299'900'000, 300'000'000);
    CHECK_IN(scaled(kSecond, make_rate(100u << 16, 0xFFFFFFFF, 0)), 1'199'900'000, 1'200'000'000);
    CHECK_EQ(scaled(kSecond, make_rate(12u << 16 | 0x8000, 0, 0)), 8 * kSecond); // 12.5 %
    CHECK_EQ(scaled(INT64_MAX, share(1)), kLongestDebt);
    CHECK_EQ(scaled(INT64_MAX, make_rate(1, 0, 0)), kLongestDebt); // the smallest share there is
}

CASE(settle_replaces_the_prediction) {
    const Rate rate = share(20);
    std::atomic<Nanos> tat{0};
    CHECK_EQ(admit(tat, 0, 10 * kMs, rate), 0);
    settle(tat, 10 * kMs, 2 * kMs, rate);
    CHECK_EQ(tat.load(), 10 * kMs);
    settle(tat, 0, 3 * kMs, rate);
    CHECK_EQ(tat.load(), 25 * kMs);
}

CASE(refund_restores) {
    const Rate rate = share(35);
    std::atomic<Nanos> tat{1000};
    CHECK_EQ(admit(tat, 500, 7 * kMs, rate), 0);
    settle(tat, 7 * kMs, 0, rate);
    CHECK_EQ(tat.load(), 1000);
}

CASE(an_absurd_tat_is_waited_off_in_ten_minutes) {
    std::atomic<Nanos> tat{INT64_MAX};
    Nanos now = 0;
    while (const Nanos wait = admit(tat, now, kMs, share(20))) {
        CHECK(now <= kLongestDebt);
        now += std::min(wait, 10 * kSecond);
    }
}

CASE(restated_table) {
    const struct {
        const char* name;
        Nanos debt;
        unsigned from, to;
        Nanos tau, wanted;
    } rows[] = {
        {"no debt stays none", 0, 10, 60, 500 * kMs, 0},
        {"credit used up stays used up when the share rises", 500 * kMs, 10, 60, 500 * kMs, 500 * kMs},
        {"and when it falls", 500 * kMs, 60, 10, 500 * kMs, 500 * kMs},
        {"credit left is the same part of the credit", 200 * kMs, 60, 10, 500 * kMs, 200 * kMs},
        {"what lies beyond is paid sooner at six times the share", 6500 * kMs, 10, 60, 500 * kMs,
         1500 * kMs},
        {"and later at a sixth of it", 1500 * kMs, 60, 10, 500 * kMs, 6500 * kMs},
        {"without credit all of it is", 3 * kSecond, 10, 100, 0, 300 * kMs},
        {"never more than ten minutes", kLongestDebt, 100, 1, 0, kLongestDebt},
    };
    for (const auto& row : rows) {
        const Rate to = share(row.to, row.tau);
        const Nanos found = restated(row.debt, share(row.from).scale_q32, to);
        if (found < row.wanted - 10 || found > row.wanted + 10)
            check::failed(__FILE__, __LINE__, std::string(row.name) + ": " + check::shown(found));
    }
}

CASE(one_of_many_restates) {
    const Rate before = share(10), after = share(50);
    std::atomic<Nanos> tat{kSecond};
    std::atomic<std::uint64_t> stands_at{0};
    restate(tat, stands_at, 0, before); // a fresh page, or one of an older library: taken as it is
    CHECK_EQ(tat.load(), kSecond);
    for (int process = 0; process < 3; ++process) restate(tat, stands_at, 0, after);
    CHECK_IN(tat.load(), 200 * kMs - 10, 200 * kMs + 10);
    CHECK_EQ(stands_at.load(), after.scale_q32);
    restate(tat, stands_at, 0, Rate{}); // no limit says nothing about a debt
    CHECK_EQ(stands_at.load(), after.scale_q32);
}

// Whatever the share does, the GPU time used too early is neither forgotten nor invented, and a
// steady tenant is not stopped by a change of its share.
CASE(property_restating_keeps_gpu_time) {
    std::mt19937_64 random(20261124);
    for (int history = 0; history < check::rounds(2000); ++history) {
        const Nanos tau = static_cast<Nanos>(random() % (500 * kMs));
        const auto any = [&] { return share(1 + static_cast<unsigned>(random() % 100), tau); };
        Rate rate = any();
        const Nanos overdraft = static_cast<Nanos>(random() % kSecond); // in GPU time
        Nanos debt = std::min(tau + scaled(overdraft, rate), kLongestDebt);
        for (int change = 0; change < 10; ++change) {
            const Rate next = any();
            const Nanos found = restated(debt, rate.scale_q32, next);
            if (next.scale_q32 <= rate.scale_q32) CHECK(found <= debt); // a rise never lengthens a wait
            CHECK(found >= tau);
            CHECK_IN(found, tau + scaled(overdraft, next) - 2000, tau + scaled(overdraft, next) + 2000);
            CHECK_EQ(restated(tau, rate.scale_q32, next), tau);
            debt = found;
            rate = next;
        }
    }
}

// A tenant whose share changes every few hundred milliseconds gets the sum of what it was granted.
CASE(simulation_changing_shares_add_up) {
    std::mt19937_64 random(11);
    for (const Nanos kernel : {kMs, 20 * kMs, 300 * kMs}) {
        Simulation card;
        std::atomic<std::uint64_t> stands_at{0};
        double granted = 0;
        const Nanos tau = 20 * kMs;
        Rate rate = share(50, tau);
        Nanos change = 0, since = 0;
        double percent = 50;
        while (card.now < 600 * kSecond) {
            if (card.now >= change) {
                granted += percent / 100 * static_cast<double>(card.now - since);
                since = card.now;
                percent = static_cast<double>(10 + random() % 80);
                rate = share(static_cast<unsigned>(percent), tau);
                change = card.now + static_cast<Nanos>(100 * kMs + random() % (400 * kMs));
            }
            restate(card.tat, stands_at, card.now, rate);
            if (const Nanos wait = admit(card.tat, card.now, kernel, rate)) {
                card.now += std::min(wait, kLongestSleep);
                continue;
            }
            card.now += kernel;
            card.busy += kernel;
        }
        granted += percent / 100 * static_cast<double>(card.now - since);
        CHECK_IN(static_cast<double>(card.busy) / granted, 0.99, 1.01);
    }
}

CASE(an_interval_is_over_when_the_clock_started_anew) {
    CHECK(!passed(10 * kMs, 10 * kMs + 199'999, 200'000));
    CHECK(passed(10 * kMs, 10 * kMs + 200'000, 200'000));
    CHECK(!passed(10 * kMs, 9 * kMs, 200'000)); // another thread read its clock earlier
    CHECK(passed(3600 * kSecond, 5 * kSecond, 200'000));
}

CASE(forgive_only_shortens_long_debts) {
    std::atomic<Nanos> tat{100 * kSecond};
    forgive(tat, kSecond, 10 * kSecond);
    CHECK_EQ(tat.load(), 11 * kSecond);
    forgive(tat, kSecond, 20 * kSecond);
    CHECK_EQ(tat.load(), 11 * kSecond);
}

CASE(concurrent_streams_are_counted_once) {
    BusyTime counted;
    CHECK_EQ(counted.claim(0, 10), 10);
    CHECK_EQ(counted.claim(5, 12), 2);
    CHECK_EQ(counted.claim(3, 9), 0);
    CHECK_EQ(counted.claim(20, 25), 5);
    CHECK_EQ(counted.claim(13, 15), 2); // another context's, read later than it ran
    CHECK_EQ(counted.claim(0, 30), 30 - 12 - 2 - 5);
    CHECK_EQ(counted.claim(30, 30), 0);
    CHECK_EQ(counted.claim(31, 30), 0);
}

CASE(time_too_long_ago_is_counted) {
    BusyTime counted;
    for (Nanos at = 0; at < 200 * 10; at += 10) CHECK_EQ(counted.claim(at, at + 5), 5);
    CHECK_EQ(counted.claim(0, 5), 5);
    CHECK_EQ(counted.claim(1990, 1995), 0);
}

// Against a map of every nanosecond, as long as no more stretches are known than are kept.
CASE(property_busy_time_is_the_union) {
    std::mt19937_64 random(5);
    for (int history = 0; history < check::rounds(200); ++history) {
        BusyTime counted;
        std::vector<bool> busy(600);
        for (int piece = 0; piece < 80; ++piece) {
            // At most 60 stretches: they begin at multiples of ten.
            const std::size_t start = random() % 60 * 10, end = start + random() % 25;
            Nanos fresh = 0;
            for (std::size_t at = start; at < std::min(end, busy.size()); ++at) {
                fresh += busy[at] ? 0 : 1;
                busy[at] = true;
            }
            CHECK_EQ(counted.claim(static_cast<Nanos>(start),
                                   static_cast<Nanos>(std::min(end, busy.size()))),
                     fresh);
        }
    }
}

// Over any history of well-predicted work the card is busy at most P % of the time plus what tau
// and one piece of work allow.
CASE(property_never_above_the_share) {
    std::mt19937_64 random(20261121);
    for (int history = 0; history < 300; ++history) {
        const unsigned percent = 1 + static_cast<unsigned>(random() % 100);
        const Nanos tau = static_cast<Nanos>(random() % (500 * kMs));
        const Rate rate = share(percent, tau);
        Simulation card;
        Nanos longest = 0;
        for (int piece = 0; piece < 400; ++piece) {
            const Nanos cost = 1 + static_cast<Nanos>(random() % (20 * kMs));
            longest = std::max(longest, cost);
            if (random() % 4 == 0) card.now += static_cast<Nanos>(random() % (30 * kMs));
            card.work(cost, cost, rate);
            const Nanos allowed = (card.now + tau + kShortestWait) * percent / 100 + longest + 400;
            CHECK_IN(card.busy, Nanos{0}, allowed);
        }
    }
}

// However wrong predictions are, measurement brings the mean to the share.
CASE(simulation_mispredicted_work_keeps_the_share) {
    for (const double factor : {0.02, 0.5, 1.0, 3.0, 20.0}) {
        Simulation card;
        const Rate rate = share(20, 50 * kMs);
        while (card.now < 60 * kSecond) {
            const Nanos actual = 5 * kMs;
            card.work(static_cast<Nanos>(static_cast<double>(actual) * factor), actual, rate);
        }
        const double percent = 100.0 * static_cast<double>(card.busy) / static_cast<double>(card.now);
        CHECK_IN(percent, 19.8, 20.3);
    }
}

// Several processes on one TAT share one rate; one that dies after its charge leaves a bounded debt
// and nothing else.
CASE(simulation_processes_share_and_die) {
    std::mt19937_64 random(7);
    std::atomic<Nanos> tat{0};
    const Rate rate = share(30, 20 * kMs);
    Nanos now = 0, busy = 0, lost = 0;
    while (now < 60 * kSecond) {
        const Nanos cost = 1 + static_cast<Nanos>(random() % (4 * kMs));
        const Nanos wait = admit(tat, now, cost, rate);
        if (wait != 0) {
            now += sleep_slice(wait);
            continue;
        }
        if (random() % 100 == 0) { // killed between the charge and the launch
            lost += cost;
            continue;
        }
        now += cost;
        busy += cost;
    }
    const double percent = 100.0 * static_cast<double>(busy + lost) / static_cast<double>(now);
    CHECK_IN(percent, 29.9, 30.1);
}

int main(int argc, char** argv) { return check::run(argc, argv); }
