// SPDX-License-Identifier: GPL-3.0-or-later
#include "book.h"

#include <algorithm>
#include <cstdlib>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace simcuda {

Book& book() {
  static Book* const only = new Book;
  return *only;
}

// Allocations below the granule share granules; larger ones have their own.
bool Book::charge(const Allocation& allocation) {
  Device& device = *allocation.device;
  switch (allocation.kind) {
    case Kind::kDevice: break;
    case Kind::kPooled: return allocation.pool->take(rounded(allocation.bytes, kAlignment));
    case Kind::kGraph:
      return !allocation.resident || graph_pool(device).take(rounded(allocation.bytes, kAlignment));
    case Kind::kManaged: return !allocation.resident || device.take(rounded(allocation.bytes, kGranule));
    default: return true;
  }
  if (allocation.bytes >= kGranule) return device.take(rounded(allocation.bytes, kGranule));
  const std::uint64_t after = device.small_bytes + rounded(allocation.bytes, kAlignment);
  const std::uint64_t more = rounded(after, kGranule) - rounded(device.small_bytes, kGranule);
  if (more != 0 && !device.take(more)) return false;
  device.small_bytes = after;
  return true;
}

void Book::uncharge(const Allocation& allocation) {
  Device& device = *allocation.device;
  switch (allocation.kind) {
    case Kind::kDevice: break;
    case Kind::kPooled: allocation.pool->give(rounded(allocation.bytes, kAlignment)); return;
    case Kind::kGraph:
      if (allocation.resident) graph_pool(device).give(rounded(allocation.bytes, kAlignment));
      return;
    case Kind::kManaged:
      if (allocation.resident) device.give(rounded(allocation.bytes, kGranule));
      return;
    default: return;
  }
  if (allocation.bytes >= kGranule) {
    device.give(rounded(allocation.bytes, kGranule));
    return;
  }
  const std::uint64_t after = device.small_bytes - rounded(allocation.bytes, kAlignment);
  const std::uint64_t less = rounded(device.small_bytes, kGranule) - rounded(after, kGranule);
  device.small_bytes = after;
  if (less != 0) device.give(less);
}

int Book::memory_file() {
  if (file_ < 0) file_ = static_cast<int>(syscall(SYS_memfd_create, "simulated-memory", 1U));
  return file_;
}

// Large allocations, and those of pools that can be exported, are parts of one sparse file, which another process may map
// (cuIpc*, cuMemPoolExport*); the offset is never used twice, so what an importer still maps is never somebody else's.
CUdeviceptr Book::back(Allocation& allocation) {
  const std::size_t bytes = allocation.bytes;
  allocation.in_file = bytes >= kGranule || (allocation.pool != nullptr && allocation.pool->handle_types != 0);
  if (!allocation.in_file) {
    void* address = nullptr;
    const bool done = posix_memalign(&address, kAlignment, rounded(bytes, kAlignment)) == 0;
    return done ? reinterpret_cast<CUdeviceptr>(address) : 0;
  }
  const int file = memory_file();
  const std::uint64_t end = file_end_ + rounded(bytes, kGranule);
  if (file < 0 || ftruncate(file, static_cast<off_t>(end)) != 0) return 0;
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file,
                       static_cast<off_t>(file_end_));
  if (address == MAP_FAILED) return 0;
  allocation.offset = file_end_;
  allocation.shareable = allocation.kind == Kind::kDevice;
  file_end_ = end;
  return reinterpret_cast<CUdeviceptr>(address);
}

void Book::unback(CUdeviceptr address, const Allocation& allocation) {
  if (allocation.kind == Kind::kMapped || allocation.kind == Kind::kImported) return;
  void* begin = reinterpret_cast<void*>(address);
  if (allocation.kind == Kind::kForeign) {
    munmap(begin, allocation.bytes);
    return;
  }
  if (!allocation.in_file) {
    std::free(begin);
    return;
  }
  munmap(begin, allocation.bytes);
  fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(allocation.offset),
            static_cast<off_t>(rounded(allocation.bytes, kGranule)));
}

CUresult Book::allocate(Device& device, std::size_t bytes, Kind kind, Pool* pool,
                        CUdeviceptr& address) {
  const std::lock_guard<std::mutex> held(lock_);
  Allocation allocation;
  allocation.bytes = bytes;
  allocation.device = &device;
  allocation.kind = kind;
  allocation.pool = pool;
  if (bytes > SIZE_MAX / 2 || !charge(allocation)) return CUDA_ERROR_OUT_OF_MEMORY;
  address = back(allocation);
  if (address == 0) {
    uncharge(allocation);
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (kind == Kind::kManaged) ++managed_;
  allocation.id = Driver::get().next_id();
  held_[address] = allocation;
  return CUDA_SUCCESS;
}

CUresult Book::release(CUdeviceptr address) {
  const std::lock_guard<std::mutex> held(lock_);
  const auto at = held_.find(address);
  if (at == held_.end()) return CUDA_ERROR_INVALID_VALUE;
  const Allocation allocation = at->second;
  held_.erase(at);
  unback(address, allocation);
  uncharge(allocation);
  if (allocation.kind == Kind::kManaged) --managed_;
  return CUDA_SUCCESS;
}

void Book::own(CUdeviceptr address, const void* owner) {
  const std::lock_guard<std::mutex> held(lock_);
  const auto at = held_.find(address);
  if (at != held_.end()) at->second.owner = owner;
}

void Book::release_of(const void* owner) {
  std::vector<CUdeviceptr> its;
  {
    const std::lock_guard<std::mutex> held(lock_);
    for (const auto& [address, allocation] : held_)
      if (allocation.owner == owner) its.push_back(address);
  }
  for (const CUdeviceptr address : its) release(address);
}

void Book::enter(CUdeviceptr address, const Allocation& allocation) {
  const std::lock_guard<std::mutex> held(lock_);
  held_[address] = allocation;
  held_[address].id = Driver::get().next_id();
}

void Book::strike(CUdeviceptr address) {
  const std::lock_guard<std::mutex> held(lock_);
  held_.erase(address);
}

bool Book::find(CUdeviceptr address, Allocation& found) {
  const std::lock_guard<std::mutex> held(lock_);
  const auto at = held_.find(address);
  if (at == held_.end()) return false;
  found = at->second;
  return true;
}

bool Book::around(CUdeviceptr address, CUdeviceptr& base, Allocation& found) {
  const std::lock_guard<std::mutex> held(lock_);
  auto at = held_.upper_bound(address);
  if (at == held_.begin()) return false;
  --at;
  base = at->first;
  found = at->second;
  return address - base < found.bytes;
}

bool Book::covers(CUdeviceptr address, std::size_t bytes) {
  if (bytes > SIZE_MAX - address) return false;
  const CUdeviceptr end = address + bytes;
  do {
    CUdeviceptr base = 0;
    Allocation piece;
    if (!around(address, base, piece)) return false;
    address = base + piece.bytes;
  } while (address < end);
  return true;
}

bool Book::move(CUdeviceptr address, bool to_card) {
  const std::lock_guard<std::mutex> held(lock_);
  auto at = held_.upper_bound(address);
  if (at == held_.begin()) return true;
  --at;
  Allocation& allocation = at->second;
  const bool elsewhere = allocation.kind != Kind::kManaged || allocation.resident == to_card;
  if (elsewhere || address - at->first >= allocation.bytes) return true;
  if (!to_card) uncharge(allocation);
  allocation.resident = to_card;
  if (to_card && !charge(allocation)) {
    allocation.resident = false;
    return false;
  }
  return true;
}

CUresult Book::set_graph_resident(CUdeviceptr address, bool resident) {
  const std::lock_guard<std::mutex> held(lock_);
  const auto at = held_.find(address);
  if (at == held_.end() || at->second.resident == resident) return CUDA_ERROR_INVALID_VALUE;
  if (!resident) uncharge(at->second);
  at->second.resident = resident;
  if (resident && !charge(at->second)) {
    at->second.resident = false;
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return CUDA_SUCCESS;
}

}  // namespace simcuda
