// SPDX-License-Identifier: GPL-3.0-or-later
//
// Faults of the observer's side, as data: "key value" lines in the file that $SIMGPU_FAULTS names, read at
// every call, so that a test can change them under a running program. A file that can't be read or holds an
// unknown key makes calls fail: a misspelt fault must not look like health.
#pragma once

#include <string>

#include "layout.h"

namespace simnvidia {

struct Faults {
  bool sound = true;            // else the text was no list of faults
  long delay_ms = 0;            // every call about a card takes so much longer
  long missing_percent = 0;     // of the sample windows; which ones depends on their number alone
  long bias_percent = 0;        // added to what a sample says, relative to it; may be negative
  long time_jump_ms = 0;        // the library's clock goes so far ahead (or, negative, back)
  long lost_card = -1;          // the card with this minor number is off the bus
  long xid = 0;                 // whoever waits for events gets this one

  bool misses(sim::Nanos window) const;
  unsigned biased(unsigned percent) const;
};

// Pure. `problem` names what is wrong with the text.
Faults parse_faults(const std::string& text, std::string& problem);

// The faults of now; a problem is told on stderr once.
Faults current_faults();

}  // namespace simnvidia
