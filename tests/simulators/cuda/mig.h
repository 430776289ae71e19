// SPDX-License-Identifier: GPL-3.0-or-later
//
// MIG: a card divided into instances, each a card of the engine's with memory and time of its own. A profile of a
// card in MIG mode says which: `mig 9:1g.5gb …` (GPU instance and size; each has one compute instance, 0), and of
// each size `mig_1g.5gb <memory MiB> <multiprocessors> <compute slices>`.
#pragma once

#include <string>
#include <vector>

#include "hardware.h"
#include "layout.h"

namespace simnvidia {

struct Part {
  unsigned gpu_instance;
  std::string size;  // 1g.5gb
  unsigned long memory_mib, multiprocessors, slices;
};

constexpr unsigned kGpuInstances = 15;    // that the driver has numbers for, on each card
constexpr unsigned kComputeInstances = 8;  // on each of them

// The instances of a profile; none where it isn't in MIG mode. Throws naming `origin` and what is wrong.
std::vector<Part> parts_of(const sim::Settings& profile, const std::string& origin);

// Fills `info` with one of them; `whole` is card `index` of the fleet.
void describe_part(const sim::CardInfo& whole, std::int32_t index, const Part& part, sim::CardInfo& info);

// The number of the device node that opens a GPU instance, and one of its compute instances.
unsigned capability(unsigned minor, unsigned gpu_instance);
unsigned capability(unsigned minor, unsigned gpu_instance, unsigned compute_instance);

// Name of that node below /dev.
std::string capability_node(unsigned number);

}  // namespace simnvidia
