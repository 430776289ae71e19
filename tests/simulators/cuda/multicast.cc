// SPDX-License-Identifier: GPL-3.0-or-later
//
// Multicast: a team of cards that each bind physical memory to one object. The object can be mapped, but nothing
// computes here, so what is written there is seen there alone and not in the members' memory.
#include <algorithm>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "physical.h"

#include "capture.h"

namespace simcuda {

// The file of a team is as long as the object and a page more, which all processes of the team share.
constexpr std::size_t kPage = 4096;
constexpr std::uint32_t kTeamMark = 0x5445414d;

struct TeamPage {
  std::uint32_t mark;
  std::uint32_t wanted;
  std::atomic<std::uint32_t> joined;
};

struct Binding {
  Device* device;
  std::size_t offset, bytes;
  Physical* memory;  // null: memory of a pool, which lives by its own rules
};

struct Team {
  TeamPage* page = nullptr;
  std::vector<Device*> own;  // this process' members
  std::vector<Binding> bound;

  ~Team() {
    for (const Binding& binding : bound) let_go(binding);
    if (page != nullptr) munmap(page, kPage);
  }
  static void let_go(const Binding& binding) {
    if (binding.memory == nullptr) return;
    --binding.memory->mappings;
    drop_if_unused(binding.memory);
  }
};

Physical::Physical() = default;
Physical::~Physical() = default;

bool complete(const Physical& physical) {
  return physical.team == nullptr || physical.team->page->joined.load() >= physical.team->page->wanted;
}

namespace {

std::unique_ptr<Physical> team_in(int file, std::size_t bytes) {
  void* page = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file, static_cast<off_t>(bytes));
  if (page == MAP_FAILED) return nullptr;
  auto physical = std::make_unique<Physical>();
  physical->bytes = bytes;
  physical->charged = false;
  physical->file = file;
  physical->team = std::make_unique<Team>();
  physical->team->page = static_cast<TeamPage*>(page);
  return physical;
}

bool can_multicast() {
  for (std::size_t i = 0; i < Driver::get().count(); ++i) {
    if (Driver::get().device(static_cast<CUdevice>(i))->number("multicast", 0) != 0) return true;
  }
  return false;
}

// A bind waits for the whole team, as the driver's does: another thread or process may still add its card.
CUresult await_team(CUmemGenericAllocationHandle handle) {
  while (true) {
    {
      const PhysicalHeld held(physical_lock());
      const Physical* object = physical_of(handle);
      if (object == nullptr || object->team == nullptr) return CUDA_ERROR_INVALID_VALUE;
      if (complete(*object)) return CUDA_SUCCESS;
    }
    usleep(200);
  }
}

// Under the lock.
CUresult bind(CUmemGenericAllocationHandle handle, const Binding& binding) {
  Physical* object = physical_of(handle);
  if (object == nullptr || object->team == nullptr || !granular(binding.bytes) ||
      binding.offset % kGranule != 0 || binding.bytes > object->bytes ||
      binding.offset > object->bytes - binding.bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Team& team = *object->team;
  if (std::find(team.own.begin(), team.own.end(), binding.device) == team.own.end()) {
    return CUDA_ERROR_INVALID_DEVICE;
  }
  const bool taken = std::any_of(team.bound.begin(), team.bound.end(), [&](const Binding& other) {
    return other.device == binding.device && other.offset < binding.offset + binding.bytes &&
           binding.offset < other.offset + other.bytes;
  });
  if (taken) return CUDA_ERROR_INVALID_VALUE;
  if (binding.memory != nullptr) ++binding.memory->mappings;
  team.bound.push_back(binding);
  return CUDA_SUCCESS;
}

}  // namespace

std::unique_ptr<Physical> import_team(int given, std::size_t file_bytes) {
  if (file_bytes <= kPage || file_bytes % kGranule != kPage) return nullptr;
  const int file = fcntl(given, F_DUPFD_CLOEXEC, 0);
  auto physical = team_in(file, file_bytes - kPage);
  if (physical != nullptr && physical->team->page->mark == kTeamMark) return physical;
  close(file);
  return nullptr;
}

}  // namespace simcuda

using namespace simcuda;

SIM_EXPORT CUresult cuMulticastGetGranularity(std::size_t* bytes, const CUmulticastObjectProp* how,
                                              CUmulticastGranularity_flags) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (bytes == nullptr || how == nullptr || how->numDevices == 0) return CUDA_ERROR_INVALID_VALUE;
  if (!can_multicast()) return CUDA_ERROR_NOT_SUPPORTED;
  *bytes = kGranule;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMulticastCreate(CUmemGenericAllocationHandle* handle, const CUmulticastObjectProp* how) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  if (handle == nullptr || how == nullptr || how->flags != 0 || how->numDevices == 0 || !granular(how->size)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!can_multicast()) return CUDA_ERROR_NOT_SUPPORTED;
  const auto file = static_cast<int>(syscall(SYS_memfd_create, "simulated-team", 1U));
  if (file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
  auto physical = ftruncate(file, static_cast<off_t>(how->size + kPage)) == 0 ? team_in(file, how->size) : nullptr;
  if (physical == nullptr) {
    close(file);
    return CUDA_ERROR_OPERATING_SYSTEM;
  }
  physical->how.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(how->handleTypes);
  physical->team->page->wanted = how->numDevices;
  physical->team->page->mark = kTeamMark;
  *handle = reinterpret_cast<CUmemGenericAllocationHandle>(physical.release());
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMulticastAddDevice(CUmemGenericAllocationHandle handle, CUdevice ordinal) {
  if (const CUresult error = Driver::get().usable()) return error;
  Device* device = Driver::get().device(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (device->number("multicast", 0) == 0) return CUDA_ERROR_NOT_SUPPORTED;
  const PhysicalHeld held(physical_lock());
  Physical* object = physical_of(handle);
  if (object == nullptr || object->team == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto& own = object->team->own;
  if (complete(*object) || std::find(own.begin(), own.end(), device) != own.end()) return CUDA_ERROR_INVALID_VALUE;
  own.push_back(device);
  object->device = own.front();
  ++object->team->page->joined;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMulticastBindMem(CUmemGenericAllocationHandle handle, std::size_t offset,
                                       CUmemGenericAllocationHandle from, std::size_t from_offset,
                                       std::size_t bytes, unsigned long long flags) {
  if (const CUresult error = await_team(handle)) return error;
  const PhysicalHeld held(physical_lock());
  Physical* memory = physical_of(from);
  if (flags != 0 || memory == nullptr || memory->team != nullptr || from_offset % kGranule != 0 ||
      bytes > memory->bytes || from_offset > memory->bytes - bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return bind(handle, {memory->device, offset, bytes, memory});
}

SIM_EXPORT CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle handle, std::size_t offset,
                                        CUdeviceptr address, std::size_t bytes, unsigned long long flags) {
  if (const CUresult error = await_team(handle)) return error;
  if (flags != 0 || address % kGranule != 0) return CUDA_ERROR_INVALID_VALUE;
  const PhysicalHeld held(physical_lock());
  if (Physical* memory = mapped_at(address, bytes)) return bind(handle, {memory->device, offset, bytes, memory});
  CUdeviceptr base = 0;
  Allocation allocation;
  if (!book().around(address, base, allocation) || allocation.kind != Kind::kPooled ||
      bytes > allocation.bytes - (address - base)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return bind(handle, {allocation.device, offset, bytes, nullptr});
}

SIM_EXPORT CUresult cuMulticastUnbind(CUmemGenericAllocationHandle handle, CUdevice ordinal, std::size_t offset,
                                      std::size_t bytes) {
  const Device* device = Driver::get().device(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const PhysicalHeld held(physical_lock());
  const Physical* object = physical_of(handle);
  if (object == nullptr || object->team == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto& bound = object->team->bound;
  const auto at = std::find_if(bound.begin(), bound.end(), [&](const Binding& binding) {
    return binding.device == device && binding.offset == offset && binding.bytes == bytes;
  });
  if (at == bound.end()) return CUDA_ERROR_INVALID_VALUE;
  const Binding gone = *at;
  bound.erase(at);
  Team::let_go(gone);
  return CUDA_SUCCESS;
}
