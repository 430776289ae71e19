// SPDX-License-Identifier: GPL-3.0-or-later
//
// libruntime.so: contexts, streams, events, memory and launches on a simulated NPU.
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <unordered_map>

#include "device.h"

using namespace simacl;

#define SIM_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

thread_local Context* current = nullptr;

template <class T>
T* alive(void* handle) {
  auto* const object = static_cast<T*>(handle);
  return object != nullptr && object->magic == T::kAlive ? object : nullptr;
}

// The stream a handle means: null is the context's own.
rtError_t stream_of(void* handle, Stream*& stream) {
  if (handle == nullptr) {
    if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
    stream = &current->usual;
    return RT_ERROR_NONE;
  }
  stream = alive<Stream>(handle);
  return stream == nullptr ? ACL_ERROR_RT_INVALID_HANDLE : RT_ERROR_NONE;
}

rtError_t launch(void* handle, sim::Nanos duration_ns) {
  Stream* stream = nullptr;
  if (const rtError_t error = stream_of(handle, stream)) return error;
  Device& device = *stream->context->device;
  stream->bound = device.submit(sim::ItemKind::kWork, duration_ns < 0 ? device.kernel_ns() : duration_ns);
  return RT_ERROR_NONE;
}

sim::Nanos first_word(const void* args, std::size_t size) {
  std::int64_t ns = -1;
  if (args != nullptr && size >= sizeof(ns)) std::memcpy(&ns, args, sizeof(ns));
  return ns;
}

// How long one launch runs: what its arguments begin with, nanoseconds, where they are handed over as bytes
// and a size; else the profile's default_kernel_ns.
sim::Nanos duration_of(const void* args, std::uint32_t size) { return first_word(args, size); }

sim::Nanos duration_of_block(const void* block) {
  rtArgsExHead_t head{};
  if (block == nullptr) return -1;
  std::memcpy(&head, block, sizeof(head));
  return first_word(head.args, head.argsSize);
}

// Until `bound` has completed or so many milliseconds have passed; -1 is for ever.
bool wait_for(const Device& device, std::uint64_t bound, std::int32_t milliseconds) {
  if (milliseconds < 0) {
    device.wait(bound);
    return true;
  }
  const sim::Nanos end = sim::monotonic_now() + std::int64_t{milliseconds} * 1'000'000;
  while (!device.completed(bound)) {
    if (sim::monotonic_now() >= end) return false;
    const timespec pause{0, 20'000};
    nanosleep(&pause, nullptr);
  }
  return true;
}

// Addresses and physical handles that stand for charged memory.
class Book {
 public:
  rtError_t allocate(void** address, std::uint64_t bytes) {
    if (address == nullptr || bytes == 0) return ACL_ERROR_RT_PARAM_INVALID;
    if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
    Device& device = *current->device;
    const std::uint64_t cost = charged(bytes);
    if (!device.take(cost)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    // Lazily backed, so that copies really copy and nothing else costs the host memory.
    void* const made = mmap(nullptr, cost, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) {
      device.give(cost);
      return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    const std::lock_guard<std::mutex> hold(lock_);
    held_[made] = {&device, cost};
    *address = made;
    return RT_ERROR_NONE;
  }

  // Waits for the device, as work under way may use the memory.
  rtError_t release(void* address) {
    Held held{};
    {
      const std::lock_guard<std::mutex> hold(lock_);
      const auto found = held_.find(address);
      if (found == held_.end()) return ACL_ERROR_RT_PARAM_INVALID;
      held = found->second;
      held_.erase(found);
    }
    held.device->wait(held.device->submitted());
    munmap(address, held.cost);
    held.device->give(held.cost);
    return RT_ERROR_NONE;
  }

 private:
  struct Held {
    Device* device;
    std::uint64_t cost;
  };
  std::mutex lock_;
  std::unordered_map<void*, Held> held_;
};

Book& book() {
  static auto* const one = new Book;
  return *one;
}

rtError_t make_current(std::int32_t ordinal) {
  if (const rtError_t error = Runtime::get().open()) return error;
  Device* const device = Runtime::get().device(ordinal);
  if (device == nullptr) return ACL_ERROR_RT_INVALID_DEVICEID;
  if (!device->take_context()) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  current = Runtime::get().primary(ordinal);
  return RT_ERROR_NONE;
}

}  // namespace

SIM_EXPORT rtError_t rtInit(void) { return Runtime::get().open(); }

SIM_EXPORT rtError_t rtGetDeviceCount(std::int32_t* count) {
  if (count == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  const rtError_t error = Runtime::get().open();
  *count = error == RT_ERROR_NONE ? Runtime::get().count() : 0;
  return error;
}

SIM_EXPORT rtError_t rtSetDevice(std::int32_t device) { return make_current(device); }

SIM_EXPORT rtError_t rtGetDevice(std::int32_t* device) {
  if (device == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
  *device = current->ordinal;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtDeviceReset(std::int32_t device) {
  if (Runtime::get().device(device) == nullptr) return ACL_ERROR_RT_INVALID_DEVICEID;
  current = nullptr;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtGetDevicePhyIdByIndex(std::uint32_t index, std::uint32_t* physical) {
  if (const rtError_t error = Runtime::get().open()) return error;
  const Device* const device = Runtime::get().device(static_cast<std::int32_t>(index));
  if (device == nullptr) return ACL_ERROR_RT_INVALID_DEVICEID;
  *physical = device->info().minor;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtDeviceSynchronize(void) {
  if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
  current->device->wait(current->device->submitted());
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtCtxCreate(void** context, std::uint32_t, std::int32_t device) {
  if (context == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (const rtError_t error = make_current(device)) return error;
  auto* const made = new Context;
  made->ordinal = device;
  made->device = Runtime::get().device(device);
  made->usual.context = made;
  *context = current = made;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtCtxDestroy(void* handle) {
  auto* const context = alive<Context>(handle);
  if (context == nullptr || context == Runtime::get().primary(context->ordinal)) return ACL_ERROR_RT_INVALID_HANDLE;
  context->device->wait(context->device->submitted());
  if (current == context) current = nullptr;
  context->magic = 0;
  delete context;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtCtxSetCurrent(void* handle) {
  auto* const context = alive<Context>(handle);
  if (context == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  current = context;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtCtxGetCurrent(void** context) {
  if (context == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
  *context = current;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtStreamCreate(void** stream, std::int32_t) {
  if (stream == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
  auto* const made = new Stream;
  made->context = current;
  *stream = made;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtStreamDestroy(void* handle) {
  auto* const stream = alive<Stream>(handle);
  if (stream == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  stream->context->device->wait(stream->bound);
  stream->magic = 0;
  delete stream;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtStreamSynchronizeWithTimeout(void* handle, std::int32_t milliseconds) {
  Stream* stream = nullptr;
  if (const rtError_t error = stream_of(handle, stream)) return error;
  const bool done = wait_for(*stream->context->device, stream->bound, milliseconds);
  return done ? RT_ERROR_NONE : ACL_ERROR_RT_STREAM_SYNC_TIMEOUT;
}

SIM_EXPORT rtError_t rtStreamSynchronize(void* stream) { return rtStreamSynchronizeWithTimeout(stream, -1); }

SIM_EXPORT rtError_t rtStreamWaitEvent(void* handle, void* which) {
  Stream* stream = nullptr;
  if (const rtError_t error = stream_of(handle, stream)) return error;
  const auto* const event = alive<Event>(which);
  if (event == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  stream->bound = std::max(stream->bound.load(), event->bound);
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtEventCreate(void** event) {
  if (event == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  *event = new Event;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtEventDestroy(void* handle) {
  auto* const event = alive<Event>(handle);
  if (event == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  event->magic = 0;
  delete event;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtEventRecord(void* handle, void* on) {
  Stream* stream = nullptr;
  if (const rtError_t error = stream_of(on, stream)) return error;
  auto* const event = alive<Event>(handle);
  if (event == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  event->device = stream->context->device;
  event->bound = stream->bound = event->device->submit(sim::ItemKind::kMark, 0);
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtEventSynchronizeWithTimeout(void* handle, std::int32_t milliseconds) {
  const auto* const event = alive<Event>(handle);
  if (event == nullptr) return ACL_ERROR_RT_INVALID_HANDLE;
  if (event->bound == 0 || wait_for(*event->device, event->bound, milliseconds)) return RT_ERROR_NONE;
  return ACL_ERROR_RT_EVENT_SYNC_TIMEOUT;
}

SIM_EXPORT rtError_t rtEventSynchronize(void* event) { return rtEventSynchronizeWithTimeout(event, -1); }

SIM_EXPORT rtError_t rtEventQueryStatus(void* handle, std::int32_t* status) {
  const auto* const event = alive<Event>(handle);
  if (event == nullptr || status == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  *status = event->bound == 0 || event->device->completed(event->bound) ? 1 : 0;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtEventElapsedTime(float* milliseconds, void* start, void* end) {
  const auto* const first = alive<Event>(start);
  const auto* const last = alive<Event>(end);
  if (milliseconds == nullptr || first == nullptr || last == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (first->bound == 0 || last->bound == 0) return ACL_ERROR_RT_PARAM_INVALID;
  if (first->device != last->device || !last->device->completed(last->bound)) return ACL_ERROR_RT_PARAM_INVALID;
  if (last->device->submitted() - first->bound >= sim::kQueueDepth) return ACL_ERROR_RT_PARAM_INVALID;
  *milliseconds = static_cast<float>(last->device->end_of(last->bound) - first->device->end_of(first->bound)) / 1e6F;
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtMalloc(void** address, std::uint64_t size, std::uint32_t, std::uint16_t) {
  return book().allocate(address, size);
}

SIM_EXPORT rtError_t rtMallocCached(void** address, std::uint64_t size, std::uint32_t, std::uint16_t) {
  return book().allocate(address, size);
}

SIM_EXPORT rtError_t rtMallocManaged(void** address, std::uint64_t size, std::uint32_t, std::uint16_t) {
  return book().allocate(address, size);
}

SIM_EXPORT rtError_t rtFree(void* address) { return book().release(address); }

SIM_EXPORT rtError_t rtDvppMalloc(void** address, std::uint64_t size, std::uint16_t) {
  return book().allocate(address, size);
}

SIM_EXPORT rtError_t rtDvppMallocWithFlag(void** address, std::uint64_t size, std::uint32_t, std::uint16_t) {
  return book().allocate(address, size);
}

SIM_EXPORT rtError_t rtDvppFree(void* address) { return book().release(address); }

SIM_EXPORT rtError_t rtMallocPhysical(void** handle, std::size_t size, void*, std::uint64_t) {
  return book().allocate(handle, size);
}

SIM_EXPORT rtError_t rtFreePhysical(void* handle) { return book().release(handle); }

SIM_EXPORT rtError_t rtMemGetInfoEx(std::uint32_t, std::size_t* free_bytes, std::size_t* total) {
  if (free_bytes == nullptr || total == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (current == nullptr) return ACL_ERROR_RT_CONTEXT_NULL;
  *free_bytes = current->device->free_bytes();
  *total = current->device->total_bytes();
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
  return rtMemGetInfoEx(0, free_bytes, total);
}

SIM_EXPORT rtError_t rtMemcpyAsync(void* to, std::uint64_t most, const void* from, std::uint64_t size,
                                   std::uint32_t, void* handle) {
  Stream* stream = nullptr;
  if (const rtError_t error = stream_of(handle, stream)) return error;
  if (to == nullptr || from == nullptr || size > most) return ACL_ERROR_RT_PARAM_INVALID;
  std::memmove(to, from, size);
  stream->bound = stream->context->device->submit(sim::ItemKind::kMark, 0);
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtMemcpy(void* to, std::uint64_t most, const void* from, std::uint64_t size, std::uint32_t) {
  if (to == nullptr || from == nullptr || size > most) return ACL_ERROR_RT_PARAM_INVALID;
  std::memmove(to, from, size);
  return RT_ERROR_NONE;
}

SIM_EXPORT rtError_t rtMemset(void* to, std::uint64_t most, std::uint32_t value, std::uint64_t size) {
  if (to == nullptr || size > most) return ACL_ERROR_RT_PARAM_INVALID;
  std::memset(to, static_cast<int>(value), size);
  return RT_ERROR_NONE;
}

// The launches. Two of them carry a duration: as bytes and a size, or as an args block; see duration_of().
namespace {
template <class... All>
sim::Nanos asked(All...) {
  return -1;
}
sim::Nanos asked(const void*, std::uint32_t, void* args, std::uint32_t size, void*, void*) {
  return duration_of(args, size);
}
sim::Nanos asked(void*, std::uint32_t, const void* block, void*, const void*) { return duration_of_block(block); }
}  // namespace

#define LAUNCH(name, parameters, arguments) \
  SIM_EXPORT rtError_t name parameters { return launch(stream, asked arguments); }
#include "xpu_ascend/launches.def"
#undef LAUNCH
