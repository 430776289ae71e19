// SPDX-License-Identifier: GPL-3.0-or-later
//
// Memory. A device pointer is an address of this process' own, backed lazily, so copies really copy;
// what is charged to the card is kept apart from what backs it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <sys/mman.h>

#include "driver.h"

using namespace simcuda;

namespace {

constexpr std::uint64_t kGranule = 2 << 20;
constexpr std::size_t kAlignment = 512;
// A memset may name all of a card's memory; this much of it is really written.
constexpr std::size_t kWrittenByMemset = 64 << 20;

std::uint64_t rounded(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Allocation {
  std::size_t bytes;
  Device* device;  // null: host memory, nothing charged
  bool charged;
};

// Allocations below the granule share granules; larger ones have their own.
class Book {
 public:
  CUresult allocate(Device& device, std::size_t bytes, bool charged, void*& address) {
    const std::lock_guard<std::mutex> held(lock_);
    if (charged && !device.take(cost(device, bytes, +1))) return CUDA_ERROR_OUT_OF_MEMORY;
    address = back(bytes);
    if (address == nullptr) {
      if (charged) device.give(cost(device, bytes, +1));
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (charged && bytes < kGranule) device.small_bytes += rounded(bytes, kAlignment);
    held_[reinterpret_cast<CUdeviceptr>(address)] = {bytes, &device, charged};
    return CUDA_SUCCESS;
  }

  // The allocation that begins at `address`, or nothing.
  bool find(CUdeviceptr address, Allocation& found) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto at = held_.find(address);
    if (at == held_.end()) return false;
    found = at->second;
    return true;
  }

  // The allocation that holds all of [address, address + bytes).
  bool around(CUdeviceptr address, std::size_t bytes, CUdeviceptr& base, Allocation& found) {
    const std::lock_guard<std::mutex> held(lock_);
    auto at = held_.upper_bound(address);
    if (at == held_.begin()) return false;
    --at;
    base = at->first;
    found = at->second;
    return address - base <= found.bytes && bytes <= found.bytes - (address - base);
  }

  CUresult release(CUdeviceptr address) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto at = held_.find(address);
    if (at == held_.end()) return CUDA_ERROR_INVALID_VALUE;
    const Allocation allocation = at->second;
    held_.erase(at);
    unback(reinterpret_cast<void*>(address), allocation.bytes);
    if (!allocation.charged) return CUDA_SUCCESS;
    const std::uint64_t freed = cost(*allocation.device, allocation.bytes, -1);
    if (allocation.bytes < kGranule) {
      allocation.device->small_bytes -= rounded(allocation.bytes, kAlignment);
    }
    allocation.device->give(freed);
    return CUDA_SUCCESS;
  }

 private:
  // How the card's charge changes by adding (+1) or removing (-1) an allocation of that size.
  static std::uint64_t cost(const Device& device, std::size_t bytes, int sign) {
    if (bytes >= kGranule) return rounded(bytes, kGranule);
    const std::uint64_t before = device.small_bytes;
    const std::uint64_t step = rounded(bytes, kAlignment);
    const std::uint64_t after = sign > 0 ? before + step : before - step;
    const std::uint64_t larger = rounded(std::max(before, after), kGranule);
    return larger - rounded(std::min(before, after), kGranule);
  }

  static void* back(std::size_t bytes) {
    if (bytes < kGranule) {
      void* address = nullptr;
      return posix_memalign(&address, kAlignment, rounded(bytes, kAlignment)) == 0 ? address : nullptr;
    }
    void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address == MAP_FAILED ? nullptr : address;
  }

  static void unback(void* address, std::size_t bytes) {
    if (bytes < kGranule) std::free(address);
    else munmap(address, bytes);
  }

  std::mutex lock_;
  std::map<CUdeviceptr, Allocation> held_;
};

Book& book() {
  static Book* const only = new Book;
  return *only;
}

CUresult allocate(CUdeviceptr* address, std::size_t bytes, bool charged) {
  Context* context = nullptr;
  if (address == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  void* found = nullptr;
  if (const CUresult error = book().allocate(*context->device, bytes, charged, found)) return error;
  *address = reinterpret_cast<CUdeviceptr>(found);
  return CUDA_SUCCESS;
}

// Freeing waits for the device, as the real driver does for memory that a kernel may still use.
CUresult release(CUdeviceptr address, bool wait) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  if (address == 0) return CUDA_SUCCESS;
  Allocation allocation{};
  if (!book().find(address, allocation)) return CUDA_ERROR_INVALID_VALUE;
  if (wait) allocation.device->wait(allocation.device->submitted());
  return book().release(address);
}

CUresult allocate_host(void** address, std::size_t bytes) {
  CUdeviceptr found = 0;
  if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult error = allocate(&found, bytes, false);
  if (error == CUDA_SUCCESS) *address = reinterpret_cast<void*>(found);
  return error;
}

// A device address must lie within one allocation.
bool within(CUdeviceptr address, std::size_t bytes) {
  CUdeviceptr base = 0;
  Allocation allocation{};
  return book().around(address, bytes, base, allocation);
}

enum class When { kNow, kInStream };

// Copies happen at once, in the order of the calls, and take no time of the card; a synchronous one
// first waits for what the stream holds, and an asynchronous one leaves a mark in it.
CUresult copy(void* to, const void* from, std::size_t bytes, bool to_card, bool from_card, When when,
              CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (bytes == 0) return CUDA_SUCCESS;
  if (to_card && !within(reinterpret_cast<CUdeviceptr>(to), bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (from_card && !within(reinterpret_cast<CUdeviceptr>(from), bytes)) return CUDA_ERROR_INVALID_VALUE;
  Device& device = *stream->context->device;
  if (when == When::kNow) device.wait(bound_of(*stream));
  std::memmove(to, from, bytes);
  if (when == When::kInStream) device.submit(sim::ItemKind::kMark, 0, *stream);
  return CUDA_SUCCESS;
}

void* host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult set(CUdeviceptr to, const void* pattern, std::size_t width, std::size_t count, When when,
             CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (count == 0) return CUDA_SUCCESS;
  if (to % width != 0 || !within(to, width * count)) return CUDA_ERROR_INVALID_VALUE;
  if (when == When::kNow) stream->context->device->wait(bound_of(*stream));
  auto* bytes = static_cast<unsigned char*>(host(to));
  const std::size_t written = std::min(count, kWrittenByMemset / width);
  for (std::size_t i = 0; i < written; ++i) std::memcpy(bytes + i * width, pattern, width);
  stream->context->device->submit(sim::ItemKind::kMark, 0, *stream);
  return CUDA_SUCCESS;
}

constexpr NullStream kLegacy = NullStream::kLegacy;
constexpr NullStream kOwn = NullStream::kPerThread;

}  // namespace

SIM_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
  return allocate(address, bytes, true);
}

SIM_EXPORT CUresult cuMemFree_v2(CUdeviceptr address) { return release(address, true); }

SIM_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr* address, std::size_t* pitch, std::size_t width,
                                       std::size_t height, unsigned element) {
  if (pitch == nullptr || width == 0 || height == 0) return CUDA_ERROR_INVALID_VALUE;
  if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
  const std::size_t row = rounded(width, kAlignment);
  if (height > SIZE_MAX / row) return CUDA_ERROR_INVALID_VALUE;
  *pitch = row;
  return allocate(address, row * height, true);
}

// Managed memory lives where it is touched; simulated kernels touch nothing.
SIM_EXPORT CUresult cuMemAllocManaged(CUdeviceptr* address, std::size_t bytes, unsigned flags) {
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) return CUDA_ERROR_INVALID_VALUE;
  return allocate(address, bytes, false);
}

SIM_EXPORT CUresult cuMemAllocHost_v2(void** address, std::size_t bytes) {
  return allocate_host(address, bytes);
}

SIM_EXPORT CUresult cuMemHostAlloc(void** address, std::size_t bytes, unsigned) {
  return allocate_host(address, bytes);
}

SIM_EXPORT CUresult cuMemFreeHost(void* address) {
  return release(reinterpret_cast<CUdeviceptr>(address), true);
}

SIM_EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* from, unsigned) {
  if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *address = reinterpret_cast<CUdeviceptr>(from);
  return within(*address, 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  Context* context = nullptr;
  if (free == nullptr || total == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  *free = context->device->free_bytes();
  *total = context->device->total_bytes();
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr address) {
  CUdeviceptr begin = 0;
  Allocation allocation{};
  if (const CUresult error = Driver::get().usable()) return error;
  if (!book().around(address, 1, begin, allocation)) return CUDA_ERROR_NOT_FOUND;
  if (base != nullptr) *base = begin;
  if (bytes != nullptr) *bytes = allocation.bytes;
  return CUDA_SUCCESS;
}

// Stream-ordered memory is taken and returned at the call, not when the stream gets there.
#define STREAM_ORDERED(suffix, null)                                                                 \
  SIM_EXPORT CUresult cuMemAllocAsync##suffix(CUdeviceptr* address, std::size_t bytes, CUstream on) { \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    return allocate(address, bytes, true);                                                           \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemFreeAsync##suffix(CUdeviceptr address, CUstream on) {                     \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    return release(address, false);                                                                  \
  }
STREAM_ORDERED(, kLegacy)
STREAM_ORDERED(_ptsz, kOwn)

// Every copy exists for the legacy null stream and for the thread's own.
#define COPIES(sync, async, null)                                                                    \
  SIM_EXPORT CUresult cuMemcpyHtoD_v2##sync(CUdeviceptr to, const void* from, std::size_t bytes) {   \
    return copy(host(to), from, bytes, true, false, When::kNow, nullptr, null);                      \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyDtoH_v2##sync(void* to, CUdeviceptr from, std::size_t bytes) {         \
    return copy(to, host(from), bytes, false, true, When::kNow, nullptr, null);                      \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyDtoD_v2##sync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {   \
    return copy(host(to), host(from), bytes, true, true, When::kNow, nullptr, null);                 \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy##sync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {          \
    return copy(host(to), host(from), bytes, false, false, When::kNow, nullptr, null);               \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyHtoDAsync_v2##async(CUdeviceptr to, const void* from,                  \
                                                  std::size_t bytes, CUstream on) {                  \
    return copy(host(to), from, bytes, true, false, When::kInStream, on, null);                      \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyDtoHAsync_v2##async(void* to, CUdeviceptr from, std::size_t bytes,     \
                                                  CUstream on) {                                     \
    return copy(to, host(from), bytes, false, true, When::kInStream, on, null);                      \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyDtoDAsync_v2##async(CUdeviceptr to, CUdeviceptr from,                  \
                                                  std::size_t bytes, CUstream on) {                  \
    return copy(host(to), host(from), bytes, true, true, When::kInStream, on, null);                 \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpyAsync##async(CUdeviceptr to, CUdeviceptr from, std::size_t bytes,      \
                                           CUstream on) {                                            \
    return copy(host(to), host(from), bytes, false, false, When::kInStream, on, null);               \
  }
COPIES(, , kLegacy)
COPIES(_ptds, _ptsz, kOwn)

#define FILLS(sync, async, null)                                                                     \
  SIM_EXPORT CUresult cuMemsetD8_v2##sync(CUdeviceptr to, unsigned char value, std::size_t count) {  \
    return set(to, &value, 1, count, When::kNow, nullptr, null);                                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD16_v2##sync(CUdeviceptr to, unsigned short value, std::size_t count) { \
    return set(to, &value, 2, count, When::kNow, nullptr, null);                                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD32_v2##sync(CUdeviceptr to, unsigned value, std::size_t count) {      \
    return set(to, &value, 4, count, When::kNow, nullptr, null);                                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD8Async##async(CUdeviceptr to, unsigned char value, std::size_t count, \
                                             CUstream on) {                                          \
    return set(to, &value, 1, count, When::kInStream, on, null);                                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD16Async##async(CUdeviceptr to, unsigned short value,                  \
                                              std::size_t count, CUstream on) {                      \
    return set(to, &value, 2, count, When::kInStream, on, null);                                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD32Async##async(CUdeviceptr to, unsigned value, std::size_t count,     \
                                              CUstream on) {                                         \
    return set(to, &value, 4, count, When::kInStream, on, null);                                     \
  }
FILLS(, , kLegacy)
FILLS(_ptds, _ptsz, kOwn)
