// SPDX-License-Identifier: GPL-3.0-or-later
//
// npu-sim-daemon: keeps the cards of a simulated Ascend node. No such program comes with the real
// driver, whose kernel module does this.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>

#include <fcntl.h>
#include <unistd.h>

#include "ascend.h"
#include "daemon.h"

namespace {

std::uint32_t describe(sim::Fleet& fleet) {
  const std::string pci = simascend::pci_tree();
  const auto cards = sim::find_cards(pci, simascend::kPciVendor);
  if (cards.empty()) {
    throw std::runtime_error("no simulated card under " + pci +
                             " (a directory with 'vendor' 0x19e5 and a 'simgpu' file)");
  }
  if (cards.size() > sim::kMaxCards) {
    throw std::runtime_error(std::to_string(cards.size()) + " cards under " + pci + ", at most " +
                             std::to_string(sim::kMaxCards) + " are simulated");
  }
  for (std::uint32_t i = 0; i < cards.size(); ++i) {
    const auto profile = cards[i].simulated.find("profile");
    if (profile == cards[i].simulated.end()) {
      throw std::runtime_error(pci + "/" + cards[i].address + "/simgpu: no line 'profile …'");
    }
    const std::string path = simascend::share_directory() + "/profiles/" + profile->second + ".conf";
    sim::CardInfo& info = fleet.card[i].info;
    sim::describe_card(cards[i], sim::read_text(path), i, info);
    unsigned words[5];
    if (!simascend::die_words(info.uuid, words)) {
      throw std::runtime_error(cards[i].address + "/simgpu: uuid '" + info.uuid +
                               "' is no die id; write five groups of eight hexadecimal digits");
    }
  }
  return static_cast<std::uint32_t>(cards.size());
}

void write_pid(const std::string& path) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream stream(path);
  stream << getpid() << "\n";
  if (!stream.flush()) throw std::runtime_error("cannot write " + path);
}

// The parent's exit is the sign that the daemon serves, so it goes only after the socket is there.
void detach() {
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error(std::string("fork: ") + std::strerror(errno));
  if (child > 0) _exit(0);
  setsid();
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO}) dup2(null, descriptor);
}

}  // namespace

int main(int count, char** words) {
  try {
    if (count != 2 && count != 1) {
      std::fprintf(stderr, "usage: npu-sim-daemon [PID-FILE]\nWithout a file it stays in the foreground.\n");
      return 2;
    }
    const std::string pid_file = count == 2 ? words[1] : "";
    const std::string socket = simascend::socket_path();
    std::filesystem::create_directories(std::filesystem::path(socket).parent_path());
    {
      sim::Daemon daemon({socket, simascend::installed_version(), describe});
      std::fprintf(stderr, "npu-sim-daemon: %u simulated card(s), driver %s\n", daemon.fleet().cards,
                   daemon.fleet().driver_version);
      if (!pid_file.empty()) {
        detach();
        write_pid(pid_file);
      }
      daemon.serve();
    }
    // Last, as its end says that socket and memory are gone.
    if (!pid_file.empty()) std::filesystem::remove(pid_file);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "npu-sim-daemon: %s\n", error.what());
    return 1;
  }
  return 0;
}
