// SPDX-License-Identifier: GPL-3.0-or-later
#include "top.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace simgpu {
namespace {

sim::Nanos busy_before(const sim::CardView::Reading& before, const sim::CardView::Usage& now) {
  for (const auto& usage : before.usages) {
    // A seat that changed hands has another process in it.
    if (usage.seat == now.seat && usage.host_pid == now.host_pid) return usage.busy_ns;
  }
  return 0;
}

double percent(sim::Nanos part, sim::Nanos whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

CardRow row(const Snapshot& before, const Snapshot& after) {
  const sim::Nanos passed = after.reading.at_ns - before.reading.at_ns;
  CardRow card{after.uuid, after.name, percent(after.reading.busy_ns - before.reading.busy_ns, passed), 0,
               after.total_bytes, {}};
  for (const auto& usage : after.reading.usages) {
    card.used_bytes += usage.memory_bytes;
    card.processes.push_back({usage.host_pid, usage.pid, usage.command,
                              percent(usage.busy_ns - busy_before(before.reading, usage), passed),
                              usage.memory_bytes});
  }
  std::sort(card.processes.begin(), card.processes.end(),
            [](const ProcessRow& a, const ProcessRow& b) { return a.percent > b.percent; });
  return card;
}

__attribute__((format(printf, 2, 3))) void add(std::string& out, const char* format, ...) {
  char line[2048];
  va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof(line), format, values);
  va_end(values);
  out += line;
}

unsigned long long mib(std::uint64_t bytes) { return bytes >> 20; }

}  // namespace

std::vector<CardRow> rows(const std::vector<Snapshot>& before, const std::vector<Snapshot>& after) {
  std::vector<CardRow> cards;
  for (std::size_t i = 0; i < std::min(before.size(), after.size()); ++i) cards.push_back(row(before[i], after[i]));
  return cards;
}

std::string as_table(const std::vector<CardRow>& cards, double seconds) {
  std::string out;
  add(out, "simulated cards, the last %g s\n", seconds);
  for (std::size_t i = 0; i < cards.size(); ++i) {
    const CardRow& card = cards[i];
    add(out, "\n%zu  %-28s %5.1f %%   %llu / %llu MiB   %s\n", i, card.name.c_str(), card.percent,
        mib(card.used_bytes), mib(card.total_bytes), card.uuid.c_str());
    if (card.processes.empty()) add(out, "   idle\n");
    else add(out, "   %9s %9s %8s %12s  %s\n", "HOST PID", "PID", "CARD %", "MEMORY MIB", "COMMAND");
    for (const ProcessRow& process : card.processes) {
      add(out, "   %9d %9d %8.1f %12llu  %s\n", process.host_pid, process.pid, process.percent,
          mib(process.memory_bytes), process.command.c_str());
    }
  }
  return out;
}

std::string as_json(const std::vector<CardRow>& cards, double seconds) {
  std::string out;
  add(out, "{\"simulated\": true, \"seconds\": %g, \"cards\": [", seconds);
  for (std::size_t i = 0; i < cards.size(); ++i) {
    const CardRow& card = cards[i];
    add(out, "%s\n  {\"uuid\": %s, \"name\": %s, \"percent\": %.3f, \"used_bytes\": %llu, \"total_bytes\": %llu, \"processes\": [",
        i == 0 ? "" : ",", quoted(card.uuid).c_str(), quoted(card.name).c_str(), card.percent,
        static_cast<unsigned long long>(card.used_bytes), static_cast<unsigned long long>(card.total_bytes));
    for (std::size_t k = 0; k < card.processes.size(); ++k) {
      const ProcessRow& process = card.processes[k];
      add(out, "%s\n    {\"host_pid\": %d, \"pid\": %d, \"command\": %s, \"percent\": %.3f, \"memory_bytes\": %llu}",
          k == 0 ? "" : ",", process.host_pid, process.pid, quoted(process.command).c_str(), process.percent,
          static_cast<unsigned long long>(process.memory_bytes));
    }
    out += "]}";
  }
  return out + "\n]}\n";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char escape[8];
    if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\') {
      std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned char>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace simgpu
