// SPDX-License-Identifier: Apache-2.0
//
// The scheduler as a specification: tasks that behave in given ways on a card that only counts, and what
// share each gets, how long anyone waits. Nothing here takes real time.
#include "../../common/tests/check.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <utility>

#include "scheduler.h"

using namespace flexnpu;

namespace {

constexpr Nanos kUs = 1'000;
constexpr Nanos kMs = 1'000'000;
constexpr Nanos kSecond = 1'000'000'000;
constexpr Nanos kHandOver = 20 * kUs; // from a grant to the first operator, from the last to the return

struct Load {
    std::string name;
    unsigned slots = 1;
    Nanos operation = 500 * kUs;
    unsigned priority = 0;
    Nanos thinks = 0;       // between two turns; 0: always has work
    Nanos begins = 0;
    Nanos hangs_at = -1;    // from then on it returns no turn
    unsigned most = 0;      // operators a turn; 0: until the turn ends
};

struct Result {
    Nanos busy = 0;     // the card's time in its operators
    Nanos longest_wait = 0;
    std::vector<Nanos> waits;
    unsigned turns = 0;
};

// Runs the loads under `policy` for `length`; the card runs one operator at a time and never cuts one.
class Card {
  public:
    Card(const Policy& policy, std::vector<Load> loads) : scheduler_(policy, 0), loads_(std::move(loads)) {
        for (const Load& load : loads_) {
            scheduler_.add(load.name, load.slots, load.priority);
            at_[load.name] = load.begins;
        }
    }

    std::map<std::string, Result> run(Nanos length) {
        while (now_ < length) {
            const auto due = std::min_element(at_.begin(), at_.end(), [](const auto& a, const auto& b) {
                return a.second < b.second;
            });
            const bool load_first = due != at_.end() && (wake_ == 0 || due->second <= wake_);
            if (!load_first && wake_ == 0) break;
            now_ = std::max(now_, load_first ? due->second : wake_);
            if (!load_first) {
                wake_ = 0;
                act(scheduler_.on({Event::kTick, ""}, now_));
                continue;
            }
            const std::string name = due->first;
            at_.erase(due);
            if (running_ == name) begun_ ? finish(name) : begin(name);
            else want(name);
        }
        return results_;
    }

  private:
    const Load& load(const std::string& name) const {
        return *std::find_if(loads_.begin(), loads_.end(), [&](const Load& l) { return l.name == name; });
    }

    void want(const std::string& name) {
        wanted_[name] = now_;
        act(scheduler_.on({Event::kWants, name}, now_));
    }

    void finish(const std::string& name) {
        results_[name].busy += ops_ * load(name).operation;
        running_.clear();
        // It rings twice where it has more to do; a return may find it waiting already.
        if (load(name).thinks == 0) {
            wanted_[name] = now_;
            act(scheduler_.on({Event::kWants, name}, now_));
        } else {
            at_[name] = now_ + load(name).thinks;
        }
        act(scheduler_.on({Event::kReturned, name}, now_));
    }

    void start(const std::string& name, Nanos until) {
        CHECK(running_.empty());
        CHECK(wanted_.count(name) == 1);
        Result& result = results_[name];
        const Nanos waited = now_ - wanted_[name];
        result.waits.push_back(waited);
        result.longest_wait = std::max(result.longest_wait, waited);
        wanted_.erase(name);
        ++result.turns;
        running_ = name;
        began_ = now_ + kHandOver;
        until_ = until;
        begun_ = false;
        at_[name] = began_;
    }

    void begin(const std::string& name) {
        begun_ = true;
        at_.erase(name);
        act(scheduler_.on({Event::kBegan, name}, now_));
        const Load& of = load(name);
        if (of.hangs_at >= 0 && now_ >= of.hangs_at) {
            ops_ = 0;
            return; // and is never heard of again
        }
        ops_ = until_ > now_ ? (until_ - now_ + of.operation - 1) / of.operation : 0;
        if (of.most != 0) ops_ = std::min<Nanos>(ops_, of.most);
        at_[name] = now_ + ops_ * of.operation + kHandOver;
    }

    void recall(const std::string& name) {
        until_ = now_;
        if (at_.count(name) == 0 || !begun_) return;
        const Load& of = load(name);
        const Nanos begun = now_ > began_ ? (now_ - began_ + of.operation - 1) / of.operation : 0;
        ops_ = std::min(ops_, begun);
        at_[name] = std::max(now_, began_ + ops_ * of.operation) + kHandOver;
    }

    void act(const std::vector<Action>& actions) {
        for (const Action& action : actions) {
            if (action.kind == Action::kGrant) start(action.task, action.at);
            if (action.kind == Action::kSet) until_ = action.at;
            if (action.kind == Action::kRecall) recall(action.task);
            if (action.kind == Action::kRevoke) {
                CHECK_EQ(action.task, running_);
                running_.clear();
            }
            if (action.kind == Action::kWakeAt) {
                CHECK(action.at > now_);
                wake_ = action.at;
            }
        }
    }

    Scheduler scheduler_;
    std::vector<Load> loads_;
    std::map<std::string, Nanos> at_, wanted_;
    std::map<std::string, Result> results_;
    std::string running_;
    Nanos began_ = 0, until_ = 0, ops_ = 0, now_ = 0, wake_ = 0;
    bool begun_ = false;
};

Policy policy(unsigned slots, bool share_in_idle) {
    Policy made;
    made.slots = slots;
    made.share_in_idle = share_in_idle;
    return made;
}

double percent(Nanos part, Nanos whole) {
    return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

} // namespace

CASE(two_tasks_at_2_and_8_get_20_and_80_percent_of_the_time_used) {
    for (const bool sharing : {false, true}) {
        for (const Nanos operation : {20 * kUs, kMs, 50 * kMs}) {
            Card card(policy(10, sharing), {{"two", 2, operation}, {"eight", 8, operation}});
            const auto result = card.run(60 * kSecond);
            const Nanos all = result.at("two").busy + result.at("eight").busy;
            CHECK_IN(percent(result.at("two").busy, all), 19.0, 21.0);
        }
    }
}

CASE(operators_of_different_length_change_no_share) {
    Card card(policy(10, true), {{"tiny", 5, 10 * kUs}, {"long", 5, 30 * kMs}});
    const auto result = card.run(60 * kSecond);
    const Nanos all = result.at("tiny").busy + result.at("long").busy;
    CHECK_IN(percent(result.at("tiny").busy, all), 48.5, 51.5);
}

CASE(slots_that_nobody_owns_stay_idle) {
    Card card(policy(10, false), {{"two", 2, 500 * kUs}, {"three", 3, 500 * kUs}});
    const auto result = card.run(20 * kSecond);
    CHECK_IN(percent(result.at("two").busy, 20 * kSecond), 18.0, 20.1);
    CHECK_IN(percent(result.at("three").busy, 20 * kSecond), 28.0, 30.1);
}

CASE(with_share_in_idle_they_go_to_those_who_wait_by_what_they_own) {
    Card card(policy(16, true), {{"one", 1}, {"two", 2}, {"eight", 8}});
    const auto result = card.run(30 * kSecond);
    CHECK_IN(percent(result.at("one").busy, 30 * kSecond), 100.0 / 11 - 1, 100.0 / 11 + 1);
    CHECK_IN(percent(result.at("two").busy, 30 * kSecond), 200.0 / 11 - 1, 200.0 / 11 + 1);
    CHECK_IN(percent(result.at("eight").busy, 30 * kSecond), 800.0 / 11 - 3, 800.0 / 11 + 1);
}

CASE(alone_with_share_in_idle_a_task_has_the_whole_card) {
    Card card(policy(10, true), {{"only", 1}});
    CHECK_IN(percent(card.run(10 * kSecond).at("only").busy, 10 * kSecond), 85.0, 100.0);
}

CASE(who_was_idle_gets_his_share_from_then_on_and_no_more) {
    Load late{"late", 5};
    late.begins = 10 * kSecond;
    Card card(policy(10, true), {{"early", 5}, late});
    const auto result = card.run(20 * kSecond);
    CHECK_IN(percent(result.at("late").busy, 10 * kSecond), 45.0, 50.5);
}

CASE(a_hung_holder_loses_its_turn_after_a_second_and_the_others_go_on) {
    Load hung{"hung", 5};
    hung.hangs_at = 2 * kSecond;
    Card card(policy(10, true), {hung, {"well", 5}});
    const auto result = card.run(10 * kSecond);
    CHECK_IN(result.at("well").longest_wait, kSecond, kSecond + 30 * kMs);
    CHECK_IN(percent(result.at("well").busy, 10 * kSecond), 70.0, 90.0);
}

CASE(a_high_task_waits_at_most_two_cycles_while_eight_low_ones_saturate) {
    Load high{"high", 4, 500 * kUs, 9};
    high.thinks = 37 * kMs;
    high.most = 2;
    std::vector<Load> loads{high};
    for (int i = 0; i < 8; ++i) loads.push_back({"low" + std::to_string(i), 1, kMs});
    auto waits = Card(policy(16, true), loads).run(30 * kSecond).at("high").waits;
    std::sort(waits.begin(), waits.end());
    CHECK(waits.size() > 500);
    CHECK_IN(waits[waits.size() * 99 / 100], 0, 20 * kMs);
    CHECK_IN(waits.back(), 0, 2 * kMs); // one operator of the holder, recalled, and two hand-overs
}

CASE(a_low_task_gets_its_share_while_high_ones_saturate) {
    for (const bool sharing : {false, true}) {
        Card card(policy(10, sharing), {{"high", 8, 500 * kUs, 9}, {"low", 2, 500 * kUs, 0}});
        const auto result = card.run(30 * kSecond);
        const Nanos all = result.at("high").busy + result.at("low").busy;
        CHECK_IN(percent(result.at("low").busy, all), 18.5, 21.5);
        CHECK_IN(result.at("low").longest_wait, 0, 2 * 10 * kMs + 2 * kMs);
    }
}

CASE(without_credit_a_high_task_recalls_nobody) {
    Scheduler scheduler(policy(10, false), 0);
    scheduler.add("high", 1, 9);
    scheduler.add("low", 9, 0);
    scheduler.on({Event::kWants, "high"}, 0);
    scheduler.on({Event::kWants, "low"}, 1 * kMs);
    const auto granted = scheduler.on({Event::kReturned, "high"}, 2 * kMs);
    CHECK_EQ(granted.front().kind, Action::kGrant);
    CHECK_EQ(granted.front().task, std::string("low"));
    for (const Action& action : scheduler.on({Event::kWants, "high"}, 3 * kMs))
        CHECK(action.kind != Action::kRecall);
}

CASE(a_holder_that_begins_late_loses_nothing_within_the_grace_and_pays_beyond) {
    for (const auto& [late, charged] : {std::pair{kGrace, 3 * kMs}, std::pair{kGrace + kMs, kGrace + 4 * kMs}}) {
        Scheduler scheduler(policy(10, false), 0);
        scheduler.add("a", 5, 0);
        scheduler.on({Event::kWants, "a"}, 0);
        scheduler.on({Event::kBegan, "a"}, late);
        scheduler.on({Event::kBegan, "a"}, late + kMs); // another process of the same task
        scheduler.on({Event::kReturned, "a"}, late + 3 * kMs);
        CHECK_EQ(scheduler.used_ns("a"), charged);
    }
}

CASE(an_overrun_is_paid_back) {
    Scheduler scheduler(policy(10, false), 0);
    scheduler.add("a", 1, 0);
    scheduler.on({Event::kWants, "a"}, 0);
    scheduler.on({Event::kReturned, "a"}, 5 * kMs); // of 1 ms: 4 ms of debt
    scheduler.on({Event::kWants, "a"}, 6 * kMs);
    Nanos granted = 0;
    for (Nanos now = 7 * kMs; granted == 0; now += kMs)
        for (const Action& action : scheduler.on({Event::kTick, ""}, now))
            if (action.kind == Action::kGrant) granted = now;
    CHECK_EQ(granted, 50 * kMs); // four cycles make up for it, the fifth brings credit
}

CASE(a_task_that_was_removed_while_it_held_the_turn_blocks_nobody) {
    Scheduler scheduler(policy(10, true), 0);
    scheduler.add("a", 5, 0);
    scheduler.add("b", 5, 0);
    scheduler.on({Event::kWants, "a"}, 0);
    scheduler.on({Event::kWants, "b"}, 0);
    CHECK_EQ(scheduler.holder().value(), std::string("a"));
    scheduler.remove("a");
    CHECK_EQ(scheduler.on({Event::kTick, ""}, kMs).front().task, std::string("b"));
    scheduler.on({Event::kReturned, "a"}, 2 * kMs); // late, and of no effect
    CHECK_EQ(scheduler.holder().value(), std::string("b"));
}

CASE(a_clock_that_jumps_gives_nobody_more_than_the_reserve) {
    Scheduler scheduler(policy(10, false), 0);
    scheduler.add("a", 2, 0);
    const auto far = scheduler.on({Event::kWants, "a"}, 3600 * kSecond);
    CHECK_IN(far.front().at - 3600 * kSecond, 0, kGrace + 4 * kMs);
    scheduler.on({Event::kReturned, "a"}, 3600 * kSecond + 4 * kMs);
    scheduler.on({Event::kWants, "a"}, kSecond); // and back again
    bool granted = false;
    for (Nanos now = kSecond; now < kSecond + 100 * kMs; now += kMs)
        for (const Action& action : scheduler.on({Event::kTick, ""}, now))
            granted = granted || action.kind == Action::kGrant;
    CHECK(granted);
}

// Any mixture: shares of the time used are those of the slots, within a point, and nobody waits for ever.
CASE(any_mixture_of_saturating_tasks_gets_its_shares) {
    std::mt19937 chance(20260101);
    for (int round = 0; round < check::rounds(40); ++round) {
        const unsigned slots = 16;
        const bool sharing = chance() % 2 == 0;
        std::vector<Load> loads;
        unsigned left = slots;
        while (left > 0) {
            const unsigned takes = 1 + chance() % left;
            const Nanos operation = (1 + chance() % 100) * 20 * kUs;
            loads.push_back({"task" + std::to_string(left), takes, operation, static_cast<unsigned>(chance() % 3)});
            left -= takes;
        }
        const auto result = Card(policy(slots, sharing), loads).run(60 * kSecond);
        Nanos all = 0;
        for (const auto& [name, one] : result) all += one.busy;
        for (const Load& load : loads) {
            const double wanted = 100.0 * load.slots / slots;
            CHECK_IN(percent(result.at(load.name).busy, all), wanted - 1, wanted + 1);
            CHECK_IN(result.at(load.name).longest_wait, 0, 4 * 10 * kMs + 16 * 4 * kMs);
        }
    }
}

int main(int argc, char** argv) { return check::run(argc, argv); }
