// SPDX-License-Identifier: GPL-3.0-or-later
//
// Memory that is allocated and freed at the call, copies and fills.
#include "book.h"
#include "capture.h"
#include "operation.h"

using namespace simcuda;

namespace {

CUresult allocate(CUdeviceptr* address, std::size_t bytes, Kind kind) {
  Context* context = nullptr;
  if (address == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  const CUresult error = book().allocate(*context->device, bytes, kind, nullptr, *address);
  if (error == CUDA_SUCCESS) book().own(*address, context);
  return error;
}

// Freeing waits for the device, as the real driver does for memory that a kernel may still use.
CUresult release(CUdeviceptr address) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  if (address == 0) return CUDA_SUCCESS;
  if (const CUresult error = unsafe_while_capturing()) return error;
  Allocation allocation;
  if (!book().find(address, allocation)) return CUDA_ERROR_INVALID_VALUE;
  if (allocation.kind == Kind::kMapped || allocation.kind == Kind::kImported ||
      allocation.kind == Kind::kRegistered) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  allocation.device->wait(allocation.device->submitted());
  if (allocation.kind != Kind::kGraph) return book().release(address);
  return book().set_graph_resident(address, false);
}

CUresult allocate_host(void** address, std::size_t bytes) {
  CUdeviceptr found = 0;
  if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult error = allocate(&found, bytes, Kind::kHost);
  if (error == CUDA_SUCCESS) *address = reinterpret_cast<void*>(found);
  return error;
}

enum class When { kNow, kInStream };

// Copies happen at once, in the order of the calls, and take no time of the card; a synchronous one
// first waits for what the stream holds, and an asynchronous one leaves a mark in it.
CUresult copy(const Copy& what, When when, CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (what.WidthInBytes == 0 || what.Height == 0 || what.Depth == 0) return CUDA_SUCCESS;
  if (const CUresult error = check(what)) return error;
  if (when == When::kInStream) return enqueue(what, *stream);
  return copy_now(what, *stream);
}

CUresult copy(void* to, const void* from, std::size_t bytes, bool to_card, bool from_card, When when,
              CUstream on, NullStream null) {
  return copy(linear_copy(to, from, bytes, to_card, from_card), when, on, null);
}

// A 2D copy is a 3D copy of one slice.
CUresult copy(const CUDA_MEMCPY2D* from, When when, CUstream on, NullStream null) {
  if (from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Copy what{};
  what.srcXInBytes = from->srcXInBytes;
  what.srcY = from->srcY;
  what.srcMemoryType = from->srcMemoryType;
  what.srcHost = from->srcHost;
  what.srcDevice = from->srcDevice;
  what.srcArray = from->srcArray;
  what.srcPitch = from->srcPitch;
  what.dstXInBytes = from->dstXInBytes;
  what.dstY = from->dstY;
  what.dstMemoryType = from->dstMemoryType;
  what.dstHost = from->dstHost;
  what.dstDevice = from->dstDevice;
  what.dstArray = from->dstArray;
  what.dstPitch = from->dstPitch;
  what.WidthInBytes = from->WidthInBytes;
  what.Height = from->Height;
  what.Depth = 1;
  return copy(what, when, on, null);
}

CUresult copy(const CUDA_MEMCPY3D* what, When when, CUstream on, NullStream null) {
  return what != nullptr ? copy(*what, when, on, null) : CUDA_ERROR_INVALID_VALUE;
}

void* host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult set(const Fill& what, When when, CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (what.count == 0 || what.rows == 0) return CUDA_SUCCESS;
  if (const CUresult error = check(what)) return error;
  if (when == When::kNow) {
    if (const CUresult error = wait_for_stream(*stream)) return error;
  }
  return enqueue(what, *stream);
}

bool managed(CUdeviceptr address, std::size_t bytes) {
  CUdeviceptr base = 0;
  Allocation allocation;
  return book().around(address, base, allocation) && allocation.kind == Kind::kManaged &&
         bytes <= allocation.bytes - (address - base);
}

// Without room on the card managed memory stays where it is.
CUresult prefetch(CUdeviceptr address, std::size_t bytes, bool to_card, CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (bytes == 0 || !managed(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = unsafe_while_capturing()) return error;
  book().move(address, to_card);
  return CUDA_SUCCESS;
}

constexpr NullStream kLegacy = NullStream::kLegacy;
constexpr NullStream kOwn = NullStream::kPerThread;

}  // namespace

SIM_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
  return allocate(address, bytes, Kind::kDevice);
}

SIM_EXPORT CUresult cuMemFree_v2(CUdeviceptr address) { return release(address); }

SIM_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr* address, std::size_t* pitch, std::size_t width,
                                       std::size_t height, unsigned element) {
  if (pitch == nullptr || width == 0 || height == 0) return CUDA_ERROR_INVALID_VALUE;
  if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
  const std::size_t row = rounded(width, kAlignment);
  if (height > SIZE_MAX / row) return CUDA_ERROR_INVALID_VALUE;
  *pitch = row;
  return allocate(address, row * height, Kind::kDevice);
}

// Managed memory is on the host until a kernel gets a pointer to it or it is prefetched to the card.
SIM_EXPORT CUresult cuMemAllocManaged(CUdeviceptr* address, std::size_t bytes, unsigned flags) {
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) return CUDA_ERROR_INVALID_VALUE;
  return allocate(address, bytes, Kind::kManaged);
}

SIM_EXPORT CUresult cuMemAllocHost_v2(void** address, std::size_t bytes) {
  return allocate_host(address, bytes);
}

SIM_EXPORT CUresult cuMemHostAlloc(void** address, std::size_t bytes, unsigned) {
  return allocate_host(address, bytes);
}

SIM_EXPORT CUresult cuMemFreeHost(void* address) {
  return release(reinterpret_cast<CUdeviceptr>(address));
}

SIM_EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* address, void* from, unsigned) {
  if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *address = reinterpret_cast<CUdeviceptr>(from);
  return book().covers(*address, 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
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
  Allocation allocation;
  if (const CUresult error = Driver::get().usable()) return error;
  if (!book().around(address, begin, allocation)) return CUDA_ERROR_NOT_FOUND;
  if (base != nullptr) *base = begin;
  if (bytes != nullptr) *bytes = allocation.bytes;
  return CUDA_SUCCESS;
}

// Where managed memory shall be. Moving it takes no time of the card.
#define PREFETCH(suffix, null)                                                                       \
  SIM_EXPORT CUresult cuMemPrefetchAsync##suffix(CUdeviceptr address, std::size_t bytes,             \
                                                CUdevice where, CUstream on) {                      \
    return prefetch(address, bytes, where != CU_DEVICE_CPU, on, null);                               \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemPrefetchAsync_v2##suffix(CUdeviceptr address, std::size_t bytes,          \
                                                   CUmemLocation where, unsigned, CUstream on) {    \
    return prefetch(address, bytes, where.type == CU_MEM_LOCATION_TYPE_DEVICE, on, null);            \
  }
PREFETCH(, kLegacy)
PREFETCH(_ptsz, kOwn)

SIM_EXPORT CUresult cuMemAdvise(CUdeviceptr address, std::size_t bytes, CUmem_advise, CUdevice) {
  return managed(address, bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

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

#define FILL(bits, type, sync, async, null)                                                          \
  SIM_EXPORT CUresult cuMemsetD##bits##_v2##sync(CUdeviceptr to, type value, std::size_t count) {    \
    return set({to, 0, value, bits / 8, count, 1}, When::kNow, nullptr, null);                       \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD2D##bits##_v2##sync(CUdeviceptr to, std::size_t pitch, type value,    \
                                                  std::size_t count, std::size_t rows) {            \
    return set({to, pitch, value, bits / 8, count, rows}, When::kNow, nullptr, null);                \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD##bits##Async##async(CUdeviceptr to, type value, std::size_t count,   \
                                                   CUstream on) {                                   \
    return set({to, 0, value, bits / 8, count, 1}, When::kInStream, on, null);                       \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemsetD2D##bits##Async##async(                                               \
      CUdeviceptr to, std::size_t pitch, type value, std::size_t count, std::size_t rows,            \
      CUstream on) {                                                                                 \
    return set({to, pitch, value, bits / 8, count, rows}, When::kInStream, on, null);                \
  }
#define FILLS(sync, async, null)                                                                     \
  FILL(8, unsigned char, sync, async, null)                                                          \
  FILL(16, unsigned short, sync, async, null)                                                        \
  FILL(32, unsigned, sync, async, null)
FILLS(, , kLegacy)
FILLS(_ptds, _ptsz, kOwn)

// Copies with a shape.
#define SHAPED(sync, async, null)                                                                    \
  SIM_EXPORT CUresult cuMemcpy2D_v2##sync(const CUDA_MEMCPY2D* what) {                               \
    return copy(what, When::kNow, nullptr, null);                                                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy2DUnaligned_v2##sync(const CUDA_MEMCPY2D* what) {                      \
    return copy(what, When::kNow, nullptr, null);                                                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy3D_v2##sync(const CUDA_MEMCPY3D* what) {                               \
    return copy(what, When::kNow, nullptr, null);                                                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy2DAsync_v2##async(const CUDA_MEMCPY2D* what, CUstream on) {            \
    return copy(what, When::kInStream, on, null);                                                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuMemcpy3DAsync_v2##async(const CUDA_MEMCPY3D* what, CUstream on) {            \
    return copy(what, When::kInStream, on, null);                                                    \
  }
SHAPED(, , kLegacy)
SHAPED(_ptds, _ptsz, kOwn)
