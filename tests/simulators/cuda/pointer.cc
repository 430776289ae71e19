// SPDX-License-Identifier: GPL-3.0-or-later
//
// What an address is: memory of which kind, of which card, where it begins. And memory of the application's
// that the driver is told of.
#include <cstring>

#include "book.h"
#include "capture.h"

using namespace simcuda;

namespace {

bool on_host(const Allocation& allocation) {
  return allocation.kind == Kind::kHost || allocation.kind == Kind::kRegistered;
}

// One attribute's value, as wide as the driver documents it.
struct Value {
  std::size_t width;  // 0: no such attribute, or none of this memory
  std::uint64_t number;
};

std::uint64_t as_number(const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); }

Value value_of(CUpointer_attribute which, CUdeviceptr address, CUdeviceptr base, const Allocation& what) {
  constexpr std::size_t kFlag = sizeof(bool);
  const bool pooled = what.kind == Kind::kPooled;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: {
      Context* now = nullptr;
      Context* primary = what.device->primary;
      if (primary == nullptr && current(now) == CUDA_SUCCESS) primary = now;
      return {sizeof(CUcontext), pooled || what.kind == Kind::kMapped ? 0 : as_number(primary)};
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return {sizeof(CUmemorytype), static_cast<std::uint64_t>(on_host(what) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE)};
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: return {sizeof(CUdeviceptr), address};
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      return {on_host(what) || what.kind == Kind::kManaged ? sizeof(void*) : 0, address};
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID: return {sizeof(std::uint64_t), what.id};
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: return {kFlag, 0};
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: return {kFlag, what.kind == Kind::kManaged};
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return {sizeof(int), static_cast<std::uint64_t>(what.device->ordinal)};
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: return {kFlag, what.shareable};
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: return {sizeof(CUdeviceptr), base};
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE: return {sizeof(std::size_t), what.bytes};
    case CU_POINTER_ATTRIBUTE_MAPPED: return {kFlag, 1};
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: return {sizeof(std::uint64_t), pooled ? what.pool->handle_types : 0};
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: return {kFlag, 0};
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
      return {sizeof(CUmemAccess_flags), CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: return {sizeof(CUmemoryPool), pooled ? as_number(what.pool) : 0};
    default: return {0, 0};
  }
}

// What the memory was told to be; kept for none of it.
CUresult range_attribute(void* data, std::size_t size, CUmem_range_attribute which) {
  switch (which) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
      if (size != sizeof(int)) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<int*>(data) = 0;
      return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
      if (size != sizeof(int)) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<int*>(data) = CU_DEVICE_INVALID;
      return CUDA_SUCCESS;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
      for (std::size_t i = 0; i < size / sizeof(int); ++i) static_cast<int*>(data)[i] = CU_DEVICE_INVALID;
      return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}

bool managed_range(CUdeviceptr address, std::size_t bytes) {
  CUdeviceptr base = 0;
  Allocation allocation;
  return bytes != 0 && book().around(address, base, allocation) && allocation.kind == Kind::kManaged &&
         bytes <= allocation.bytes - (address - base);
}

}  // namespace

SIM_EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute which, CUdeviceptr address) {
  CUdeviceptr base = 0;
  Allocation allocation;
  if (const CUresult error = Driver::get().usable()) return error;
  if (data == nullptr || !book().around(address, base, allocation)) return CUDA_ERROR_INVALID_VALUE;
  const Value value = value_of(which, address, base, allocation);
  if (value.width == 0) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(data, &value.number, value.width);
  return CUDA_SUCCESS;
}

// Of what isn't the driver's memory everything is null, and that is no error.
SIM_EXPORT CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* which, void** data,
                                           CUdeviceptr address) {
  CUdeviceptr base = 0;
  Allocation allocation;
  if (const CUresult error = Driver::get().usable()) return error;
  if (which == nullptr || data == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const bool known = book().around(address, base, allocation);
  if (!known) allocation.device = Driver::get().device(0);
  for (unsigned i = 0; i < count; ++i) {
    Value value = value_of(which[i], address, base, allocation);
    if (!known && which[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) value.number = static_cast<std::uint64_t>(-2);
    else if (!known) value.number = 0;
    // A device has no host pointer: null then.
    if (value.width == 0 && which[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER) value = {sizeof(void*), 0};
    if (value.width == 0) return CUDA_ERROR_INVALID_VALUE;
    std::memcpy(data[i], &value.number, value.width);
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuPointerSetAttribute(const void* value, CUpointer_attribute which, CUdeviceptr address) {
  if (value == nullptr || which != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) return CUDA_ERROR_INVALID_VALUE;
  return book().covers(address, 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemRangeGetAttribute(void* data, std::size_t size, CUmem_range_attribute which,
                                           CUdeviceptr address, std::size_t bytes) {
  if (data == nullptr || !managed_range(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return range_attribute(data, size, which);
}

SIM_EXPORT CUresult cuMemRangeGetAttributes(void** data, std::size_t* sizes, CUmem_range_attribute* which,
                                            std::size_t count, CUdeviceptr address, std::size_t bytes) {
  if (data == nullptr || sizes == nullptr || which == nullptr || !managed_range(address, bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (const CUresult error = range_attribute(data[i], sizes[i], which[i])) return error;
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAdvise_v2(CUdeviceptr address, std::size_t bytes, CUmem_advise, CUmemLocation) {
  return managed_range(address, bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

#define ATTACH(suffix, null)                                                                         \
  SIM_EXPORT CUresult cuStreamAttachMemAsync##suffix(CUstream on, CUdeviceptr address, std::size_t,  \
                                                    unsigned) {                                     \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    return managed_range(address, 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;                      \
  }
ATTACH(, NullStream::kLegacy)
ATTACH(_ptsz, NullStream::kPerThread)

SIM_EXPORT CUresult cuMemHostRegister_v2(void* begin, std::size_t bytes, unsigned flags) {
  Context* context = nullptr;
  if (begin == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  const auto address = reinterpret_cast<CUdeviceptr>(begin);
  CUdeviceptr base = 0;
  Allocation allocation;
  if (book().around(address, base, allocation)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  allocation = {};
  allocation.bytes = bytes;
  allocation.device = context->device;
  allocation.kind = Kind::kRegistered;
  allocation.flags = flags;
  book().enter(address, allocation);
  return CUDA_SUCCESS;
}

#undef cuMemHostRegister
SIM_EXPORT CUresult cuMemHostRegister(void* begin, std::size_t bytes, unsigned flags) {
  return cuMemHostRegister_v2(begin, bytes, flags);
}

SIM_EXPORT CUresult cuMemHostUnregister(void* begin) {
  const auto address = reinterpret_cast<CUdeviceptr>(begin);
  Allocation allocation;
  if (const CUresult error = Driver::get().usable()) return error;
  if (!book().find(address, allocation) || allocation.kind != Kind::kRegistered) {
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  }
  allocation.device->wait(allocation.device->submitted());
  book().strike(address);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemHostGetFlags(unsigned* flags, void* address) {
  CUdeviceptr base = 0;
  Allocation allocation;
  const bool known = book().around(reinterpret_cast<CUdeviceptr>(address), base, allocation);
  if (flags == nullptr || !known || !on_host(allocation)) return CUDA_ERROR_INVALID_VALUE;
  *flags = allocation.flags;
  return CUDA_SUCCESS;
}
