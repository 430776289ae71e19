// SPDX-License-Identifier: GPL-3.0-or-later
#include "schedule.h"

#include <algorithm>

namespace sim {
namespace {

WorkItem& head_of(const Runner& runner) { return runner.ring[runner.clock.head % kQueueDepth]; }

bool ready(const Runner& runner, Nanos now) {
  return runner.clock.head != runner.tail && head_of(runner).submit_ns <= now;
}

// The next ready runner after `seat` in the circle of seats; `seat` itself comes last.
Runner* next_ready(const Timeline& line, std::uint32_t seat) {
  Runner* first = nullptr;
  for (std::size_t i = 0; i < line.count; ++i) {
    Runner& runner = line.runners[i];
    if (!ready(runner, line.card.now)) continue;
    if (runner.seat > seat) return &runner;
    if (first == nullptr) first = &runner;
  }
  return first;
}

Runner* holder(const Timeline& line) {
  for (std::size_t i = 0; i < line.count; ++i) {
    if (line.runners[i].seat == line.card.seat) return &line.runners[i];
  }
  return nullptr;
}

Runner* pick(Timeline& line) {
  Runner* current = holder(line);
  if (current != nullptr && line.card.slice_left_ns > 0 && ready(*current, line.card.now)) {
    return current;
  }
  Runner* chosen = next_ready(line, line.card.seat);
  if (chosen != nullptr) {
    line.card.seat = chosen->seat;
    line.card.slice_left_ns = kSliceNs;
  }
  return chosen;
}

Nanos earliest_submission(const Timeline& line) {
  Nanos earliest = kForever;
  for (std::size_t i = 0; i < line.count; ++i) {
    const Runner& runner = line.runners[i];
    if (runner.clock.head != runner.tail) earliest = std::min(earliest, head_of(runner).submit_ns);
  }
  return earliest;
}

// Windows are written with absolute values, so settling the same stretch again after a crash between
// this write and the commit of the clock writes the same numbers.
void account(Sample& current, Sample* samples, Nanos now, Nanos busy) {
  const Nanos window = now / kSampleNs;
  if (current.window != window) {
    if (samples != nullptr) samples[current.window % static_cast<Nanos>(kSamples)] = current;
    current = {window, 0};
  }
  current.busy_ns += busy;
}

void occupy(Timeline& line, Runner& runner, Nanos busy) {
  if (busy == 0) return;
  account(runner.clock.current, runner.samples, line.card.now, busy);
  account(line.card.current, line.samples, line.card.now, busy);
  runner.clock.busy_ns += busy;
  runner.clock.head_done_ns += busy;
  line.card.busy_ns += busy;
  line.card.slice_left_ns -= busy;
  line.card.now += busy;
}

Nanos window_left(Nanos now) { return kSampleNs - now % kSampleNs; }

}  // namespace

void advance(Timeline& line, Nanos until, Goal goal) {
  CardClock& card = line.card;
  while (true) {
    Runner* runner = pick(line);
    if (runner == nullptr) {
      const Nanos next = earliest_submission(line);
      if (next >= until) {
        card.now = std::max(card.now, until == kForever ? card.now : until);
        return;
      }
      card.now = std::max(card.now, next);
      continue;
    }
    WorkItem& item = head_of(*runner);
    const bool recording = runner->samples != nullptr;
    if (recording && runner->clock.head_done_ns == 0) item.start_ns = card.now;
    const Nanos left = item.duration_ns - runner->clock.head_done_ns;
    const Nanos room = std::max<Nanos>(until - card.now, 0);
    occupy(line, *runner, std::min({left, room, card.slice_left_ns, window_left(card.now)}));
    if (runner->clock.head_done_ns == item.duration_ns) {
      if (recording) item.end_ns = card.now;
      runner->clock.head_done_ns = 0;
      const std::uint64_t completed = runner->clock.head++;
      if (runner->seat == goal.seat && completed == goal.item) return;
    } else if (card.now >= until) {
      return;
    }
  }
}

Nanos busy_in_window(const Sample& current, const Sample* samples, Nanos window) {
  if (current.window == window) return current.busy_ns;
  const Sample& kept = samples[window % static_cast<Nanos>(kSamples)];
  return kept.window == window ? kept.busy_ns : 0;
}

}  // namespace sim
