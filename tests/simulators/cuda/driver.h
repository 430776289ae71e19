// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the driver API's handles stand for, and the few rules that all of its functions share. The
// functions themselves are in init.cc, context.cc, module.cc, stream.cc, memory.cc, launch.cc.
#pragma once

#pragma GCC visibility push(default)
#include <cuda.h>
#pragma GCC visibility pop

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "card.h"
#include "hardware.h"
#include "kernels.h"
#include "session.h"

#define SIM_EXPORT extern "C" __attribute__((visibility("default")))

namespace simcuda {

struct Context;
struct Event;
struct SharedEvent;
struct Capture;
struct Node;

// How a null stream is read: as the context's one, or (functions named _ptsz, _ptds) the thread's own.
enum class NullStream { kLegacy, kPerThread };

struct Stream {
  static constexpr std::uint32_t kAlive = 0x5354524d;
  std::uint32_t magic = kAlive;
  Context* context = nullptr;
  std::uint32_t number = 0;
  unsigned flags = 0;
  int priority = 0;
  std::map<int, CUstreamAttrValue> attributes;  // kept, without effect
  std::shared_ptr<Capture> capture;  // this and the next under the lock of capture.cc
  std::vector<Node*> tips;           // what the next captured node comes after
  std::atomic<std::uint64_t> bound{0};  // items below belong to it or to work it must wait for
};

// One card as this process uses it.
class Device {
 public:
  Device(const sim::Session& session, std::size_t index);

  const sim::CardInfo& info() const { return card_.info(); }
  // The card that an instance is a part of; else the card itself.
  const sim::CardInfo& whole() const { return *whole_; }
  const sim::Settings& profile() const { return profile_; }
  long number(const char* key, long otherwise) const;
  std::uint64_t total_bytes() const { return info().memory_bytes - info().reserved_bytes; }
  std::uint64_t free_bytes() const { return total_bytes() - card_.used_bytes(); }
  sim::Nanos default_kernel_ns() const { return default_kernel_ns_; }

  std::uint64_t submit(sim::ItemKind kind, sim::Nanos duration_ns, Stream& stream);
  void record(Event& event, Stream& stream);
  void forget(Event& event);
  bool completed(std::uint64_t bound) const { return card_.completed(bound); }
  void wait(std::uint64_t bound) const { card_.wait(bound); }
  // The gate lets the stream's later work through.
  void open(std::uint64_t gate) const { card_.open(gate); }
  std::uint64_t submitted() const { return card_.submitted(); }
  sim::Nanos end_of(const Event& event);
  // What other processes ask about.
  bool reached(const sim::CardView::Point& point) const { return card_.reached(point); }
  void wait_for(const sim::CardView::Point& point) const { card_.wait_for(point); }
  bool own(const sim::CardView::Point& point) const { return point.seat == card_.point(0).seat; }

  bool take(std::uint64_t bytes) const { return card_.take(bytes); }
  void give(std::uint64_t bytes) const { card_.give(bytes); }

  CUdevice ordinal = 0;  // among those this process sees
  std::mutex primary_lock;
  Context* primary = nullptr;
  unsigned primary_uses = 0;
  unsigned primary_flags = 0;
  std::uint64_t small_bytes = 0;  // see book.cc; under the book's lock

 private:
  std::uint64_t submit_held(sim::ItemKind kind, sim::Nanos duration_ns, Stream& stream);

  sim::CardClient card_;
  const sim::CardInfo* whole_;
  sim::Settings profile_;
  sim::Nanos default_kernel_ns_;
  std::mutex submitting_;
  std::mutex events_lock_;
  // The event that waits for the end of the item in that place of the ring; it takes its result along
  // before the place is used again.
  std::array<std::atomic<Event*>, sim::kQueueDepth> awaited_{};
};

struct Context {
  static constexpr std::uint32_t kAlive = 0x43545854;
  std::uint32_t magic = kAlive;
  Device* device = nullptr;
  CUdevice ordinal = 0;
  bool primary = false;
  unsigned uses = 1;  // of one that cuCtxCreate made
  unsigned flags = 0;
  std::uint64_t id = 0;
  Stream null_stream;
  std::mutex lock;
  std::unordered_map<int, std::unique_ptr<Stream>> thread_streams;
  CUgreenCtx green = nullptr;  // of a context that stands for one
  std::map<int, std::size_t> limits;
  std::set<const Context*> peers;  // whose memory kernels here may touch
  std::uint32_t next_stream = 1;
};

struct Event {
  static constexpr std::uint32_t kAlive = 0x45564e54;
  std::uint32_t magic = kAlive;
  Context* context = nullptr;
  unsigned flags = 0;
  bool recorded = false;
  std::uint64_t item = 0;
  sim::Nanos end_ns = 0;  // once taken along
  SharedEvent* shared = nullptr;  // of an event that processes share; then the truth is there
  std::shared_ptr<Capture> capture;  // last recorded in that one, at these nodes; under capture.cc's lock
  std::atomic<bool> captured{false};  // whether there is one, for those who don't take the lock
  std::vector<Node*> tips;
};

struct Module;
struct Library;
struct Function {
  static constexpr std::uint32_t kAlive = 0x46554e43;
  std::uint32_t magic = kAlive;
  Module* module = nullptr;
  Library* library = nullptr;  // of a kernel that belongs to no context
  sim::Kernel kernel;

  Context* context() const;  // null: whatever is current
};

struct Module {
  static constexpr std::uint32_t kAlive = 0x4d4f4455;
  std::uint32_t magic = kAlive;
  Context* context = nullptr;
  std::vector<std::unique_ptr<Function>> functions;
};

// Code that belongs to no context; its kernels run in the one that is current.
struct Library {
  static constexpr std::uint32_t kAlive = 0x4c494252;
  std::uint32_t magic = kAlive;
  std::vector<std::unique_ptr<Function>> kernels;
};

// The kernels of an image (PTX, cubin, fatbin) for that card.
CUresult read_image(const void* image, const Device& device, std::vector<sim::Kernel>& kernels);
// Whether a file is as long as its own header says.
bool whole(const std::string& file);
void compute_capability(const Device& device, int& major, int& minor);

// The process' connection to its cards. One, made by the first cuInit that succeeds, never destroyed:
// threads may still call when static destructors run.
class Driver {
 public:
  static Driver& get();

  CUresult init();
  // CUDA_SUCCESS, or why no function may be used (not initialised, or in a forked child).
  CUresult usable() const;
  std::size_t count() const { return devices_.size(); }
  Device* device(CUdevice ordinal) const;
  Device* device_at(const char* pci_address) const;  // null: this process doesn't see it
  std::uint64_t next_id() { return ++ids_; }
  int cuda_version() const { return cuda_version_; }
  sim::Nanos event_jitter_ns() const { return event_jitter_ns_; }

 private:
  static void before_child();

  std::mutex init_lock_;
  std::atomic<bool> ready_{false};
  bool forked_ = false;
  sim::Session session_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::atomic<std::uint64_t> ids_{0};
  int cuda_version_ = 0;
  sim::Nanos event_jitter_ns_ = 0;
};

// The calling thread's stack of contexts.
struct ContextStack {
  std::array<Context*, 64> at;
  std::size_t depth;
};
extern thread_local ContextStack contexts;

// Whether one card reaches the other's memory by itself.
bool peers(const Device& one, const Device& other);

CUresult current(Context*& context);
CUresult make_context(CUdevice ordinal, unsigned flags, bool primary, Context*& made);
void destroy_context(Context* context);

// Whether events of one may be recorded in streams of the other: green contexts are parts of the primary one.
inline bool same_context(const Context& one, const Context& other) {
  const auto of_primary = [](const Context& context) { return context.primary || context.green != nullptr; };
  return &one == &other || (one.device == other.device && of_primary(one) && of_primary(other));
}

// The stream a handle means in the current context.
CUresult stream_of(CUstream handle, NullStream null, Stream*& stream);
// What must be complete before a null stream of legacy meaning counts as done: everything.
std::uint64_t bound_of(const Stream& stream);

template <class T, class Handle>
T* alive(Handle handle) {
  T* object = reinterpret_cast<T*>(handle);
  return object != nullptr && object->magic == T::kAlive ? object : nullptr;
}

}  // namespace simcuda
