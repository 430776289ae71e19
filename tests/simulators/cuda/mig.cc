// SPDX-License-Identifier: GPL-3.0-or-later
#include "mig.h"

#include <cstdio>
#include <sstream>
#include <stdexcept>

namespace simnvidia {
namespace {

constexpr unsigned kFirstCapability = 3;  // 1 and 2 are the administrator's: config, monitor
constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::size_t kUuid = sizeof "GPU-00000000-0000-0000-0000-000000000000" - 1;

Part part_of(const sim::Settings& profile, const std::string& entry, const std::string& origin) {
  const auto colon = entry.find(':');
  Part part{};
  if (colon == std::string::npos || std::sscanf(entry.c_str(), "%u:", &part.gpu_instance) != 1 ||
      part.gpu_instance >= kGpuInstances) {
    throw std::runtime_error(origin + ": mig has '" + entry + "', not <GPU instance 0 to 14>:<size>");
  }
  part.size = entry.substr(colon + 1);
  const auto found = profile.find("mig_" + part.size);
  if (found == profile.end() || std::sscanf(found->second.c_str(), "%lu %lu %lu", &part.memory_mib,
                                            &part.multiprocessors, &part.slices) != 3) {
    throw std::runtime_error(origin + ": no line 'mig_" + part.size + " <memory MiB> <multiprocessors> <slices>'");
  }
  return part;
}

// The parent's, with the instance's id in its second group.
std::string uuid_of(const sim::CardInfo& whole, const Part& part) {
  std::string uuid = whole.uuid;
  if (uuid.size() != kUuid) throw std::runtime_error(uuid + ": a card in MIG mode needs a UUID of the usual form");
  char id[5];
  std::snprintf(id, sizeof(id), "%02x00", part.gpu_instance);
  return uuid.replace(0, 3, "MIG").replace(13, 4, id);
}

}  // namespace

std::vector<Part> parts_of(const sim::Settings& profile, const std::string& origin) {
  std::vector<Part> parts;
  const auto line = profile.find("mig");
  std::istringstream entries(line == profile.end() ? "" : line->second);
  std::string entry;
  while (entries >> entry) parts.push_back(part_of(profile, entry, origin));
  return parts;
}

void describe_part(const sim::CardInfo& whole, std::int32_t index, const Part& part, sim::CardInfo& info) {
  sim::Settings settings = sim::parse_settings(whole.attributes, whole.profile);
  for (auto setting = settings.begin(); setting != settings.end();) {
    setting = setting->first.rfind("mig", 0) == 0 ? settings.erase(setting) : std::next(setting);
  }
  settings["mig_size"] = part.size;
  settings["mig_gpu_instance"] = std::to_string(part.gpu_instance);
  settings["mig_slices"] = std::to_string(part.slices);
  settings["multiprocessors"] = std::to_string(part.multiprocessors);
  settings["memory_mib"] = std::to_string(part.memory_mib);
  for (const char* link : {"peer_access", "nvlink", "multicast"}) settings[link] = "0";
  info = whole;
  sim::put(info.name, std::string(whole.name) + " MIG " + part.size, "name");
  sim::put(info.uuid, uuid_of(whole, part), "uuid");
  sim::put(info.attributes, sim::format_settings(settings), whole.profile);
  info.part_of = index;
  info.parts = 0;
  info.memory_bytes = part.memory_mib * kMiB;
  info.reserved_bytes = 0;  // what the card keeps for itself is no instance's
}

unsigned capability(unsigned minor, unsigned gpu_instance) {
  return kFirstCapability + (minor * kGpuInstances + gpu_instance) * (kComputeInstances + 1);
}

unsigned capability(unsigned minor, unsigned gpu_instance, unsigned compute_instance) {
  return capability(minor, gpu_instance) + 1 + compute_instance;
}

std::string capability_node(unsigned number) { return "nvidia-caps/nvidia-cap" + std::to_string(number); }

}  // namespace simnvidia
