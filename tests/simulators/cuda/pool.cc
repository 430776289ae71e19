// SPDX-License-Identifier: GPL-3.0-or-later
//
// Stream-ordered memory and its pools. Memory is taken and returned at the call, not when the stream
// gets there; what a pool keeps is told apart from what is in use, as the card's ledger sees both.
#include <algorithm>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "book.h"
#include "capture.h"

namespace simcuda {

void Pool::trim(std::uint64_t keep) {
  const std::lock_guard<std::mutex> held(lock);
  const std::uint64_t needed = std::max(keep, used);
  if (needed >= reserved) return;
  const std::uint64_t wanted = rounded(needed, kGranule);
  device->give(reserved - wanted);
  reserved = wanted;
}

bool Pool::take(std::uint64_t bytes) {
  const std::lock_guard<std::mutex> held(lock);
  if (limit != 0 && used + bytes > limit) return false;
  if (used + bytes > reserved) {
    const std::uint64_t missing = used + bytes - reserved;
    std::uint64_t step = rounded(missing, kStep);
    if (!device->take(step)) {
      step = rounded(missing, kGranule);
      if (!device->take(step)) return false;
    }
    reserved += step;
    reserved_high = std::max(reserved_high, reserved);
  }
  used += bytes;
  used_high = std::max(used_high, used);
  return true;
}

void Pool::give(std::uint64_t bytes) {
  const std::lock_guard<std::mutex> held(lock);
  used -= bytes;
  if (!ending || used != 0) return;
  device->give(reserved);
  reserved = 0;
}

namespace {

struct Pools {
  Pool standard;
  Pool graphs;
  Pool* chosen = nullptr;
  std::vector<Pool*> made;
};

std::mutex& lock() {
  static std::mutex* const only = new std::mutex;
  return *only;
}

// Under the lock.
Pools& pools_of(Device& device) {
  static auto* const all = new std::unordered_map<Device*, std::unique_ptr<Pools>>;
  std::unique_ptr<Pools>& pools = (*all)[&device];
  if (pools == nullptr) {
    pools = std::make_unique<Pools>();
    pools->standard.device = pools->graphs.device = &device;
    pools->chosen = &pools->standard;
  }
  return *pools;
}

Pool& chosen_pool(Device& device) {
  const std::lock_guard<std::mutex> held(lock());
  return *pools_of(device).chosen;
}

CUresult device_of(CUdevice ordinal, Device*& device) {
  if (const CUresult error = Driver::get().usable()) return error;
  device = Driver::get().device(ordinal);
  return device != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult allocate(CUdeviceptr* address, std::size_t bytes, Pool* from, CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (address == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  Device& device = *stream->context->device;
  if (capturing()) {
    bool handled = false;
    CUdeviceptr place = 0;
    if (const CUresult error = book().allocate(device, bytes, Kind::kGraph, nullptr, place)) return error;
    Operation take = Take{place, bytes};
    const CUresult result = capture_operation(take, *stream, nullptr, handled);
    if (!handled || result != CUDA_SUCCESS) book().release(place);
    else *address = place;
    if (handled) return result;
  }
  Pool& pool = from != nullptr ? *from : chosen_pool(device);
  return book().allocate(device, bytes, Kind::kPooled, &pool, *address);
}

CUresult release(CUdeviceptr address, CUstream on, NullStream null) {
  Stream* stream = nullptr;
  Allocation allocation;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (!book().find(address, allocation)) return CUDA_ERROR_INVALID_VALUE;
  if (allocation.kind == Kind::kGraph) return enqueue(Return{address}, *stream);
  const bool free_here = allocation.kind == Kind::kPooled || allocation.kind == Kind::kDevice ||
                         allocation.kind == Kind::kForeign;
  if (!free_here) return CUDA_ERROR_INVALID_VALUE;
  if (capturing() && legal_to_wait(*stream) != CUDA_SUCCESS) {
    return CUDA_ERROR_INVALID_VALUE;  // memory of outside is not a graph's to free
  }
  return book().release(address);
}

// The number behind an attribute, or null.
std::uint64_t* number_of(Pool& pool, CUmemPool_attribute which) {
  switch (which) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: return &pool.threshold;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: return &pool.reserved;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: return &pool.reserved_high;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: return &pool.used;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: return &pool.used_high;
    default: return nullptr;
  }
}

bool reuse_policy(CUmemPool_attribute which) {
  return which == CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES ||
         which == CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC ||
         which == CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
}

}  // namespace

Pool& default_pool(Device& device) {
  const std::lock_guard<std::mutex> held(lock());
  return pools_of(device).standard;
}

Pool& graph_pool(Device& device) {
  const std::lock_guard<std::mutex> held(lock());
  return pools_of(device).graphs;
}

void trim_pools(Device& device) {
  const std::lock_guard<std::mutex> held(lock());
  Pools& pools = pools_of(device);
  pools.standard.trim(pools.standard.threshold);
  for (Pool* pool : pools.made) pool->trim(pool->threshold);
}

}  // namespace simcuda

using namespace simcuda;

#define STREAM_ORDERED(suffix, null)                                                                 \
  SIM_EXPORT CUresult cuMemAllocAsync##suffix(CUdeviceptr* address, std::size_t bytes, CUstream on) { \
    return allocate(address, bytes, nullptr, on, null);                                              \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemAllocFromPoolAsync##suffix(CUdeviceptr* address, std::size_t bytes,       \
                                                     CUmemoryPool handle, CUstream on) {            \
    Pool* pool = alive<Pool>(handle);                                                                \
    if (pool == nullptr || pool->imported >= 0) return CUDA_ERROR_INVALID_VALUE;                     \
    return allocate(address, bytes, pool, on, null);                                                 \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemFreeAsync##suffix(CUdeviceptr address, CUstream on) {                     \
    return release(address, on, null);                                                               \
  }
STREAM_ORDERED(, NullStream::kLegacy)
STREAM_ORDERED(_ptsz, NullStream::kPerThread)

SIM_EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice ordinal) {
  Device* device = nullptr;
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = device_of(ordinal, device)) return error;
  *pool = reinterpret_cast<CUmemoryPool>(&default_pool(*device));
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice ordinal) {
  Device* device = nullptr;
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = device_of(ordinal, device)) return error;
  *pool = reinterpret_cast<CUmemoryPool>(&chosen_pool(*device));
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceSetMemPool(CUdevice ordinal, CUmemoryPool handle) {
  Device* device = nullptr;
  Pool* pool = alive<Pool>(handle);
  if (const CUresult error = device_of(ordinal, device)) return error;
  if (pool == nullptr || pool->device != device || pool->imported >= 0) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard<std::mutex> held(lock());
  pools_of(*device).chosen = pool;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolCreate(CUmemoryPool* handle, const CUmemPoolProps* how) {
  Device* device = nullptr;
  if (handle == nullptr || how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (how->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
      how->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if ((how->handleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0) return CUDA_ERROR_NOT_SUPPORTED;
  if (const CUresult error = device_of(how->location.id, device)) return error;
  auto* pool = new Pool;
  pool->device = device;
  pool->limit = how->maxSize;
  pool->handle_types = how->handleTypes;
  const std::lock_guard<std::mutex> held(lock());
  pools_of(*device).made.push_back(pool);
  *handle = reinterpret_cast<CUmemoryPool>(pool);
  return CUDA_SUCCESS;
}

// The object stays, for allocations that still name it; its memory goes with the last of them.
SIM_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  Pool* pool = alive<Pool>(handle);
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  {
    const std::lock_guard<std::mutex> held(lock());
    Pools& pools = pools_of(*pool->device);
    const auto at = std::find(pools.made.begin(), pools.made.end(), pool);
    if (at == pools.made.end()) return CUDA_ERROR_INVALID_VALUE;
    pools.made.erase(at);
    if (pools.chosen == pool) pools.chosen = &pools.standard;
  }
  pool->magic = 0;
  pool->ending = true;
  if (pool->imported >= 0) close(pool->imported);
  pool->trim(0);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool handle, std::size_t keep) {
  Pool* pool = alive<Pool>(handle);
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  pool->trim(keep);
  return CUDA_SUCCESS;
}

// High-water marks may only be set back to what is now, by writing zero.
SIM_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute which, void* value) {
  Pool* pool = alive<Pool>(handle);
  if (pool == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (reuse_policy(which)) return CUDA_SUCCESS;
  const std::uint64_t wanted = *static_cast<const cuuint64_t*>(value);
  const std::lock_guard<std::mutex> held(pool->lock);
  switch (which) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: pool->threshold = wanted; return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
      if (wanted != 0) return CUDA_ERROR_INVALID_VALUE;
      pool->reserved_high = pool->reserved;
      return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
      if (wanted != 0) return CUDA_ERROR_INVALID_VALUE;
      pool->used_high = pool->used;
      return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}

SIM_EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute which, void* value) {
  Pool* pool = alive<Pool>(handle);
  if (pool == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (reuse_policy(which)) {
    *static_cast<int*>(value) = 1;
    return CUDA_SUCCESS;
  }
  const std::lock_guard<std::mutex> held(pool->lock);
  const std::uint64_t* number = number_of(*pool, which);
  if (number == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<cuuint64_t*>(value) = *number;
  return CUDA_SUCCESS;
}

// Which other cards may read and write is kept and told; what has no code that computes can't disobey it.
SIM_EXPORT CUresult cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc* access, std::size_t count) {
  Pool* pool = alive<Pool>(handle);
  if (pool == nullptr || (access == nullptr && count != 0)) return CUDA_ERROR_INVALID_VALUE;
  for (std::size_t i = 0; i < count; ++i) {
    Device* other = Driver::get().device(access[i].location.id);
    if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || other == nullptr) return CUDA_ERROR_INVALID_DEVICE;
    if (other == pool->device) {
      if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
      continue;
    }
    if (!peers(*other, *pool->device)) return CUDA_ERROR_INVALID_DEVICE;
    const std::lock_guard<std::mutex> held(pool->lock);
    pool->access[access[i].location.id] = access[i].flags;
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolGetAccess(CUmemAccess_flags* flags, CUmemoryPool handle, CUmemLocation* where) {
  Pool* pool = alive<Pool>(handle);
  if (flags == nullptr || pool == nullptr || where == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard<std::mutex> held(pool->lock);
  const auto given = pool->access.find(where->id);
  *flags = Driver::get().device(where->id) == pool->device ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
           : given != pool->access.end()                   ? given->second
                                                           : CU_MEM_ACCESS_FLAGS_PROT_NONE;
  return CUDA_SUCCESS;
}

// --- pools of other processes ------------------------------------------------------------------

// What is handed over is the maker's memory file; a pointer's data says which part of it, on which card. The
// memory stays charged to the maker.
namespace {

constexpr std::uint32_t kPointerMark = 0x504f5058;

struct PointerData {
  std::uint32_t mark;
  std::uint32_t reserved;
  std::uint64_t offset;
  std::uint64_t bytes;
  char card[16];  // its PCI address
};
static_assert(sizeof(PointerData) <= sizeof(CUmemPoolPtrExportData));

}  // namespace

SIM_EXPORT CUresult cuMemPoolExportToShareableHandle(void* shared, CUmemoryPool handle,
                                                     CUmemAllocationHandleType type, unsigned long long flags) {
  const Pool* pool = alive<Pool>(handle);
  if (shared == nullptr || pool == nullptr || flags != 0 || (pool->handle_types & type) == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const int file = fcntl(book().memory_file(), F_DUPFD_CLOEXEC, 0);
  if (file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  *static_cast<int*>(shared) = file;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool* handle, void* shared,
                                                       CUmemAllocationHandleType type, unsigned long long flags) {
  if (handle == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  Device* device = nullptr;
  if (const CUresult error = device_of(0, device)) return error;
  const auto given = static_cast<int>(reinterpret_cast<std::intptr_t>(shared));
  // Only memory files know seals.
  if (fcntl(given, F_GET_SEALS) < 0) return CUDA_ERROR_INVALID_VALUE;
  auto* pool = new Pool;
  pool->device = device;
  pool->imported = fcntl(given, F_DUPFD_CLOEXEC, 0);
  const std::lock_guard<std::mutex> held(lock());
  pools_of(*device).made.push_back(pool);
  *handle = reinterpret_cast<CUmemoryPool>(pool);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData* out, CUdeviceptr address) {
  Allocation allocation;
  if (out == nullptr || !book().find(address, allocation) || allocation.kind != Kind::kPooled ||
      allocation.pool->handle_types == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  PointerData data{kPointerMark, 0, allocation.offset, allocation.bytes, {}};
  std::memcpy(data.card, allocation.device->info().pci_address, sizeof(data.card));
  *out = {};
  std::memcpy(out, &data, sizeof(data));
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolImportPointer(CUdeviceptr* address, CUmemoryPool handle,
                                           CUmemPoolPtrExportData* from) {
  const Pool* pool = alive<Pool>(handle);
  PointerData data{};
  if (address == nullptr || pool == nullptr || pool->imported < 0 || from == nullptr) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(&data, from, sizeof(data));
  if (data.mark != kPointerMark || data.bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  Allocation allocation;
  allocation.bytes = data.bytes;
  allocation.kind = Kind::kForeign;
  allocation.device = Driver::get().device_at(data.card);
  if (allocation.device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  void* there = mmap(nullptr, data.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, pool->imported,
                     static_cast<off_t>(data.offset));
  if (there == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
  *address = reinterpret_cast<CUdeviceptr>(there);
  book().enter(*address, allocation);
  return CUDA_SUCCESS;
}

// Of CUDA 13: pools by location. Only a card's pinned memory has any here.
namespace {

CUresult card_at(const CUmemLocation* where, CUmemAllocationType type) {
  if (where == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const bool card = where->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED;
  return card ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

}  // namespace

SIM_EXPORT CUresult cuMemGetDefaultMemPool(CUmemoryPool* pool, CUmemLocation* where, CUmemAllocationType type) {
  if (const CUresult error = card_at(where, type)) return error;
  return cuDeviceGetDefaultMemPool(pool, where->id);
}

SIM_EXPORT CUresult cuMemGetMemPool(CUmemoryPool* pool, CUmemLocation* where, CUmemAllocationType type) {
  if (const CUresult error = card_at(where, type)) return error;
  return cuDeviceGetMemPool(pool, where->id);
}

SIM_EXPORT CUresult cuMemSetMemPool(CUmemLocation* where, CUmemAllocationType type, CUmemoryPool pool) {
  if (const CUresult error = card_at(where, type)) return error;
  return cuDeviceSetMemPool(where->id, pool);
}
