// SPDX-License-Identifier: GPL-3.0-or-later
#include "hardware.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace sim {
namespace {

namespace fs = std::filesystem;

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

const std::string& required(const Settings& settings, const std::string& key,
                            const std::string& origin) {
  const auto found = settings.find(key);
  if (found == settings.end()) throw std::runtime_error(origin + ": no line '" + key + " …'");
  return found->second;
}

}  // namespace

std::uint64_t number(const Settings& settings, const std::string& key, const std::string& origin) {
  const std::string& text = required(settings, key, origin);
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text.c_str(), &end, 10);
  if (end == text.c_str() || *end != '\0') {
    throw std::runtime_error(origin + ": " + key + " is '" + text + "', not a whole number");
  }
  return value;
}

std::string format_settings(const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings) text += key + " " + value + "\n";
  return text;
}

Settings parse_settings(const std::string& text, const std::string& origin) {
  Settings settings;
  std::istringstream lines(text);
  std::string line;
  for (int count = 1; std::getline(lines, line); ++count) {
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const auto gap = line.find_first_of(" \t");
    if (gap == std::string::npos) {
      throw std::runtime_error(origin + ":" + std::to_string(count) + ": '" + line +
                               "' has no value; write 'key value'");
    }
    if (!settings.emplace(line.substr(0, gap), trimmed(line.substr(gap))).second) {
      throw std::runtime_error(origin + ":" + std::to_string(count) + ": '" + line.substr(0, gap) +
                               "' is given twice");
    }
  }
  return settings;
}

std::string read_text(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::vector<FoundCard> find_cards(const std::string& pci, const std::string& vendor) {
  std::vector<FoundCard> cards;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(pci, missing)) {
    const std::string base = entry.path().string();
    if (!fs::exists(base + "/simgpu") || !fs::exists(base + "/vendor")) continue;
    if (trimmed(read_text(base + "/vendor")) != vendor) continue;
    const std::string numa = base + "/numa_node";
    cards.push_back({entry.path().filename().string(), vendor, trimmed(read_text(base + "/device")),
                     fs::exists(numa) ? std::atoi(read_text(numa).c_str()) : -1,
                     parse_settings(read_text(base + "/simgpu"), base + "/simgpu")});
  }
  std::sort(cards.begin(), cards.end(),
            [](const FoundCard& a, const FoundCard& b) { return a.address < b.address; });
  return cards;
}

void describe_card(const FoundCard& card, const std::string& profile_text, std::uint32_t minor,
                   CardInfo& info) {
  constexpr std::uint64_t kMiB = 1 << 20;
  const std::string& profile = required(card.simulated, "profile", card.address + "/simgpu");
  const std::string origin = "profile " + profile;
  const Settings settings = parse_settings(profile_text, origin);
  put(info.name, required(settings, "name", origin), origin + ": name");
  put(info.uuid, required(card.simulated, "uuid", card.address + "/simgpu"), "uuid");
  const auto serial = card.simulated.find("serial");
  put(info.serial, serial == card.simulated.end() ? "0" : serial->second, "serial");
  put(info.pci_address, card.address, "PCI address");
  put(info.profile, profile, "profile");
  put(info.attributes, profile_text, origin);
  info.minor = minor;
  info.numa_node = card.numa_node;
  info.part_of = kWhole;
  info.parts = 0;
  info.memory_bytes = number(settings, "memory_mib", origin) * kMiB;
  info.reserved_bytes = number(settings, "reserved_mib", origin) * kMiB;
  info.context_bytes = number(settings, "context_mib", origin) * kMiB;
  if (info.reserved_bytes >= info.memory_bytes) {
    throw std::runtime_error(origin + ": reserved_mib leaves no memory of memory_mib");
  }
}

}  // namespace sim
