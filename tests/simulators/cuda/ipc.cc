// SPDX-License-Identifier: GPL-3.0-or-later
//
// Memory of another process. A handle names a part of its maker's memory file; the importer maps the
// same file, so both see the same bytes, and the card's memory stays charged to the maker.
#include <algorithm>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "book.h"
#include "capture.h"

using namespace simcuda;

namespace {

constexpr std::uint32_t kMark = 0x49504348;

struct Handle {
  std::uint32_t mark;
  std::int32_t pid;
  std::int32_t file;
  std::uint64_t offset;
  std::uint64_t bytes;
  char card[16];  // its PCI address
};
static_assert(sizeof(Handle) <= sizeof(CUipcMemHandle));

// The importer must be allowed to look into the maker's process and see it under the same pid, as is so
// for processes of one user in one pid namespace. (The real driver asks for as much.)
void* map_shared(const Handle& handle) {
  const std::string path =
      "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return MAP_FAILED;
  void* address = mmap(nullptr, handle.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file,
                       static_cast<off_t>(handle.offset));
  close(file);
  return address;
}

}  // namespace

SIM_EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle* out, CUdeviceptr address) {
  if (const CUresult error = Driver::get().usable()) return error;
  CUdeviceptr base = 0;
  Allocation allocation;
  if (out == nullptr || !book().around(address, base, allocation) || !allocation.shareable) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Handle handle{kMark, getpid(), book().memory_file(), allocation.offset, allocation.bytes, {}};
  std::memcpy(handle.card, allocation.device->info().pci_address, sizeof(handle.card));
  *out = {};
  std::memcpy(out, &handle, sizeof(handle));
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* address, CUipcMemHandle from, unsigned flags) {
  Context* context = nullptr;
  if (address == nullptr || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  Handle handle{};
  std::memcpy(&handle, &from, sizeof(handle));
  if (handle.mark != kMark) return CUDA_ERROR_INVALID_VALUE;
  // A process can't import what it has itself.
  if (handle.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  void* there = map_shared(handle);
  if (there == MAP_FAILED) return CUDA_ERROR_MAP_FAILED;
  Allocation allocation;
  allocation.bytes = handle.bytes;
  allocation.device = context->device;
  allocation.kind = Kind::kImported;
  *address = reinterpret_cast<CUdeviceptr>(there);
  book().enter(*address, allocation);
  return CUDA_SUCCESS;
}

#undef cuIpcOpenMemHandle
SIM_EXPORT CUresult cuIpcOpenMemHandle(CUdeviceptr* address, CUipcMemHandle from, unsigned flags) {
  return cuIpcOpenMemHandle_v2(address, from, flags);
}

SIM_EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  if (const CUresult error = Driver::get().usable()) return error;
  Allocation allocation;
  if (!book().find(address, allocation) || allocation.kind != Kind::kImported) return CUDA_ERROR_INVALID_VALUE;
  allocation.device->wait(allocation.device->submitted());
  book().strike(address);
  munmap(reinterpret_cast<void*>(address), allocation.bytes);
  return CUDA_SUCCESS;
}
