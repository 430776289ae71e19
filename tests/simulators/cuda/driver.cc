// SPDX-License-Identifier: GPL-3.0-or-later
#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "book.h"
#include "operation.h"
#include "shared_event.h"
#include "vendor.h"
#include "wire.h"

namespace simcuda {

thread_local ContextStack contexts;

Device::Device(const sim::Session& session, std::size_t index)
    : card_(session.fleet(), index, session.seat(), session.ticket()),
      whole_(card_.info().part_of == sim::kWhole ? &card_.info() : &session.fleet().card[card_.info().part_of].info),
      profile_(sim::parse_settings(card_.info().attributes, card_.info().profile)),
      default_kernel_ns_(number("default_kernel_ns", 5000)) {}

long Device::number(const char* key, long otherwise) const {
  const auto found = profile_.find(key);
  return found == profile_.end() ? otherwise : std::strtol(found->second.c_str(), nullptr, 10);
}

std::uint64_t Device::submit_held(sim::ItemKind kind, sim::Nanos duration_ns, Stream& stream) {
  card_.make_room();
  const std::uint64_t item = card_.submitted();
  auto& place = awaited_[item % sim::kQueueDepth];
  if (place.load(std::memory_order_acquire) != nullptr) {
    const std::lock_guard<std::mutex> held(events_lock_);
    if (Event* event = place.load()) {
      event->end_ns = card_.end_of(event->item);
      place.store(nullptr);
    }
  }
  card_.submit(kind, duration_ns, stream.number);
  stream.bound.store(item + 1, std::memory_order_release);
  return item;
}

std::uint64_t Device::submit(sim::ItemKind kind, sim::Nanos duration_ns, Stream& stream) {
  const std::lock_guard<std::mutex> held(submitting_);
  return submit_held(kind, duration_ns, stream);
}

void Device::record(Event& event, Stream& stream) {
  const std::lock_guard<std::mutex> held(submitting_);
  forget(event);
  const std::uint64_t item = submit_held(sim::ItemKind::kMark, 0, stream);
  const std::lock_guard<std::mutex> also(events_lock_);
  event.item = item;
  event.end_ns = 0;
  event.recorded = true;
  awaited_[item % sim::kQueueDepth].store(&event, std::memory_order_release);
  if (event.shared != nullptr) publish(*event.shared, card_.point(item + 1), info().pci_address);
}

void Device::forget(Event& event) {
  const std::lock_guard<std::mutex> held(events_lock_);
  auto& place = awaited_[event.item % sim::kQueueDepth];
  if (place.load() == &event) place.store(nullptr);
}

sim::Nanos Device::end_of(const Event& event) {
  const std::lock_guard<std::mutex> held(events_lock_);
  return event.end_ns != 0 ? event.end_ns : card_.end_of(event.item);
}

Driver& Driver::get() {
  static Driver* const driver = new Driver;
  return *driver;
}

// In a child the inherited connection would make the parent look alive after its death, and the
// inherited queue has the parent as its only writer.
void Driver::before_child() {
  Driver& driver = get();
  driver.forked_ = true;
  driver.session_.close();
}

CUresult Driver::init() {
  const std::lock_guard<std::mutex> held(init_lock_);
  if (forked_) return CUDA_ERROR_NOT_INITIALIZED;
  if (ready_.load()) return CUDA_SUCCESS;
  session_ = sim::Session::open(sim::socket_path(simnvidia::kSocket), sim::kTenant);
  if (!session_.ok()) {
    std::fprintf(stderr, "libcuda (simulated): %s\n", session_.error().c_str());
    return CUDA_ERROR_SYSTEM_NOT_READY;
  }
  sim::Fleet& fleet = session_.fleet();
  const std::string own = simnvidia::library_version(reinterpret_cast<const void*>(&Driver::get));
  if (!own.empty() && own != fleet.driver_version) {
    session_.close();
    return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
  }
  const char* wanted = std::getenv("CUDA_VISIBLE_DEVICES");
  for (const std::size_t index : simnvidia::cuda_visible(fleet, wanted)) {
    devices_.push_back(std::make_unique<Device>(session_, index));
    devices_.back()->ordinal = static_cast<CUdevice>(devices_.size()) - 1;
  }
  if (devices_.empty()) {
    session_.close();
    return CUDA_ERROR_NO_DEVICE;
  }
  cuda_version_ = simnvidia::cuda_version(fleet.driver_version);
  if (const char* jitter = std::getenv("SIMGPU_EVENT_JITTER_NS")) event_jitter_ns_ = std::strtoll(jitter, nullptr, 10);
  pthread_atfork(nullptr, nullptr, &Driver::before_child);
  ready_.store(true, std::memory_order_release);
  return CUDA_SUCCESS;
}

CUresult Driver::usable() const {
  if (!ready_.load(std::memory_order_acquire) || forked_) return CUDA_ERROR_NOT_INITIALIZED;
  if (in_host_call()) return CUDA_ERROR_NOT_PERMITTED;
  return CUDA_SUCCESS;
}

Device* Driver::device(CUdevice ordinal) const {
  const auto index = static_cast<std::size_t>(ordinal);
  return ordinal >= 0 && index < devices_.size() ? devices_[index].get() : nullptr;
}

Device* Driver::device_at(const char* pci_address) const {
  for (const auto& device : devices_) {
    if (std::strcmp(device->info().pci_address, pci_address) == 0) return device.get();
  }
  return nullptr;
}

bool peers(const Device& one, const Device& other) {
  return &one != &other && one.number("peer_access", 0) != 0 && other.number("peer_access", 0) != 0;
}

CUresult current(Context*& context) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (contexts.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  context = contexts.at[contexts.depth - 1];
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  return context->magic == Context::kAlive ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult make_context(CUdevice ordinal, unsigned flags, bool primary, Context*& made) {
  Device* device = Driver::get().device(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (!device->take(device->info().context_bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  made = new Context;
  made->device = device;
  made->ordinal = ordinal;
  made->primary = primary;
  made->flags = flags;
  made->id = Driver::get().next_id();
  made->null_stream.context = made;
  return CUDA_SUCCESS;
}

// The object stays, marked: threads may still have it on their stacks, and the real driver answers
// CUDA_ERROR_CONTEXT_IS_DESTROYED to them.
void destroy_context(Context* context) {
  context->device->wait(context->device->submitted());
  book().release_of(context);
  context->magic = 0;
  context->null_stream.magic = 0;
  context->device->give(context->device->info().context_bytes);
}

namespace {

Stream& thread_stream(Context& context) {
  static thread_local Context* cached_for = nullptr;
  static thread_local Stream* cached = nullptr;
  if (cached_for == &context) return *cached;
  const int thread = static_cast<int>(syscall(SYS_gettid));
  const std::lock_guard<std::mutex> held(context.lock);
  std::unique_ptr<Stream>& stream = context.thread_streams[thread];
  if (stream == nullptr) {
    stream = std::make_unique<Stream>();
    stream->context = &context;
    stream->number = context.next_stream++;
  }
  cached_for = &context;
  cached = stream.get();
  return *cached;
}

}  // namespace

CUresult stream_of(CUstream handle, NullStream null, Stream*& stream) {
  Context* context = nullptr;
  if (handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD || handle == nullptr) {
    if (const CUresult error = current(context)) return error;
    const bool own = handle == CU_STREAM_PER_THREAD ||
                     (handle == nullptr && null == NullStream::kPerThread);
    stream = own ? &thread_stream(*context) : &context->null_stream;
    return CUDA_SUCCESS;
  }
  if (const CUresult error = Driver::get().usable()) return error;
  stream = alive<Stream>(handle);
  return stream != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

std::uint64_t bound_of(const Stream& stream) {
  const bool legacy = &stream == &stream.context->null_stream;
  return legacy ? stream.context->device->submitted() : stream.bound.load(std::memory_order_acquire);
}

}  // namespace simcuda
