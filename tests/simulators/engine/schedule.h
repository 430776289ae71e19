// SPDX-License-Identifier: GPL-3.0-or-later
//
// How a card spends its time. Pure: queues and an instant in, the state at that instant out.
//
// A card runs one process at a time, in slices of kSliceNs, round robin among those that have work;
// a process without work gives up the rest of its slice. Within a process items run in the order of
// their submission. The history up to `until` depends only on the queues, never on who asks or how
// often, so any process may settle it lazily and none has to stay awake for it.
#pragma once

#include "layout.h"

namespace sim {

constexpr std::uint32_t kNobody = ~0u;
constexpr Nanos kForever = INT64_MAX;

// A process as the schedule sees it: its queue, and how far it has come.
struct Runner {
  std::uint32_t seat;
  std::uint64_t tail;
  WorkItem* ring;
  Sample* samples;  // null: a projection, which leaves no trace
  ProcessClock clock;
};

struct Timeline {
  CardClock card;
  Sample* samples;  // null as above
  Runner* runners;
  std::size_t count;
};

// Stop as soon as `seat` has completed item number `item`.
struct Goal {
  std::uint32_t seat = kNobody;
  std::uint64_t item = 0;
};

// Settles the card's history up to `until`, or to the instant the goal is reached.
void advance(Timeline& line, Nanos until, Goal goal = {});

// Busy nanoseconds in window number `window`, 0 when it is no longer (or not yet) known.
Nanos busy_in_window(const Sample& current, const Sample* samples, Nanos window);

}  // namespace sim
