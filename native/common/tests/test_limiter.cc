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
    return make_rate(percent, 0, static_cast<std::uint64_t>(tau));
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
            const Grant grant = admit(tat, now, predicted, rate);
            if (grant.wait == 0) {
                now += actual; // runs at once, alone
                busy += actual;
                settle(tat, grant.charged_tat, actual, rate);
                return;
            }
            now += sleep_slice(grant.wait);
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
        {"an absurd TAT costs ten minutes, not for ever", INT64_MAX, 0, kMs, 20, 0, kLongestDebt,
         kLongestDebt},
        {"a TAT far in the past is now", INT64_MIN, 5, kMs, 50, 0, 0, 5 + 2 * kMs},
    };
    for (const Row& row : rows) {
        std::atomic<Nanos> tat{row.tat};
        const Grant grant = admit(tat, row.now, row.cost, share(row.percent, row.tau));
        if (grant.wait != row.wait || tat.load() != row.tat_after) {
            check::failed(__FILE__, __LINE__,
                          std::string(row.name) + ": wait " + check::shown(grant.wait) + ", tat " +
                              check::shown(tat.load()));
        }
    }
}

CASE(no_limit_touches_nothing) {
    std::atomic<Nanos> tat{42};
    CHECK_EQ(admit(tat, 0, kSecond, Rate{}).wait, 0);
    CHECK_EQ(tat.load(), 42);
    CHECK(!share(0).limited());
    CHECK(!share(101).limited());
}

CASE(rates_are_exact_and_trims_clamped) {
    CHECK_EQ(scaled(kSecond, share(20)), 5 * kSecond);
    CHECK_EQ(scaled(kSecond, share(100)), kSecond);
    CHECK_IN(scaled(kSecond, share(30)), 3'333'333'332, 3'333'333'334);
    const Nanos least = scaled(kSecond, make_rate(100, 1, 0));
    CHECK_IN(least, 299'900'000, 300'000'000);
    CHECK_IN(scaled(kSecond, make_rate(100, 0xFFFFFFFF, 0)), 1'199'900'000, 1'200'000'000);
    CHECK_EQ(scaled(INT64_MAX, share(1)), kLongestDebt);
}

CASE(settle_replaces_the_prediction) {
    const Rate rate = share(20);
    std::atomic<Nanos> tat{0};
    const Grant grant = admit(tat, 0, 10 * kMs, rate);
    settle(tat, grant.charged_tat, 2 * kMs, rate);
    CHECK_EQ(tat.load(), 10 * kMs);
    settle(tat, 0, 3 * kMs, rate);
    CHECK_EQ(tat.load(), 25 * kMs);
}

CASE(refund_restores) {
    const Rate rate = share(35);
    std::atomic<Nanos> tat{1000};
    const Grant grant = admit(tat, 500, 7 * kMs, rate);
    settle(tat, grant.charged_tat, 0, rate);
    CHECK_EQ(tat.load(), 1000);
}

CASE(forgive_only_shortens_long_debts) {
    std::atomic<Nanos> tat{100 * kSecond};
    forgive(tat, kSecond, 10 * kSecond);
    CHECK_EQ(tat.load(), 11 * kSecond);
    forgive(tat, kSecond, 20 * kSecond);
    CHECK_EQ(tat.load(), 11 * kSecond);
}

CASE(concurrent_streams_are_counted_once) {
    Nanos counted = 0;
    CHECK_EQ(claim_busy(counted, 0, 10), 10);
    CHECK_EQ(claim_busy(counted, 5, 12), 2);
    CHECK_EQ(claim_busy(counted, 3, 9), 0);
    CHECK_EQ(claim_busy(counted, 20, 25), 5);
    CHECK_EQ(counted, 25);
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
        const Grant grant = admit(tat, now, cost, rate);
        if (grant.wait != 0) {
            now += sleep_slice(grant.wait);
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
