// SPDX-License-Identifier: GPL-3.0-or-later
#include "faults.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "hardware.h"

namespace simnvidia {
namespace {

struct Key {
  const char* name;
  long Faults::*field;
};
constexpr Key kKeys[] = {{"delay_ms", &Faults::delay_ms},         {"missing_percent", &Faults::missing_percent},
                         {"bias_percent", &Faults::bias_percent}, {"time_jump_ms", &Faults::time_jump_ms},
                         {"lost_card", &Faults::lost_card},       {"xid", &Faults::xid}};

std::string known_keys() {
  std::string names;
  for (const Key& key : kKeys) names += std::string(names.empty() ? "" : ", ") + key.name;
  return names;
}

}  // namespace

bool Faults::misses(sim::Nanos window) const {
  // A multiplicative hash spreads neighbouring windows evenly.
  const std::uint64_t mixed = static_cast<std::uint64_t>(window) * 0x9e3779b97f4a7c15ull;
  return static_cast<long>((mixed >> 32) % 100) < missing_percent;
}

unsigned Faults::biased(unsigned percent) const {
  const long said = static_cast<long>(percent) * (100 + bias_percent) / 100;
  return static_cast<unsigned>(std::clamp(said, 0L, 100L));
}

Faults parse_faults(const std::string& text, std::string& problem) {
  Faults faults;
  try {
    for (const auto& [name, value] : sim::parse_settings(text, "faults")) {
      const Key* found = nullptr;
      for (const Key& key : kKeys) {
        if (name == key.name) found = &key;
      }
      char* end = nullptr;
      const long number = std::strtol(value.c_str(), &end, 10);
      if (found == nullptr) {
        problem = "unknown fault '" + name + "'; there are " + known_keys();
      } else if (*end != '\0') {
        problem = "fault " + name + " is '" + value + "', not a whole number";
      } else {
        faults.*(found->field) = number;
      }
    }
  } catch (const std::exception& error) {
    problem = error.what();
  }
  faults.sound = problem.empty();
  return faults;
}

Faults current_faults() {
  const char* path = std::getenv("SIMGPU_FAULTS");
  if (path == nullptr) return {};
  std::string problem;
  Faults faults;
  try {
    faults = parse_faults(sim::read_text(path), problem);
  } catch (const std::exception& error) {
    problem = error.what();
    faults.sound = false;
  }
  static std::atomic<bool> told{false};
  if (!faults.sound && !told.exchange(true)) {
    std::fprintf(stderr, "libnvidia-ml (simulated): %s: %s\n", path, problem.c_str());
  }
  return faults;
}

}  // namespace simnvidia
