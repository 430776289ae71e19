// SPDX-License-Identifier: GPL-3.0-or-later
//
// Which addresses of this process stand for which memory, and what of it is charged to a card. A device
// pointer is an address of this process' own, backed lazily, so copies really copy.
#pragma once

#include <atomic>
#include <map>
#include <mutex>

#include "driver.h"

namespace simcuda {

constexpr std::uint64_t kGranule = 2 << 20;
constexpr std::size_t kAlignment = 512;

inline std::uint64_t rounded(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

enum class Kind {
  kDevice,    // charged by granules
  kHost,      // never charged
  kRegistered,  // the application's own, never charged
  kManaged,   // charged while it is resident on the card
  kPooled,    // charged through its pool
  kGraph,     // an address of a graph; charged, through the card's graph pool, while allocated
  kMapped,    // charged by the handle that is mapped there (vmm.cc)
  kImported,  // another process' memory; charged there
  kForeign,   // as well, and let go of by freeing it (pools' pointers, external memory)
};

// Memory that a card has reserved for stream-ordered allocations. `reserved` is charged to the card,
// `used` lies within it; what is unused beyond the threshold goes back at the next synchronisation.
struct Pool {
  static constexpr std::uint32_t kAlive = 0x504f4f4c;
  static constexpr std::uint64_t kStep = 32 << 20;  // a pool grows by so much, if the card has it
  std::uint32_t magic = kAlive;
  Device* device = nullptr;
  std::mutex lock;
  std::uint64_t reserved = 0, reserved_high = 0;
  std::uint64_t used = 0, used_high = 0;
  std::uint64_t threshold = 0;
  std::uint64_t limit = 0;  // 0: none
  bool ending = false;      // destroyed by its owner; goes with its last allocation
  unsigned handle_types = 0;  // how it may be exported
  int imported = -1;          // the maker's memory file, of a pool of another process
  std::map<CUdevice, CUmemAccess_flags> access;  // of other cards

  bool take(std::uint64_t bytes);
  void give(std::uint64_t bytes);
  // Returns what is reserved and unused beyond `keep`.
  void trim(std::uint64_t keep);
};

struct Allocation {
  std::size_t bytes = 0;
  Device* device = nullptr;
  Kind kind = Kind::kHost;
  Pool* pool = nullptr;
  bool resident = false;      // kManaged: on the card; kGraph: allocated now
  std::uint64_t offset = 0;   // of the backing in the process' shared memory, see below
  std::uint64_t id = 0;       // never used twice
  unsigned flags = 0;         // kHost, kRegistered
  bool in_file = false;       // and whether there is one
  bool shareable = false;
  const void* owner = nullptr;  // the context that it ends with, if any
};

class Book {
 public:
  CUresult allocate(Device& device, std::size_t bytes, Kind kind, Pool* pool, CUdeviceptr& address);
  CUresult release(CUdeviceptr address);
  void own(CUdeviceptr address, const void* owner);
  void release_of(const void* owner);

  // Addresses that others have backed (kMapped, kImported).
  void enter(CUdeviceptr address, const Allocation& allocation);
  void strike(CUdeviceptr address);

  // The allocation that begins at `address`.
  bool find(CUdeviceptr address, Allocation& found);
  // The allocation in which `address` lies.
  bool around(CUdeviceptr address, CUdeviceptr& base, Allocation& found);
  // Whether all of it is memory that was allocated, in one piece or in adjacent ones.
  bool covers(CUdeviceptr address, std::size_t bytes);

  // Brings managed memory to its card, or takes it off; true unless the card has no room.
  bool move(CUdeviceptr address, bool to_card);
  bool any_managed() const { return managed_.load(std::memory_order_relaxed) != 0; }

  // A graph's memory comes and goes with its launches, at an address that stays.
  CUresult set_graph_resident(CUdeviceptr address, bool resident);

  // The file that backs large allocations, so that other processes can map a part of it.
  int memory_file();

 private:
  bool charge(const Allocation& allocation);
  void uncharge(const Allocation& allocation);
  CUdeviceptr back(Allocation& allocation);
  void unback(CUdeviceptr address, const Allocation& allocation);

  std::mutex lock_;
  std::map<CUdeviceptr, Allocation> held_;
  std::atomic<std::uint64_t> managed_{0};
  int file_ = -1;
  std::uint64_t file_end_ = 0;
};

Book& book();

// Pools of a device: the default one, the one in use, the graphs' own.
Pool& default_pool(Device& device);
Pool& graph_pool(Device& device);
// Gives back what the device's pools keep beyond their thresholds; a synchronisation does that.
void trim_pools(Device& device);

CUresult allocate_from(Pool& pool, std::size_t bytes, CUdeviceptr* address);

}  // namespace simcuda
