// SPDX-License-Identifier: GPL-3.0-or-later
#include "daemon.h"

#include <cerrno>
#include <csignal>
#include <cstring>

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>

#include "card.h"
#include "wire.h"

namespace sim {
namespace {

// Tags of epoll events. A client has two, its own (even) for the connection and the next for its death.
constexpr std::uint64_t kListenerTag = 0;
constexpr std::uint64_t kSignalTag = 1;
constexpr std::uint64_t kFirstClientTag = 2;
constexpr std::uint64_t kDeath = 1;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

int make_memory() {
  const auto memory = static_cast<int>(syscall(SYS_memfd_create, "simulated-cards", 1U));
  if (memory < 0) fail("memfd_create");
  if (ftruncate(memory, sizeof(Fleet)) != 0) fail("cannot size the shared memory");
  return memory;
}

int listen_on(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    throw std::runtime_error("socket path " + path + " is longer than a socket's address may be (" +
                             std::to_string(sizeof(address.sun_path) - 1) + "); choose a shorter one");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  unlink(path.c_str());
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) fail("socket");
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fail("bind " + path);
  // Any user may use a GPU, as with /dev/nvidia* at mode 0666.
  if (chmod(path.c_str(), 0666) != 0) fail("chmod " + path);
  if (listen(listener, 1024) != 0) fail("listen on " + path);
  return listener;
}

std::string command_of(std::int32_t host_pid) {
  std::ifstream stream("/proc/" + std::to_string(host_pid) + "/comm");
  std::string command;
  std::getline(stream, command);
  return command.empty() ? "?" : command;
}

void send_welcome(int connection, const Welcome& welcome, int memory) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec data{const_cast<Welcome*>(&welcome), sizeof(welcome)};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &memory, sizeof(memory));
  // A client that has gone meanwhile is noticed by the end of its connection.
  (void)sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

// A client is watched twice: the end of its connection, and its death. A child that inherited the
// connection would keep it open; the pidfd tells the truth about the process itself.
struct Daemon::Client {
  int connection = -1;
  int death = -1;
  std::int32_t host_pid = 0;
  std::int32_t seat = -1;
  std::uint32_t ticket = 0;
  std::uint64_t tag = 0;

  ~Client() {
    if (connection >= 0) close(connection);
    if (death >= 0) close(death);
  }
};

struct Daemon::State {
  std::map<std::uint64_t, std::unique_ptr<Client>> clients;
};

Daemon::Daemon(const DaemonPlan& plan) : socket_(plan.socket), next_tag_(kFirstClientTag) {
  memory_ = make_memory();
  void* mapped = mmap(nullptr, sizeof(Fleet), PROT_READ | PROT_WRITE, MAP_SHARED, memory_, 0);
  if (mapped == MAP_FAILED) fail("cannot map the shared memory");
  fleet_ = static_cast<Fleet*>(mapped);
  fleet_->cards = plan.describe(*fleet_);
  for (std::uint32_t i = 0; i < fleet_->cards; ++i) init_card(fleet_->card[i]);
  std::strncpy(fleet_->driver_version, plan.driver_version.c_str(), sizeof(fleet_->driver_version) - 1);
  fleet_->version = kLayoutVersion;
  fleet_->magic = kMagic;
  listener_ = listen_on(socket_);
  state_ = new State;
}

Daemon::~Daemon() {
  delete state_;
  unlink(socket_.c_str());
  for (const int descriptor : {listener_, poll_, signals_, memory_}) {
    if (descriptor >= 0) close(descriptor);
  }
  munmap(fleet_, sizeof(Fleet));
}

void Daemon::watch(int descriptor, std::uint64_t tag) const {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = tag;
  if (epoll_ctl(poll_, EPOLL_CTL_ADD, descriptor, &event) != 0) fail("epoll_ctl");
}

void Daemon::welcome_newcomer() {
  auto client = std::make_unique<Client>();
  client->connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
  if (client->connection < 0) return;
  ucred who{};
  socklen_t size = sizeof(who);
  if (getsockopt(client->connection, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return;
  client->host_pid = who.pid;
  client->tag = next_tag_;
  next_tag_ += 2;
  client->ticket = take_ticket();
  client->death = static_cast<int>(syscall(SYS_pidfd_open, who.pid, 0));
  watch(client->connection, client->tag);
  if (client->death >= 0) watch(client->death, client->tag | kDeath);
  state_->clients.emplace(client->tag, std::move(client));
}

int Daemon::take_seat(std::int32_t host_pid, std::int32_t pid) const {
  for (std::size_t number = 0; number < kMaxProcesses; ++number) {
    Process& process = fleet_->process[number];
    if (process.live.load() != 0) continue;
    process.host_pid = host_pid;
    process.pid = pid;
    process.since_ns = monotonic_now();
    std::memset(process.command, 0, sizeof(process.command));
    std::strncpy(process.command, command_of(host_pid).c_str(), sizeof(process.command) - 1);
    process.live.store(1, std::memory_order_release);
    return static_cast<int>(number);
  }
  return -1;
}

void Daemon::hear(Client& client) {
  Hello hello{};
  const ssize_t got = recv(client.connection, &hello, sizeof(hello), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  const bool sound = got == static_cast<ssize_t>(sizeof(hello)) && hello.magic == kMagic;
  if (!sound || client.seat >= 0) {
    bury(client);
    return;
  }
  if (hello.version == kLayoutVersion && hello.role == kTenant) {
    client.seat = take_seat(client.host_pid, hello.pid);
  }
  send_welcome(client.connection, {kMagic, kLayoutVersion, client.seat, client.ticket}, memory_);
}

// Unique among the living: a name that comes round again after 2^31 connections skips those in use.
std::uint32_t Daemon::take_ticket() {
  const auto used = [this](std::uint32_t ticket) {
    return ticket <= kDaemonTicket ||
           std::any_of(state_->clients.begin(), state_->clients.end(),
                       [&](const auto& entry) { return entry.second->ticket == ticket; });
  };
  do {
    next_ticket_ = (next_ticket_ + 1) & ~Lock::kWaiters;
  } while (used(next_ticket_));
  return next_ticket_;
}

void Daemon::bury(Client& client) {
  for (std::uint32_t i = 0; i < fleet_->cards; ++i) release_dead(fleet_->card[i], client.ticket);
  if (client.seat >= 0) {
    Process& process = fleet_->process[static_cast<std::size_t>(client.seat)];
    for (std::uint32_t i = 0; i < fleet_->cards; ++i) {
      Grave grave{process.host_pid, process.pid, i, 0, 0, 0, monotonic_now()};
      if (!CardView(*fleet_, i, kDaemonTicket).evict(static_cast<std::uint32_t>(client.seat), grave)) continue;
      fleet_->grave[fleet_->graves.load() % kGraves] = grave;
      fleet_->graves.fetch_add(1, std::memory_order_release);
    }
    process.live.store(0, std::memory_order_release);
  }
  state_->clients.erase(client.tag);
}

void Daemon::serve() {
  poll_ = epoll_create1(EPOLL_CLOEXEC);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signals_ = signalfd(-1, &set, SFD_CLOEXEC);
  if (poll_ < 0 || signals_ < 0) fail("epoll_create1 or signalfd");
  watch(listener_, kListenerTag);
  watch(signals_, kSignalTag);
  std::array<epoll_event, 64> events{};
  while (true) {
    const int count = epoll_wait(poll_, events.data(), events.size(), -1);
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < count; ++i) {
      const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
      if (tag == kSignalTag) return;
      if (tag == kListenerTag) {
        welcome_newcomer();
      } else if (const auto found = state_->clients.find(tag & ~kDeath);
                 found != state_->clients.end()) {
        (tag & kDeath) != 0 ? bury(*found->second) : hear(*found->second);
      }
    }
  }
}

}  // namespace sim
