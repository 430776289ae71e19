// SPDX-License-Identifier: GPL-3.0-or-later
//
// The daemon that owns a host's cards: makes the shared memory, hands it out, and clears the seat of
// a process that has gone. It sleeps unless somebody comes or goes.
#pragma once

#include <functional>
#include <string>

#include "layout.h"

namespace sim {

struct DaemonPlan {
  std::string socket;
  std::string driver_version;
  std::function<std::uint32_t(Fleet&)> describe;  // fills card[].info, returns how many
};

// Creates the fleet and binds the socket; throws std::runtime_error. serve() then runs until
// SIGTERM or SIGINT. Apart, so that a daemon can detach once it is ready.
class Daemon {
 public:
  explicit Daemon(const DaemonPlan& plan);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  void serve();
  const Fleet& fleet() const { return *fleet_; }

 private:
  struct Client;
  void watch(int descriptor, std::uint64_t tag) const;
  void welcome_newcomer();
  void hear(Client& client);
  void bury(Client& client);
  std::uint32_t take_ticket();
  int take_seat(std::int32_t host_pid, std::int32_t pid) const;

  std::string socket_;
  Fleet* fleet_ = nullptr;
  int memory_ = -1;
  int listener_ = -1;
  int poll_ = -1;
  int signals_ = -1;
  std::uint64_t next_tag_ = 0;
  std::uint32_t next_ticket_ = kDaemonTicket;
  struct State;
  State* state_ = nullptr;
};

}  // namespace sim
