// SPDX-License-Identifier: GPL-3.0-or-later
#include "ascend.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace simascend {
namespace {

namespace fs = std::filesystem;

std::string moved(const char* variable, const std::string& usual) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0' ? value : usual;
}

}  // namespace

std::string socket_path() { return moved("SIMNPU_SOCKET", "/run/npu-sim/socket"); }

std::string device_directory() { return moved("SIMNPU_DEV", "/dev"); }

std::string pci_tree() { return moved("SIMNPU_PCI", "/sys/bus/pci/devices"); }

std::string state_directory() { return moved("SIMNPU_STATE", "/var/lib/npu-sim"); }

std::string share_directory() {
  std::error_code ignored;
  const auto program = fs::read_symlink("/proc/self/exe", ignored);
  const auto beside = program.parent_path().parent_path() / "share/npu-sim";
  const bool there = fs::is_directory(beside, ignored);
  return moved("SIMNPU_SHARE", there ? beside.string() : "/usr/local/Ascend/driver/share/npu-sim");
}

std::string installed_version() {
  const std::string path = share_directory() + "/version";
  const auto settings = sim::parse_settings(sim::read_text(path), path);
  const auto found = settings.find("version");
  if (found == settings.end()) throw std::runtime_error(path + ": no line 'version …'");
  return found->second;
}

std::vector<std::size_t> visible(const sim::Fleet& fleet) {
  std::vector<std::size_t> found;
  const std::string directory = device_directory();
  for (std::uint32_t i = 0; i < fleet.cards; ++i) {
    const auto minor = std::to_string(fleet.card[i].info.minor);
    if (fs::exists(directory + "/davinci" + minor)) found.push_back(i);
  }
  return found;
}

sim::Settings profile_of(const sim::CardInfo& info) {
  return sim::parse_settings(info.attributes, std::string("profile ") + info.profile);
}

bool die_words(const std::string& uuid, unsigned (&words)[5]) {
  int end = 0;
  const int found = std::sscanf(uuid.c_str(), "%8X-%8X-%8X-%8X-%8X%n", &words[0], &words[1], &words[2],
                                &words[3], &words[4], &end);
  return found == 5 && static_cast<std::size_t>(end) == uuid.size();
}

Faults current_faults() {
  Faults faults;
  const std::string path = moved("SIMNPU_FAULTS", "");
  if (path.empty() || !fs::exists(path)) return faults;
  const sim::Settings settings = sim::parse_settings(sim::read_text(path), path);
  for (const auto& [key, text] : settings) {
    const std::uint64_t value = sim::number(settings, key, path);
    if (key == "health") faults.health = static_cast<unsigned>(value);
    else if (key == "npu_smi_hangs") faults.npu_smi_hangs = value != 0;
    else if (key == "unknown_table") faults.unknown_table = value != 0;
    else if (key == "busy_vnpu") faults.busy_vnpu = value;
    else throw std::runtime_error(path + ": unknown fault '" + key + "'");
  }
  return faults;
}

}  // namespace simascend
