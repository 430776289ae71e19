// SPDX-License-Identifier: GPL-3.0-or-later
#include "session.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "wire.h"

namespace sim {
namespace {

std::string from_environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

int connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    errno = ENAMETOOLONG;
    return -1;
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection < 0) return -1;
  if (connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    const int saved = errno;
    ::close(connection);
    errno = saved;
    return -1;
  }
  return connection;
}

// The descriptor that came with the Welcome, or -1.
int receive_welcome(int connection, Welcome& welcome) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec data{&welcome, sizeof(welcome)};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t got = 0;
  do {
    got = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got != static_cast<ssize_t>(sizeof(welcome))) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return -1;
  int memory = -1;
  std::memcpy(&memory, CMSG_DATA(header), sizeof(memory));
  return memory;
}

}  // namespace

std::string socket_path(const char* usual) { return from_environment("SIMGPU_SOCKET", usual); }

std::string device_directory() { return from_environment("SIMGPU_DEV", "/dev"); }

Session Session::open(const std::string& path, std::uint32_t role) {
  Session session;
  session.connection_ = connect_to(path);
  if (session.connection_ < 0) {
    session.error_ = "cannot connect to " + path + ": " + std::strerror(errno) +
                     "; is the simulated persistence daemon running there?";
    return session;
  }
  const Hello hello{kMagic, kLayoutVersion, role, getpid()};
  Welcome welcome{};
  int memory = -1;
  if (send(session.connection_, &hello, sizeof(hello), MSG_NOSIGNAL) ==
      static_cast<ssize_t>(sizeof(hello))) {
    memory = receive_welcome(session.connection_, welcome);
  }
  if (memory < 0 || welcome.magic != kMagic || welcome.version != kLayoutVersion) {
    session.error_ = path + " did not answer as layout version " + std::to_string(kLayoutVersion) +
                     " (got " + std::to_string(welcome.version) +
                     "); restart the daemon so that it matches the libraries";
    if (memory >= 0) ::close(memory);
    session.close();
    return session;
  }
  if (role == kTenant && welcome.seat < 0) {
    session.error_ = path + ": all " + std::to_string(kMaxProcesses) + " seats are taken";
    ::close(memory);
    session.close();
    return session;
  }
  void* mapped = mmap(nullptr, sizeof(Fleet), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  ::close(memory);
  if (mapped == MAP_FAILED) {
    session.error_ = "cannot map " + std::to_string(sizeof(Fleet) >> 20) + " MiB from " + path + ": " +
                     std::strerror(errno);
    session.close();
    return session;
  }
  session.fleet_ = static_cast<Fleet*>(mapped);
  session.ticket_ = welcome.ticket;
  session.seat_ = welcome.seat < 0 ? 0 : static_cast<std::uint32_t>(welcome.seat);
  return session;
}

Session& Session::operator=(Session&& other) noexcept {
  if (this == &other) return *this;
  close();
  fleet_ = std::exchange(other.fleet_, nullptr);
  connection_ = std::exchange(other.connection_, -1);
  seat_ = other.seat_;
  ticket_ = other.ticket_;
  error_ = std::move(other.error_);
  return *this;
}

void Session::close() {
  if (fleet_ != nullptr) munmap(fleet_, sizeof(Fleet));
  fleet_ = nullptr;
  if (connection_ >= 0) ::close(connection_);
  connection_ = -1;
}

}  // namespace sim
