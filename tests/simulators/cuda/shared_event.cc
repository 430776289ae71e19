// SPDX-License-Identifier: GPL-3.0-or-later
#include "shared_event.h"

#include <cstring>

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "capture.h"
#include "operation.h"

namespace simcuda {
namespace {

constexpr std::size_t kSlot = 64;
constexpr std::size_t kSlots = 16384;
constexpr std::uint32_t kMark = 0x49504345;

struct Handle {
  std::uint32_t mark;
  std::int32_t pid;
  std::int32_t file;
  std::uint32_t slot;
};
static_assert(sizeof(Handle) <= sizeof(CUipcEventHandle));

// The file of this process' own; made when it is first needed, never given up.
struct OwnFile {
  std::mutex lock;
  int file = -1;
  char* slots = nullptr;
};

OwnFile& own_file() {
  static auto* const only = new OwnFile;
  return *only;
}

bool open_own(OwnFile& own) {
  if (own.slots != nullptr) return true;
  own.file = static_cast<int>(syscall(SYS_memfd_create, "simulated-events", 1U));
  if (own.file < 0 || ftruncate(own.file, kSlots * kSlot) != 0) return false;
  void* there = mmap(nullptr, kSlots * kSlot, PROT_READ | PROT_WRITE, MAP_SHARED, own.file, 0);
  if (there == MAP_FAILED) return false;
  own.slots = static_cast<char*>(there);
  return true;
}

bool is_own(const OwnFile& own, const SharedEvent* event) {
  const auto* at = reinterpret_cast<const char*>(event);
  return own.slots != nullptr && at >= own.slots && at < own.slots + kSlots * kSlot;
}

// The page in which another process' slot lies; as for memory, he must be visible under his pid.
SharedEvent* map_foreign(const Handle& handle) {
  const std::string path = "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  const auto page = static_cast<std::size_t>(getpagesize());
  const std::size_t offset = handle.slot * kSlot;
  void* there = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED, file, static_cast<off_t>(offset / page * page));
  close(file);
  if (there == MAP_FAILED) return nullptr;
  return reinterpret_cast<SharedEvent*>(static_cast<char*>(there) + offset % page);
}

struct Wait {
  Device* device;
  sim::CardView::Point point;

  static void run(void* own) {
    const std::unique_ptr<Wait> wait(static_cast<Wait*>(own));
    wait->device->wait_for(wait->point);
  }
};

}  // namespace

// A writer killed in between leaves the sequence odd, and the next record's writer takes it from there.
void publish(SharedEvent& event, const sim::CardView::Point& point, const char* card) {
  event.sequence.store(event.sequence.load() | 1, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_release);
  event.point = point;
  std::memcpy(event.card, card, sizeof(event.card));
  event.sequence.fetch_add(1, std::memory_order_release);
}

bool recorded(SharedEvent& event, Device*& device, sim::CardView::Point& point) {
  char card[sizeof(event.card)];
  // A writer that died in the middle is not waited for: what it wrote is no record then.
  for (int tries = 0;; ++tries) {
    const std::uint32_t before = event.sequence.load(std::memory_order_acquire);
    point = event.point;
    std::memcpy(card, event.card, sizeof(card));
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((before & 1) == 0 && event.sequence.load(std::memory_order_relaxed) == before) break;
    if (tries == 1000) return false;
    sched_yield();
  }
  card[sizeof(card) - 1] = '\0';
  device = point.bound != 0 && point.seat < sim::kMaxProcesses ? Driver::get().device_at(card) : nullptr;
  return device != nullptr;
}

SharedEvent* make_shared_event() {
  OwnFile& own = own_file();
  const std::lock_guard<std::mutex> held(own.lock);
  if (!open_own(own)) return nullptr;
  for (std::size_t i = 0; i < kSlots; ++i) {
    auto* event = reinterpret_cast<SharedEvent*>(own.slots + i * kSlot);
    if (event->used != 0) continue;
    event->used = 1;
    event->point = {};
    return event;
  }
  return nullptr;
}

void drop_shared_event(SharedEvent* event) {
  OwnFile& own = own_file();
  const std::lock_guard<std::mutex> held(own.lock);
  if (is_own(own, event)) {
    event->used = 0;
    return;
  }
  const auto page = static_cast<std::uintptr_t>(getpagesize());
  munmap(reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(event) / page * page), page);
}

CUresult query_shared(SharedEvent& event) {
  Device* device = nullptr;
  sim::CardView::Point point{};
  return !recorded(event, device, point) || device->reached(point) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

void wait_shared(SharedEvent& event) {
  Device* device = nullptr;
  sim::CardView::Point point{};
  if (recorded(event, device, point)) device->wait_for(point);
}

CUresult await_shared(SharedEvent& event, Stream& stream) {
  Device& here = *stream.context->device;
  Device* device = nullptr;
  sim::CardView::Point point{};
  if (!recorded(event, device, point)) return CUDA_SUCCESS;
  if ((device == &here && here.own(point)) || device->reached(point)) {
    here.submit(sim::ItemKind::kMark, 0, stream);
    return CUDA_SUCCESS;
  }
  queue_host_call({Wait::run, new Wait{device, point}}, stream);
  return CUDA_SUCCESS;
}

}  // namespace simcuda

using namespace simcuda;

SIM_EXPORT CUresult cuIpcGetEventHandle(CUipcEventHandle* out, CUevent from) {
  if (const CUresult error = Driver::get().usable()) return error;
  const Event* event = alive<Event>(from);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  OwnFile& own = own_file();
  const std::lock_guard<std::mutex> held(own.lock);
  if (out == nullptr || event->shared == nullptr || !is_own(own, event->shared)) return CUDA_ERROR_INVALID_VALUE;
  const auto offset = static_cast<std::size_t>(reinterpret_cast<char*>(event->shared) - own.slots);
  const Handle handle{kMark, getpid(), own.file, static_cast<std::uint32_t>(offset / kSlot)};
  *out = {};
  std::memcpy(out, &handle, sizeof(handle));
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle from) {
  Context* context = nullptr;
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  Handle handle{};
  std::memcpy(&handle, &from, sizeof(handle));
  if (handle.mark != kMark || handle.slot >= kSlots) return CUDA_ERROR_INVALID_VALUE;
  if (handle.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  SharedEvent* shared = map_foreign(handle);
  if (shared == nullptr) return CUDA_ERROR_MAP_FAILED;
  auto* event = new Event;
  event->context = context;
  event->flags = CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
  event->shared = shared;
  *out = reinterpret_cast<CUevent>(event);
  return CUDA_SUCCESS;
}
