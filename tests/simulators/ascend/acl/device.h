// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the runtime's handles stand for, and the process' connection to its NPUs.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "card.h"
#include "runtime.h"
#include "session.h"

namespace simacl {

// One NPU as this process uses it. All work of a process on it is one queue, whatever the stream.
class Device {
 public:
  Device(const sim::Session& session, std::size_t card);

  const sim::CardInfo& info() const { return card_.info(); }
  std::uint64_t total_bytes() const { return info().memory_bytes - info().reserved_bytes; }
  std::uint64_t free_bytes() const { return total_bytes() - card_.used_bytes(); }
  sim::Nanos kernel_ns() const { return kernel_ns_; }
  std::uint64_t submitted() const { return card_.submitted(); }

  // Puts an item behind what is there; returns the bound that it completes with.
  std::uint64_t submit(sim::ItemKind kind, sim::Nanos duration_ns);
  bool completed(std::uint64_t bound) const { return card_.completed(bound); }
  void wait(std::uint64_t bound) const { card_.wait(bound); }
  sim::Nanos end_of(std::uint64_t bound) const { return card_.end_of(bound - 1); }
  bool take(std::uint64_t bytes) const { return card_.take(bytes); }
  void give(std::uint64_t bytes) const { card_.give(bytes); }
  // What a context costs is charged by the first that this process makes.
  bool take_context();

 private:
  sim::CardClient card_;
  sim::Nanos kernel_ns_;
  std::mutex submitting_;
  std::atomic<bool> has_context_{false};
};

struct Stream {
  static constexpr std::uint32_t kAlive = 0x4e535452;
  std::uint32_t magic = kAlive;
  struct Context* context = nullptr;
  std::atomic<std::uint64_t> bound{0};  // items below belong to it or to what it waits for
};

struct Context {
  static constexpr std::uint32_t kAlive = 0x4e435458;
  std::uint32_t magic = kAlive;
  std::int32_t ordinal = 0;
  Device* device = nullptr;
  Stream usual;  // the null stream
};

struct Event {
  static constexpr std::uint32_t kAlive = 0x4e455654;
  std::uint32_t magic = kAlive;
  Device* device = nullptr;
  std::uint64_t bound = 0;  // 0: never recorded
};

// One, made by the first call that needs it, never destroyed: threads may still call at exit.
class Runtime {
 public:
  static Runtime& get();

  rtError_t open();  // connects; says on stderr why it can't
  std::int32_t count() const { return static_cast<std::int32_t>(devices_.size()); }
  Device* device(std::int32_t ordinal) const;
  Context* primary(std::int32_t ordinal);  // made when first asked for

 private:
  std::mutex lock_;
  bool opened_ = false;
  sim::Session session_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::map<std::int32_t, std::unique_ptr<Context>> primaries_;
};

// Bytes of a card that an allocation of so many takes: above 1 MiB huge pages, else usual ones.
constexpr std::uint64_t charged(std::uint64_t bytes) {
  const std::uint64_t page = bytes > (1U << 20) ? 2U << 20 : 4096;
  return (bytes + page - 1) / page * page;
}

}  // namespace simacl
