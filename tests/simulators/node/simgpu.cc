// SPDX-License-Identifier: GPL-3.0-or-later
//
// simgpu: the simulated GPUs' referee; see ledger.h.
#include "ledger.h"
#include "session.h"
#include "vendor.h"

int main(int count, char** words) {
  return simgpu::run("simgpu", sim::socket_path(simnvidia::kSocket), count, words);
}
