// SPDX-License-Identifier: GPL-3.0-or-later
//
// Events that processes share: who recorded last, and up to where in his queue. They lie in a memory file of the
// process that made them, which the others map.
#pragma once

#include "driver.h"

namespace simcuda {

// Written under `sequence` (odd: being written), since any process may record.
struct SharedEvent {
  std::atomic<std::uint32_t> sequence;
  std::uint32_t used;
  sim::CardView::Point point;  // bound 0: never recorded
  char card[16];               // its PCI address
};
static_assert(sizeof(SharedEvent) <= 64);

void publish(SharedEvent& event, const sim::CardView::Point& point, const char* card);

// The card and the place of the last record; false when there was none, or the card isn't seen here.
bool recorded(SharedEvent& event, Device*& device, sim::CardView::Point& point);

// One in this process' file, or null when all are taken.
SharedEvent* make_shared_event();
// Gives up one of our own, or of another process.
void drop_shared_event(SharedEvent* event);

CUresult query_shared(SharedEvent& event);
void wait_shared(SharedEvent& event);
// Holds back what the stream gets from now on until then.
CUresult await_shared(SharedEvent& event, Stream& stream);

}  // namespace simcuda
