// SPDX-License-Identifier: GPL-3.0-or-later
//
// `simgpu top`: what cards and processes did between two readings.
#pragma once

#include <string>
#include <vector>

#include "card.h"

namespace simgpu {

struct Snapshot {
  std::string uuid, name;
  std::uint64_t total_bytes;
  sim::CardView::Reading reading;
};

struct ProcessRow {
  std::int32_t host_pid, pid;
  std::string command;
  double percent;  // of the card's time in between
  std::uint64_t memory_bytes;
};

struct CardRow {
  std::string uuid, name;
  double percent;
  std::uint64_t used_bytes, total_bytes;
  std::vector<ProcessRow> processes;
};

// Pure. Who wasn't there before began in between; cards are the same ones in the same order.
std::vector<CardRow> rows(const std::vector<Snapshot>& before, const std::vector<Snapshot>& after);

std::string as_table(const std::vector<CardRow>& cards, double seconds);
std::string as_json(const std::vector<CardRow>& cards, double seconds);

std::string quoted(const std::string& text);  // for JSON

}  // namespace simgpu
