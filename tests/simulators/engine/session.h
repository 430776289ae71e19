// SPDX-License-Identifier: GPL-3.0-or-later
//
// A process' side of the daemon's socket: connect, map the fleet, stay connected.
#pragma once

#include <cstdint>
#include <string>

#include "layout.h"

namespace sim {

// Where the daemon listens: $SIMGPU_SOCKET, else the vendor's usual place.
std::string socket_path(const char* usual);

// Where device nodes are: $SIMGPU_DEV, else /dev.
std::string device_directory();

class Session {
 public:
  // On failure ok() is false and error() names the socket, what was found and the remedy.
  static Session open(const std::string& path, std::uint32_t role);

  Session() = default;
  Session(Session&& other) noexcept { *this = static_cast<Session&&>(other); }
  Session& operator=(Session&& other) noexcept;
  ~Session() { close(); }

  bool ok() const { return fleet_ != nullptr; }
  const std::string& error() const { return error_; }
  Fleet& fleet() const { return *fleet_; }
  std::uint32_t seat() const { return seat_; }
  std::uint32_t ticket() const { return ticket_; }

  // Gives up connection and memory; in a forked child this must happen, or the parent would seem to
  // live as long as the child does.
  void close();

 private:
  Fleet* fleet_ = nullptr;
  int connection_ = -1;
  std::uint32_t seat_ = 0;
  std::uint32_t ticket_ = 0;
  std::string error_;
};

}  // namespace sim
