// SPDX-License-Identifier: GPL-3.0-or-later
//
// Physical memory, which has no address until it is mapped (vmm.cc), and teams of it (multicast.cc).
#pragma once

#include "book.h"

namespace simcuda {

struct Team;

struct Physical {
  static constexpr std::uint32_t kAlive = 0x50485953;
  std::uint32_t magic = kAlive;
  Device* device = nullptr;
  std::size_t bytes = 0;
  CUmemAllocationProp how{};
  int file = -1;
  bool charged = true;  // imported memory is charged to who made it; a team is no memory of its own
  unsigned handles = 1;
  unsigned mappings = 0;  // and bindings to teams
  std::unique_ptr<Team> team;

  Physical();
  ~Physical();
};

// Guards all handles, mappings and teams of the process.
std::mutex& physical_lock();
using PhysicalHeld = std::lock_guard<std::mutex>;

// Under the lock.
Physical* physical_of(CUmemGenericAllocationHandle handle);
Physical* mapped_at(CUdeviceptr address, std::size_t bytes);  // null when it isn't one mapping
void drop_if_unused(Physical* physical);

// Whether all cards of the team have joined; true for what is no team.
bool complete(const Physical& physical);
// The team in a file that another process exported, or null.
std::unique_ptr<Physical> import_team(int file, std::size_t file_bytes);

inline bool granular(std::size_t bytes) { return bytes != 0 && bytes % kGranule == 0; }

}  // namespace simcuda
