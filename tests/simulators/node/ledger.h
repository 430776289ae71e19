// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the simulated cards really did, of whatever vendor; the referee of every figure.
//   PROGRAM ledger [--json] [--dead]             busy time and memory per process and card
//   PROGRAM top [-n SECONDS] [--once] [--json]   who uses what now, again and again
#pragma once

#include <string>

namespace simgpu {

// The program by that name, on the cards of the daemon behind `socket`; returns its exit code.
int run(const char* program, const std::string& socket, int count, char** words);

}  // namespace simgpu
