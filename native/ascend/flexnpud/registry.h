// SPDX-License-Identifier: Apache-2.0
//
// Which tasks there are: what a register body means, whether it fits, and the file in ins/ that outlives the
// daemon. Pure but for the last section.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace flexnpu {

struct Task {
    std::string id; // also the name of its files, so letters, digits, '.', '_' and '-' only
    std::string entity;
    int npu = 0;
    int chip = 0;
    unsigned aicore_alloc = 0;      // slots of the cycle that it owns
    std::uint64_t memory_alloc = 0; // MB; 0 = no limit
    unsigned priority = 0;          // 0 to 9

    bool operator==(const Task& other) const;
};

struct Chip {
    int npu = 0;
    int chip = 0;
    std::string die;
    std::uint64_t memory_mb = 0;
};

using Tasks = std::map<std::string, Task>;

struct Limits {
    unsigned quota = 10;
    unsigned max_size = 128;
};

// The task that a JSON body describes; empty, and `why` says what is wrong with it.
std::optional<Task> parse_task(const std::string& body, std::string& why);
std::string format_task(const Task& task);

// Empty where `task` may be added (or is there already, the same); else why not, and what to do.
std::string refusal(const Task& task, const Tasks& tasks, const std::vector<Chip>& chips, const Limits& limits);

const Chip* find_chip(const std::vector<Chip>& chips, int npu, int chip);
unsigned allotted_slots(const Tasks& tasks, int npu, int chip);

// The files. A file is written beside and renamed, so a torn one was made by somebody else or a full disk;
// it is set aside as <name>.torn and named in `torn`.
Tasks load_tasks(const std::string& directory, std::vector<std::string>& torn);
void save_task(const std::string& directory, const Task& task); // throws std::runtime_error
void drop_task(const std::string& directory, const std::string& id);

} // namespace flexnpu
