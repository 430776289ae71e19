// SPDX-License-Identifier: GPL-3.0-or-later
//
// Hard partitions of a chip (vNPU): templates of a profile, and a layout that keeps to the chip. Pure,
// but for load and save.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "hardware.h"

namespace simascend {

// What a template takes, or a chip has.
struct Resources {
  unsigned aicore, memory_gb, aicpu, vpc, venc, vdec, jpegd, jpege;
};

struct Template {
  std::string name;
  Resources takes;
};

struct Vnpu {
  unsigned id;
  unsigned group;
  std::string of;  // its template's name
};

constexpr unsigned kChosen = 0xffffffffu;

std::vector<Template> templates_of(const sim::Settings& profile);
Resources total_of(const sim::Settings& profile);

// All vNPUs of a host, by number of the chip, and its two settings.
struct VnpuState {
  std::map<unsigned, std::vector<Vnpu>> chips;
  bool virtual_machines = false;  // vnpu-mode
  bool recover = true;            // vnpu-cfg-recover
};

VnpuState load_vnpus(const std::string& path);
void save_vnpus(const std::string& path, const VnpuState& state);

Resources free_of(const sim::Settings& profile, const std::vector<Vnpu>& vnpus);

// Adds one to `vnpus`; returns empty, or why not. `id` and `group` may be kChosen, and are set.
std::string create_vnpu(const sim::Settings& profile, unsigned chip, std::vector<Vnpu>& vnpus,
                        const std::string& of, unsigned& id, unsigned& group);

}  // namespace simascend
