// SPDX-License-Identifier: GPL-3.0-or-later
//
// nvidia-persistenced (simulated): keeps the cards, as the real daemon does. It takes the real one's
// options and, like it, detaches once it is ready; --foreground and --socket are this one's own.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>

#include <fcntl.h>
#include <unistd.h>

#include "daemon.h"
#include "hardware.h"
#include "mig.h"
#include "places.h"
#include "session.h"
#include "vendor.h"

namespace {

struct Options {
  bool foreground = false;
  bool verbose = false;
  std::string pid_file = "/run/nvidia-persistenced/nvidia-persistenced.pid";
};

// Options of the real daemon that change nothing here; `takes_value` ones swallow the next word.
struct Ignored {
  const char* name;
  bool takes_value;
};
constexpr Ignored kIgnored[] = {{"--user", true},           {"-u", true},
                                {"--group", true},          {"-g", true},
                                {"--persistence-mode", false}, {"--no-persistence-mode", false},
                                {"--uvm-persistence-mode", false}, {"--no-uvm-persistence-mode", false},
                                {"--nvidia-cfg-path", true}};

int usage(const char* problem, const char* word) {
  std::fprintf(stderr,
               "nvidia-persistenced (simulated): %s '%s'\n"
               "usage: nvidia-persistenced [--verbose] [--foreground] [--pid-file FILE]\n",
               problem, word);
  return 2;
}

int parse(int count, char** words, Options& options) {
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--version" || word == "-v") {
      std::printf("nvidia-persistenced (simulated): version %s\n", simnvidia::installed_version().c_str());
      std::exit(0);
    }
    if (word == "--foreground") options.foreground = true;
    else if (word == "--verbose" || word == "-V") options.verbose = true;
    else if (word == "--pid-file" && i + 1 < count) options.pid_file = words[++i];
    else {
      bool known = false;
      for (const Ignored& ignored : kIgnored) {
        if (word != ignored.name && word.rfind(std::string(ignored.name) + "=", 0) != 0) continue;
        known = true;
        if (ignored.takes_value && word == ignored.name) ++i;
      }
      if (!known) return usage("unknown option", words[i]);
    }
  }
  return 0;
}

// Instances of cards in MIG mode follow the cards; returns how many are there now.
std::uint32_t divide(sim::Fleet& fleet, std::uint32_t cards) {
  std::uint32_t count = cards;
  for (std::uint32_t i = 0; i < cards; ++i) {
    sim::CardInfo& whole = fleet.card[i].info;
    const std::string origin = std::string("profile ") + whole.profile;
    for (const auto& part : simnvidia::parts_of(sim::parse_settings(whole.attributes, origin), origin)) {
      if (count == sim::kMaxCards) {
        throw std::runtime_error("more cards and MIG instances than " + std::to_string(sim::kMaxCards) + ", which are simulated");
      }
      simnvidia::describe_part(whole, static_cast<std::int32_t>(i), part, fleet.card[count++].info);
      ++whole.parts;
    }
  }
  return count;
}

std::uint32_t describe(sim::Fleet& fleet) {
  const std::string pci = simnvidia::pci_tree();
  const auto cards = sim::find_cards(pci, simnvidia::kPciVendor);
  if (cards.empty()) {
    throw std::runtime_error("no simulated card under " + pci +
                             " (a directory with 'vendor' 0x10de and a 'simgpu' file)");
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
    const std::string path = simnvidia::share_directory() + "/profiles/" + profile->second + ".conf";
    sim::describe_card(cards[i], sim::read_text(path), i, fleet.card[i].info);
  }
  return divide(fleet, static_cast<std::uint32_t>(cards.size()));
}

void write_pid(const std::string& path) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream stream(path);
  stream << getpid() << "\n";
  if (!stream.flush()) throw std::runtime_error("cannot write " + path);
}

// The parent's exit is the sign that the daemon serves (systemd's Type=forking), so it goes only after
// the socket is there.
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
    Options options;
    if (const int error = parse(count, words, options)) return error;
    {
      sim::Daemon daemon({sim::socket_path(simnvidia::kSocket), simnvidia::module_version(), describe});
      std::fprintf(stderr, "nvidia-persistenced (simulated): %u simulated card(s), driver %s\n",
                   daemon.fleet().cards, daemon.fleet().driver_version);
      if (!options.foreground) {
        detach();
        write_pid(options.pid_file);
      }
      daemon.serve();
    }
    // Last, as its end says that socket and memory are gone.
    if (!options.foreground) std::filesystem::remove(options.pid_file);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nvidia-persistenced (simulated): %s\n", error.what());
    return 1;
  }
  return 0;
}
