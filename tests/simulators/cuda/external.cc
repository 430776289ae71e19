// SPDX-License-Identifier: GPL-3.0-or-later
//
// Memory of another API, imported by a file descriptor. It was taken from the card by whoever made it, so
// nothing is charged here.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "book.h"
#include "capture.h"

using namespace simcuda;

namespace {

struct External {
  static constexpr std::uint32_t kAlive = 0x45585445;
  std::uint32_t magic = kAlive;
  Device* device = nullptr;
  int file = -1;
  std::size_t bytes = 0;
};

bool long_enough(int file, std::size_t bytes) {
  struct stat status {};
  return fstat(file, &status) == 0 && bytes != 0 && static_cast<std::size_t>(status.st_size) >= bytes;
}

}  // namespace

SIM_EXPORT CUresult cuImportExternalMemory(CUexternalMemory* handle, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC* from) {
  Context* context = nullptr;
  if (handle == nullptr || from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (from->type != CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD) return CUDA_ERROR_NOT_SUPPORTED;
  if ((from->flags & ~CUDA_EXTERNAL_MEMORY_DEDICATED) != 0 || !long_enough(from->handle.fd, from->size)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto* external = new External;
  external->device = context->device;
  external->file = from->handle.fd;  // the driver's own from now on
  external->bytes = from->size;
  *handle = reinterpret_cast<CUexternalMemory>(external);
  return CUDA_SUCCESS;
}

// The address is let go of by cuMemFree, whenever the object itself is destroyed.
SIM_EXPORT CUresult cuExternalMemoryGetMappedBuffer(CUdeviceptr* address, CUexternalMemory handle,
                                                    const CUDA_EXTERNAL_MEMORY_BUFFER_DESC* what) {
  const External* external = alive<External>(handle);
  if (external == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (address == nullptr || what == nullptr || what->flags != 0 || what->size == 0 ||
      what->size > external->bytes || what->offset > external->bytes - what->size ||
      what->offset % static_cast<std::size_t>(getpagesize()) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  void* there = mmap(nullptr, what->size, PROT_READ | PROT_WRITE, MAP_SHARED, external->file,
                     static_cast<off_t>(what->offset));
  if (there == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
  Allocation allocation;
  allocation.bytes = what->size;
  allocation.device = external->device;
  allocation.kind = Kind::kForeign;
  *address = reinterpret_cast<CUdeviceptr>(there);
  book().enter(*address, allocation);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDestroyExternalMemory(CUexternalMemory handle) {
  External* external = alive<External>(handle);
  if (external == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  close(external->file);
  external->magic = 0;
  delete external;
  return CUDA_SUCCESS;
}
