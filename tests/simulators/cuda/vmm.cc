// SPDX-License-Identifier: GPL-3.0-or-later
//
// Virtual memory management: addresses, physical memory and the mapping of one to the other. Physical
// memory is a sparse file; it is charged to the card until its handle and its last mapping are gone.
#include <algorithm>
#include <map>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "physical.h"

#include "capture.h"

using namespace simcuda;

namespace {

struct Mapping {
  std::size_t bytes;
  Physical* physical;
  CUmemAccess_flags access;
};

std::mutex& lock() { return physical_lock(); }
using Held = PhysicalHeld;

// Reserved ranges and mappings by their first address; under the lock.
std::map<CUdeviceptr, std::size_t>& reservations() {
  static auto* const all = new std::map<CUdeviceptr, std::size_t>;
  return *all;
}
std::map<CUdeviceptr, Mapping>& mappings() {
  static auto* const all = new std::map<CUdeviceptr, Mapping>;
  return *all;
}

bool reserved(CUdeviceptr address, std::size_t bytes) {
  auto at = reservations().upper_bound(address);
  if (at == reservations().begin()) return false;
  --at;
  return address - at->first <= at->second && bytes <= at->second - (address - at->first);
}

bool mapped(CUdeviceptr address, std::size_t bytes) {
  auto at = mappings().lower_bound(address + bytes);
  if (at == mappings().begin()) return false;
  --at;
  return at->first + at->second.bytes > address;
}

// The mappings that fill [address, address + bytes) exactly; empty when they don't.
std::vector<CUdeviceptr> filling(CUdeviceptr address, std::size_t bytes) {
  std::vector<CUdeviceptr> found;
  CUdeviceptr at = address;
  while (at < address + bytes) {
    const auto mapping = mappings().find(at);
    if (mapping == mappings().end()) return {};
    found.push_back(at);
    at += mapping->second.bytes;
  }
  return at == address + bytes ? found : std::vector<CUdeviceptr>{};
}

}  // namespace

namespace simcuda {

std::mutex& physical_lock() {
  static std::mutex* const only = new std::mutex;
  return *only;
}

Physical* physical_of(CUmemGenericAllocationHandle handle) {
  return alive<Physical>(reinterpret_cast<Physical*>(handle));
}

Physical* mapped_at(CUdeviceptr address, std::size_t bytes) {
  auto at = mappings().upper_bound(address);
  if (at == mappings().begin()) return nullptr;
  --at;
  const std::size_t before = address - at->first;
  return before < at->second.bytes && bytes <= at->second.bytes - before ? at->second.physical : nullptr;
}

void drop_if_unused(Physical* physical) {
  if (physical->handles != 0 || physical->mappings != 0) return;
  if (physical->charged) physical->device->give(physical->bytes);
  close(physical->file);
  physical->magic = 0;
  delete physical;
}

}  // namespace simcuda

SIM_EXPORT CUresult cuMemGetAllocationGranularity(std::size_t* bytes, const CUmemAllocationProp* how,
                                                  CUmemAllocationGranularity_flags) {
  if (bytes == nullptr || how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *bytes = kGranule;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAddressReserve(CUdeviceptr* address, std::size_t bytes, std::size_t alignment,
                                        CUdeviceptr hint, unsigned long long flags) {
  if (const CUresult error = Driver::get().usable()) return error;
  const std::size_t step = std::max<std::size_t>(alignment, kGranule);
  if (address == nullptr || flags != 0 || !granular(bytes) || (step & (step - 1)) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  void* wide = mmap(reinterpret_cast<void*>(hint), bytes + step, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (wide == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto begin = reinterpret_cast<CUdeviceptr>(wide);
  const CUdeviceptr aligned = rounded(begin, step);
  if (aligned != begin) munmap(wide, aligned - begin);
  munmap(reinterpret_cast<void*>(aligned + bytes), begin + step - aligned);
  const Held held(lock());
  reservations()[aligned] = bytes;
  *address = aligned;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAddressFree(CUdeviceptr address, std::size_t bytes) {
  if (const CUresult error = Driver::get().usable()) return error;
  const Held held(lock());
  const auto at = reservations().find(address);
  if (at == reservations().end() || at->second != bytes || mapped(address, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  munmap(reinterpret_cast<void*>(address), bytes);
  reservations().erase(at);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, std::size_t bytes,
                                const CUmemAllocationProp* how, unsigned long long flags) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (handle == nullptr || how == nullptr || flags != 0 || !granular(bytes) ||
      how->type != CU_MEM_ALLOCATION_TYPE_PINNED || how->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Device* device = Driver::get().device(how->location.id);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (!device->take(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto file = static_cast<int>(syscall(SYS_memfd_create, "simulated-physical", 1U));
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    if (file >= 0) close(file);
    device->give(bytes);
    return CUDA_ERROR_OPERATING_SYSTEM;
  }
  auto* physical = new Physical;
  physical->device = device;
  physical->bytes = bytes;
  physical->how = *how;
  physical->file = file;
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(physical);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  const Held held(lock());
  Physical* physical = physical_of(handle);
  if (physical == nullptr || physical->handles == 0) return CUDA_ERROR_INVALID_VALUE;
  --physical->handles;
  drop_if_unused(physical);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemMap(CUdeviceptr address, std::size_t bytes, std::size_t offset,
                             CUmemGenericAllocationHandle handle, unsigned long long flags) {
  const Held held(lock());
  Physical* physical = physical_of(handle);
  if (physical == nullptr || flags != 0 || offset != 0 || bytes != physical->bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!reserved(address, bytes) || mapped(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (!complete(*physical)) return CUDA_ERROR_NOT_READY;
  void* there = mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED,
                     physical->file, 0);
  if (there == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
  ++physical->mappings;
  mappings()[address] = {bytes, physical, CU_MEM_ACCESS_FLAGS_PROT_NONE};
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemUnmap(CUdeviceptr address, std::size_t bytes) {
  const Held held(lock());
  const std::vector<CUdeviceptr> pieces = filling(address, bytes);
  if (pieces.empty()) return CUDA_ERROR_INVALID_VALUE;
  for (const CUdeviceptr piece : pieces) {
    const Mapping mapping = mappings()[piece];
    mapping.physical->device->wait(mapping.physical->device->submitted());
    mmap(reinterpret_cast<void*>(piece), mapping.bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    book().strike(piece);
    mappings().erase(piece);
    --mapping.physical->mappings;
    drop_if_unused(mapping.physical);
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemSetAccess(CUdeviceptr address, std::size_t bytes, const CUmemAccessDesc* access,
                                   std::size_t count) {
  if (access == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  const Held held(lock());
  const std::vector<CUdeviceptr> pieces = filling(address, bytes);
  if (pieces.empty()) return CUDA_ERROR_INVALID_VALUE;
  const CUmemAccess_flags flags = access[count - 1].flags;
  const bool readable = flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
  const int protection = flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE
                         : readable                                  ? PROT_READ
                                                                     : PROT_NONE;
  for (const CUdeviceptr piece : pieces) {
    Mapping& mapping = mappings()[piece];
    mprotect(reinterpret_cast<void*>(piece), mapping.bytes, protection);
    mapping.access = flags;
    // Memory that may not be touched is none, for copies and fills.
    book().strike(piece);
    Allocation allocation;
    allocation.bytes = mapping.bytes;
    allocation.device = mapping.physical->device;
    allocation.kind = Kind::kMapped;
    if (readable) book().enter(piece, allocation);
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemGetAccess(unsigned long long* flags, const CUmemLocation* where, CUdeviceptr address) {
  const Held held(lock());
  auto at = mappings().upper_bound(address);
  if (flags == nullptr || where == nullptr || at == mappings().begin()) return CUDA_ERROR_INVALID_VALUE;
  --at;
  if (address - at->first >= at->second.bytes) return CUDA_ERROR_INVALID_VALUE;
  const bool own = Driver::get().device(where->id) == at->second.physical->device;
  *flags = own ? at->second.access : CU_MEM_ACCESS_FLAGS_PROT_NONE;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* address) {
  const Held held(lock());
  const auto wanted = reinterpret_cast<CUdeviceptr>(address);
  auto at = mappings().upper_bound(wanted);
  if (handle == nullptr || at == mappings().begin()) return CUDA_ERROR_INVALID_VALUE;
  --at;
  if (wanted - at->first >= at->second.bytes) return CUDA_ERROR_INVALID_VALUE;
  ++at->second.physical->handles;
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(at->second.physical);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* how,
                                                           CUmemGenericAllocationHandle handle) {
  const Held held(lock());
  const Physical* physical = physical_of(handle);
  if (how == nullptr || physical == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *how = physical->how;
  return CUDA_SUCCESS;
}

// A file descriptor that another process may get over a socket.
SIM_EXPORT CUresult cuMemExportToShareableHandle(void* shared, CUmemGenericAllocationHandle handle,
                                                 CUmemAllocationHandleType type, unsigned long long flags) {
  const Held held(lock());
  const Physical* physical = physical_of(handle);
  if (shared == nullptr || physical == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  if ((physical->how.requestedHandleTypes & type) == 0) return CUDA_ERROR_INVALID_VALUE;
  const int file = fcntl(physical->file, F_DUPFD_CLOEXEC, 0);
  if (file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  *static_cast<int*>(shared) = file;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* shared,
                                                   CUmemAllocationHandleType type) {
  Context* context = nullptr;
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_NOT_SUPPORTED;
  if (const CUresult error = current(context)) return error;
  struct stat status {};
  const auto given = static_cast<int>(reinterpret_cast<std::intptr_t>(shared));
  if (fstat(given, &status) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (auto team = import_team(given, static_cast<std::size_t>(status.st_size))) {
    *handle = reinterpret_cast<CUmemGenericAllocationHandle>(team.release());
    return CUDA_SUCCESS;
  }
  if (!granular(static_cast<std::size_t>(status.st_size))) return CUDA_ERROR_INVALID_VALUE;
  auto* physical = new Physical;
  physical->device = context->device;
  physical->bytes = static_cast<std::size_t>(status.st_size);
  physical->how.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  physical->how.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  physical->how.location.id = context->ordinal;
  physical->how.requestedHandleTypes = type;
  physical->file = fcntl(given, F_DUPFD_CLOEXEC, 0);
  physical->charged = false;
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(physical);
  return CUDA_SUCCESS;
}
