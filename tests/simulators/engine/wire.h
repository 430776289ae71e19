// SPDX-License-Identifier: GPL-3.0-or-later
//
// The conversation on the daemon's socket (SOCK_STREAM): the client sends one Hello, the daemon
// answers with one Welcome that carries the shared memory as SCM_RIGHTS, and the client keeps the
// connection for as long as it lives. The daemon learns the client's host pid from SO_PEERCRED.
#pragma once

#include <cstdint>

namespace sim {

constexpr std::uint32_t kObserver = 0;  // reads only; gets no seat
constexpr std::uint32_t kTenant = 1;    // will submit work

struct Hello {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint32_t role;
  std::int32_t pid;  // as the client sees itself
};

struct Welcome {
  std::uint32_t magic;
  std::uint32_t version;
  std::int32_t seat;  // -1: observer, or no seat is free
  std::uint32_t ticket;  // names this connection as a holder of locks
};

}  // namespace sim
