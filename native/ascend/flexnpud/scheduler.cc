// SPDX-License-Identifier: Apache-2.0
#include "scheduler.h"

#include <algorithm>

namespace flexnpu {

Nanos Scheduler::quantum(const Task& task) const {
    return std::max<Nanos>(1, policy_.cycle_ns / policy_.slots * task.slots);
}

void Scheduler::add(const std::string& name, unsigned slots, unsigned priority) {
    Task task;
    task.slots = std::max(1U, slots);
    task.priority = priority;
    task.credit = quantum(task);
    tasks_[name] = task;
}

void Scheduler::remove(const std::string& name) {
    if (turn_ && turn_->task == name) turn_.reset();
    tasks_.erase(name);
}

bool Scheduler::waiting() const {
    return std::any_of(tasks_.begin(), tasks_.end(), [](const auto& entry) { return entry.second.wants; });
}

// What so many rounds add. Who is idle keeps one round's worth.
void Scheduler::give(Nanos rounds) {
    for (auto& [name, task] : tasks_) {
        const bool busy = task.wants || (turn_ && turn_->task == name);
        const Nanos most = quantum(task) * (busy ? 2 : 1);
        task.credit = std::max(task.credit, std::min(most, task.credit + quantum(task) * rounds));
    }
}

// The clock's part: how many rounds have become due.
void Scheduler::count_cycles(Nanos now) {
    if (now < cycle_start_) cycle_start_ = now; // it went back: cycles are counted from here
    const Nanos passed = (now - cycle_start_) / policy_.cycle_ns;
    cycle_start_ += passed * policy_.cycle_ns;
    due_ = std::min(kMostDue, due_ + passed);
    if (turn_ || waiting()) return;
    give(due_);
    due_ = 0;
}

// As many rounds as it takes until somebody who waits has credit, if so many are due. Never while a turn is
// held: what its holder will be in debt for is not known yet.
void Scheduler::begin_rounds() {
    Nanos rounds = 0;
    for (const auto& [name, task] : tasks_) {
        if (!task.wants) continue;
        if (task.credit > 0) return;
        const Nanos lacks = -task.credit / quantum(task) + 1;
        rounds = rounds == 0 ? lacks : std::min(rounds, lacks);
    }
    if (!policy_.share_in_idle) {
        rounds = std::min(rounds, due_);
        due_ -= rounds;
    }
    if (rounds > 0) give(rounds);
}

void Scheduler::end_turn(Nanos now) {
    const auto held = tasks_.find(turn_->task);
    const Nanos took = std::max<Nanos>(0, now - turn_->since);
    held->second.credit -= took;
    held->second.used += took;
    turn_.reset();
}

void Scheduler::begin_turn(Nanos now, std::vector<Action>& actions) {
    if (turn_->began) return;
    turn_->began = true;
    if (turn_->recalled || now > turn_->since + kGrace) return;
    turn_->since = now;
    turn_->until = now + tasks_.at(turn_->task).credit;
    actions.push_back({Action::kSet, turn_->task, turn_->until});
}

// Of those who wait with credit: the highest priority, among equals whose last turn is longest ago.
Scheduler::Tasks::iterator Scheduler::next() {
    auto best = tasks_.end();
    for (auto at = tasks_.begin(); at != tasks_.end(); ++at) {
        const Task& task = at->second;
        if (!task.wants || task.credit <= 0) continue;
        if (best == tasks_.end() || task.priority > best->second.priority ||
            (task.priority == best->second.priority && task.served < best->second.served))
            best = at;
    }
    return best;
}

void Scheduler::look_after_holder(Nanos now, std::vector<Action>& actions) {
    if (now >= turn_->until + policy_.hung_ns) {
        actions.push_back({Action::kRevoke, turn_->task, now});
        end_turn(now);
        return;
    }
    const auto rival = next();
    const unsigned own = tasks_.at(turn_->task).priority;
    if (rival != tasks_.end() && rival->second.priority > own && !turn_->recalled && now < turn_->until) {
        turn_->recalled = true;
        turn_->until = now;
        actions.push_back({Action::kRecall, turn_->task, now});
    }
}

// When something changes by itself: a holder is given up, or a cycle begins for somebody who waits.
Nanos Scheduler::wake_at() const {
    if (turn_) return turn_->until + policy_.hung_ns;
    return waiting() && !policy_.share_in_idle ? cycle_start_ + policy_.cycle_ns : 0;
}

std::vector<Action> Scheduler::on(const Event& event, Nanos now) {
    std::vector<Action> actions;
    count_cycles(now); // before the event: what was due while nobody waited is nobody's
    const auto named = tasks_.find(event.task);
    if (named != tasks_.end()) {
        if (event.kind == Event::kWants) named->second.wants = true;
        if (event.kind == Event::kIdle) named->second.wants = false;
        if (event.kind == Event::kBegan && turn_ && turn_->task == event.task) begin_turn(now, actions);
        if (event.kind == Event::kReturned && turn_ && turn_->task == event.task) end_turn(now);
    }
    if (turn_) look_after_holder(now, actions);
    if (!turn_) {
        begin_rounds();
        if (const auto chosen = next(); chosen != tasks_.end()) {
            Task& task = chosen->second;
            task.wants = false;
            task.served = ++turns_;
            turn_ = Turn{chosen->first, now, now + kGrace + task.credit, false, false};
            actions.push_back({Action::kGrant, chosen->first, turn_->until});
        }
    }
    if (const Nanos at = wake_at(); at != 0) actions.push_back({Action::kWakeAt, "", at});
    return actions;
}

Nanos Scheduler::used_ns(const std::string& name) const {
    const auto found = tasks_.find(name);
    return found == tasks_.end() ? 0 : found->second.used;
}

std::optional<std::string> Scheduler::holder() const {
    if (!turn_) return std::nullopt;
    return turn_->task;
}

} // namespace flexnpu
