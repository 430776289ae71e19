// SPDX-License-Identifier: GPL-3.0-or-later
#include "ledger.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <time.h>
#include <unistd.h>

#include "card.h"
#include "session.h"
#include "top.h"
#include "wire.h"

namespace {

struct Line {
  std::int32_t host_pid, pid;
  std::string uuid, command;
  sim::Nanos busy_ns;
  std::uint64_t memory_bytes, peak_bytes;
  bool alive;
};

// `settled` gets the instant up to which the busy times hold; of several cards, the last one's.
std::vector<Line> living(sim::Fleet& fleet, std::uint32_t ticket, sim::Nanos& settled) {
  std::vector<Line> lines;
  for (std::size_t i = 0; i < fleet.cards; ++i) {
    const sim::CardView card(fleet, i, ticket);
    const sim::CardView::Reading reading = card.read();
    settled = reading.at_ns;
    for (const auto& usage : reading.usages) {
      lines.push_back({usage.host_pid, usage.pid, card.info().uuid, usage.command, usage.busy_ns,
                       usage.memory_bytes,
                       fleet.seat[i][usage.seat].memory_peak_bytes.load(), true});
    }
  }
  return lines;
}

std::vector<Line> dead(sim::Fleet& fleet) {
  std::vector<Line> lines;
  const std::uint64_t dug = fleet.graves.load(std::memory_order_acquire);
  for (std::uint64_t i = dug > sim::kGraves ? dug - sim::kGraves : 0; i < dug; ++i) {
    const sim::Grave& grave = fleet.grave[i % sim::kGraves];
    lines.push_back({grave.host_pid, grave.pid, fleet.card[grave.card].info.uuid, "", grave.busy_ns, 0,
                     grave.memory_peak_bytes, false});
  }
  return lines;
}

void print_json(const std::vector<Line>& lines, sim::Nanos settled) {
  std::printf("{\"simulated\": true, \"monotonic_ns\": %lld, \"processes\": [", static_cast<long long>(settled));
  const char* between = "\n";
  for (const Line& line : lines) {
    std::printf("%s  {\"host_pid\": %d, \"pid\": %d, \"command\": %s, \"uuid\": %s, \"busy_ns\": %lld, "
                "\"memory_bytes\": %llu, \"memory_peak_bytes\": %llu, \"alive\": %s}",
                between, line.host_pid, line.pid, simgpu::quoted(line.command).c_str(), simgpu::quoted(line.uuid).c_str(),
                static_cast<long long>(line.busy_ns), static_cast<unsigned long long>(line.memory_bytes),
                static_cast<unsigned long long>(line.peak_bytes), line.alive ? "true" : "false");
    between = ",\n";
  }
  std::printf("\n]}\n");
}

void print_table(const std::vector<Line>& lines) {
  std::printf("simulated cards\n%9s %9s %-16s %-40s %12s %12s\n", "HOST PID", "PID", "COMMAND", "CARD",
              "BUSY MS", "MEMORY MIB");
  for (const Line& line : lines) {
    std::printf("%9d %9d %-16s %-40s %12.1f %12llu\n", line.host_pid, line.pid,
                line.alive ? line.command.c_str() : "(ended)", line.uuid.c_str(),
                static_cast<double>(line.busy_ns) / 1e6,
                static_cast<unsigned long long>(line.memory_bytes >> 20));
  }
}

constexpr const char* kUsage =
    "usage: %s ledger [--json] [--dead]\n"
    "       %s top [-n SECONDS] [--once] [--json]\n";

struct Options {
  bool sound = false;
  bool top = false, json = false, with_dead = false, once = false;
  double seconds = 1;
};

Options parse(int count, char** words) {
  Options options;
  if (count < 2) return options;
  options.top = std::strcmp(words[1], "top") == 0;
  options.sound = options.top || std::strcmp(words[1], "ledger") == 0;
  for (int i = 2; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--json") options.json = true;
    else if (word == "--dead" && !options.top) options.with_dead = true;
    else if (word == "--once" && options.top) options.once = true;
    else if (word == "-n" && options.top && i + 1 < count) options.seconds = std::atof(words[++i]);
    else options.sound = false;
  }
  // Also refuses what is no number.
  if (!(options.seconds > 0 && options.seconds <= 3600)) options.sound = false;
  return options;
}

std::vector<simgpu::Snapshot> snapshot(sim::Fleet& fleet, std::uint32_t ticket) {
  std::vector<simgpu::Snapshot> cards;
  for (std::size_t i = 0; i < fleet.cards; ++i) {
    const sim::CardView card(fleet, i, ticket);
    const auto& info = card.info();
    cards.push_back({info.uuid, info.name, info.memory_bytes - info.reserved_bytes, card.read()});
  }
  return cards;
}

void pause_for(double seconds) {
  timespec left{static_cast<time_t>(seconds), static_cast<long>((seconds - static_cast<double>(static_cast<time_t>(seconds))) * 1e9)};
  while (nanosleep(&left, &left) != 0) {
  }
}

int top(const sim::Session& session, const Options& options) {
  const bool screen = !options.json && !options.once && isatty(STDOUT_FILENO) != 0;
  auto before = snapshot(session.fleet(), session.ticket());
  while (true) {
    pause_for(options.seconds);
    auto after = snapshot(session.fleet(), session.ticket());
    const auto cards = simgpu::rows(before, after);
    const std::string text = options.json ? simgpu::as_json(cards, options.seconds) : simgpu::as_table(cards, options.seconds);
    std::printf("%s%s", screen ? "\033[H\033[2J" : "", text.c_str());
    // A reader that has gone (| head) ends it.
    if (std::fflush(stdout) != 0 || options.json || options.once) return 0;
    before = std::move(after);
  }
}

int ledger(const sim::Session& session, const Options& options) {
  sim::Nanos settled = 0;
  std::vector<Line> lines = living(session.fleet(), session.ticket(), settled);
  if (options.with_dead) {
    for (Line& line : dead(session.fleet())) lines.push_back(std::move(line));
  }
  options.json ? print_json(lines, settled) : print_table(lines);
  return 0;
}

}  // namespace

namespace simgpu {

int run(const char* program, const std::string& socket, int count, char** words) {
  const Options options = parse(count, words);
  if (!options.sound) {
    std::fprintf(stderr, kUsage, program, program);
    return 2;
  }
  const sim::Session session = sim::Session::open(socket, sim::kObserver);
  if (!session.ok()) {
    std::fprintf(stderr, "%s: %s\n", program, session.error().c_str());
    return 1;
  }
  return options.top ? top(session, options) : ledger(session, options);
}

}  // namespace simgpu
