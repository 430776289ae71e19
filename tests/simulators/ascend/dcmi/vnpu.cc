// SPDX-License-Identifier: GPL-3.0-or-later
#include "vnpu.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace simascend {
namespace {

constexpr const char* kPrefix = "vnpu.";

using Field = unsigned Resources::*;
constexpr std::pair<const char*, Field> kFields[] = {
    {"aicore", &Resources::aicore}, {"memory_gb", &Resources::memory_gb}, {"aicpu", &Resources::aicpu},
    {"vpc", &Resources::vpc},       {"venc", &Resources::venc},           {"vdec", &Resources::vdec},
    {"jpegd", &Resources::jpegd},   {"jpege", &Resources::jpege}};

unsigned setting(const sim::Settings& profile, const std::string& key) {
  return static_cast<unsigned>(sim::number(profile, key, "profile"));
}

bool taken(const std::vector<Vnpu>& vnpus, unsigned id) {
  return std::any_of(vnpus.begin(), vnpus.end(), [&](const Vnpu& one) { return one.id == id; });
}

}  // namespace

std::vector<Template> templates_of(const sim::Settings& profile) {
  std::vector<Template> found;
  for (const auto& [key, text] : profile) {
    if (key.rfind(kPrefix, 0) != 0) continue;
    Template one{key.substr(std::string(kPrefix).size()), {}};
    std::istringstream words(text);
    for (const auto& [name, field] : kFields) {
      if (!(words >> one.takes.*field)) throw std::runtime_error(key + ": no " + name + " in '" + text + "'");
    }
    found.push_back(one);
  }
  return found;
}

Resources total_of(const sim::Settings& profile) {
  Resources total{};
  for (const auto& [name, field] : kFields) {
    if (field != &Resources::memory_gb) total.*field = setting(profile, name);
  }
  total.memory_gb = setting(profile, "memory_mib") >> 10;
  return total;
}

VnpuState load_vnpus(const std::string& path) {
  VnpuState state;
  if (!std::filesystem::exists(path)) return state;
  for (const auto& [key, text] : sim::parse_settings(sim::read_text(path), path)) {
    if (key == "mode") {
      state.virtual_machines = text == "vm";
    } else if (key == "recover") {
      state.recover = text == "1";
    } else {
      unsigned chip = 0;
      Vnpu one{};
      char of[64] = "";
      if (std::sscanf(key.c_str(), "%u.%u", &chip, &one.id) != 2 ||
          std::sscanf(text.c_str(), "%63s %u", of, &one.group) != 2) {
        throw std::runtime_error(path + ": '" + key + " " + text + "' is no vNPU");
      }
      one.of = of;
      state.chips[chip].push_back(one);
    }
  }
  return state;
}

void save_vnpus(const std::string& path, const VnpuState& state) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  const std::string scratch = path + ".new";
  {
    std::ofstream stream(scratch);
    stream << "mode " << (state.virtual_machines ? "vm" : "docker") << "\nrecover " << state.recover << "\n";
    for (const auto& [chip, vnpus] : state.chips) {
      for (const Vnpu& one : vnpus) {
        stream << chip << "." << one.id << " " << one.of << " " << one.group << "\n";
      }
    }
    if (!stream.flush()) throw std::runtime_error("cannot write " + scratch);
  }
  std::filesystem::rename(scratch, path);
}

Resources free_of(const sim::Settings& profile, const std::vector<Vnpu>& vnpus) {
  Resources left = total_of(profile);
  const auto templates = templates_of(profile);
  for (const Vnpu& one : vnpus) {
    for (const Template& known : templates) {
      if (known.name != one.of) continue;
      for (const auto& [name, field] : kFields) left.*field -= std::min(left.*field, known.takes.*field);
    }
  }
  return left;
}

std::string create_vnpu(const sim::Settings& profile, unsigned chip, std::vector<Vnpu>& vnpus,
                        const std::string& of, unsigned& id, unsigned& group) {
  const auto templates = templates_of(profile);
  const auto wanted = std::find_if(templates.begin(), templates.end(),
                                   [&](const Template& one) { return one.name == of; });
  if (wanted == templates.end()) return "The template " + of + " is not supported";
  const Resources left = free_of(profile, vnpus);
  for (const auto& [name, field] : kFields) {
    if (wanted->takes.*field > left.*field) return std::string("The ") + name + " resource is insufficient";
  }
  const unsigned first = chip * 16 + 100, count = setting(profile, "vnpu_ids");
  for (unsigned next = first; id == kChosen && next < first + count; ++next) {
    if (!taken(vnpus, next)) id = next;
  }
  if (id < first || id >= first + count) return "The vnpu id is out of range";
  if (taken(vnpus, id)) return "The vnpu id is used";
  const unsigned groups = setting(profile, "vnpu_vgroups");
  if (group != kChosen && group >= groups) return "The vgroup id is not supported";
  if (group == kChosen) group = groups == 0 ? 0 : static_cast<unsigned>(vnpus.size()) % groups;
  vnpus.push_back({id, group, of});
  return "";
}

}  // namespace simascend
