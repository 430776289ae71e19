// SPDX-License-Identifier: Apache-2.0
//
// Who has the NPU next, and for how long. Pure: events and an instant in, actions out; no clock, file or log.
//
// Deficit round robin over measured time. A cycle has `slots` slots (flexnpud.conf: schedule_cycle, quota); a
// task owns some of them (aicore_alloc). Each round adds what a task owns to its credit; a turn lasts as long
// as its credit, and when it ends the time from its beginning to its return is taken off, whatever was promised:
// who overran has to make up for it. So shares are those of the time the card was really held. A holder that
// gets no processor begins late: up to kGrace is nobody's time, a later beginning is charged from the grant.
//
// A round begins when nobody who waits has credit left. How many may begin:
//
//   share_in_idle  rounds                  so idle time
//   false          one for each `cycle`    stays idle: nobody gets more than he owns
//   true           as many as it takes     is shared by those who wait, by what they own
//
// Rounds that were due while work was under way are made up for (up to kMostDue), those of idle time are not:
// operators longer than a cycle, and what hand-overs cost, then change no share.
//
// Priority decides only who of those with credit is next, and takes a running turn back (kRecall). It gives
// no time, so a low task waits at most until the others have used up theirs: two cycles and one return each.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace flexnpu {

using Nanos = std::int64_t;

constexpr Nanos kMostDue = 100; // rounds
constexpr Nanos kGrace = 20'000'000;

struct Policy {
    Nanos cycle_ns = 10'000'000;
    unsigned slots = 10;
    bool share_in_idle = false;
    Nanos hung_ns = 1'000'000'000; // a turn not returned so long after its end is taken away
};

struct Event {
    enum Kind {
        kWants,    // the task waits for a turn
        kIdle,     // it no longer does
        kBegan,    // it uses its turn
        kReturned, // nothing of its turn is under way any more
        kTick,     // time has passed
    };
    Kind kind = kTick;
    std::string task;
};

struct Action {
    enum Kind {
        kGrant,  // a turn for the task, until `at`, which leaves time to begin
        kSet,    // the turn it has now lasts until `at`
        kRecall, // its turn ends now
        kRevoke, // it did not return the turn; whoever is next gets the card all the same
        kWakeAt, // call again at `at`, also if nothing happens
    };
    Kind kind = kWakeAt;
    std::string task;
    Nanos at = 0;
};

class Scheduler {
  public:
    Scheduler(const Policy& policy, Nanos now) : policy_(policy), cycle_start_(now) {}

    // `slots` is at least 1; the sum over all tasks is the caller's to check.
    void add(const std::string& task, unsigned slots, unsigned priority);
    // A turn that it held is over.
    void remove(const std::string& task);

    std::vector<Action> on(const Event& event, Nanos now);

    // What a task has used of the card so far, held turns excluded.
    Nanos used_ns(const std::string& task) const;
    std::optional<std::string> holder() const;

  private:
    struct Task {
        unsigned slots = 1;
        unsigned priority = 0;
        Nanos credit = 0;
        Nanos used = 0;
        bool wants = false;
        std::uint64_t served = 0; // order of its last turn
    };
    struct Turn {
        std::string task;
        Nanos since = 0;
        Nanos until = 0;
        bool began = false;
        bool recalled = false;
    };
    using Tasks = std::map<std::string, Task>;

    Nanos quantum(const Task& task) const;
    bool waiting() const;
    void give(Nanos rounds);
    void count_cycles(Nanos now);
    void begin_rounds();
    void end_turn(Nanos now);
    Tasks::iterator next();
    void begin_turn(Nanos now, std::vector<Action>& actions);
    void look_after_holder(Nanos now, std::vector<Action>& actions);
    Nanos wake_at() const;

    Policy policy_;
    Tasks tasks_;
    std::optional<Turn> turn_;
    Nanos cycle_start_;
    Nanos due_ = 0; // rounds that may begin
    std::uint64_t turns_ = 0;
};

} // namespace flexnpu
