// SPDX-License-Identifier: Apache-2.0
#include "registry.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <unistd.h>

#include <nlohmann/json.hpp>

namespace flexnpu {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::size_t kMostIdBytes = 64;
const char* const kNameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

bool is_name(const std::string& text) {
    return !text.empty() && text.size() <= kMostIdBytes && text[0] != '.' &&
           text.find_first_not_of(kNameCharacters) == std::string::npos;
}

// A whole number of the body within bounds; `why` says otherwise.
bool take(const Json& body, const char* key, std::int64_t least, std::int64_t most, std::int64_t& value,
          std::string& why) {
    const auto found = body.find(key);
    const bool whole = found != body.end() && found->is_number_integer() &&
                       !(found->is_number_unsigned() && found->get<std::uint64_t>() > INT64_MAX);
    if (whole && found->get<std::int64_t>() >= least && found->get<std::int64_t>() <= most) {
        value = found->get<std::int64_t>();
        return true;
    }
    why = std::string(key) + " is " + (found == body.end() ? "missing" : found->dump()) +
          "; allowed is a whole number from " + std::to_string(least) + " to " + std::to_string(most);
    return false;
}

bool same_chip(const Task& task, int npu, int chip) { return task.npu == npu && task.chip == chip; }

std::string named(const Chip& chip) {
    return "npu " + std::to_string(chip.npu) + " chip " + std::to_string(chip.chip);
}

} // namespace

bool Task::operator==(const Task& other) const {
    const auto all = [](const Task& t) {
        return std::tie(t.id, t.entity, t.npu, t.chip, t.aicore_alloc, t.memory_alloc, t.priority);
    };
    return all(*this) == all(other);
}

std::optional<Task> parse_task(const std::string& body, std::string& why) {
    const Json json = Json::parse(body, nullptr, false);
    if (!json.is_object()) {
        why = "the body is no JSON object";
        return std::nullopt;
    }
    static const std::set<std::string> known = {"flexnpu_id",   "entity",       "npu",     "chip",
                                                "aicore_alloc", "memory_alloc", "priority"};
    for (const auto& entry : json.items()) {
        if (known.count(entry.key()) != 0) continue;
        why = "there is no field '" + entry.key() + "'; remove it";
        return std::nullopt;
    }
    Task task;
    const auto text = [&](const char* key) {
        const auto found = json.find(key);
        return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
    };
    task.id = text("flexnpu_id");
    task.entity = text("entity");
    for (const auto& [key, value] : {std::pair("flexnpu_id", &task.id), std::pair("entity", &task.entity)}) {
        if (is_name(*value)) continue;
        why = std::string(key) + " is '" + *value + "'; allowed are 1 to 64 letters, digits, '.', '_' and '-', not " +
              "beginning with '.'";
        return std::nullopt;
    }
    std::int64_t npu = 0, chip = 0, aicore = 0, memory = 0, priority = 0;
    if (!take(json, "npu", 0, 1023, npu, why) || !take(json, "chip", 0, 1023, chip, why) ||
        !take(json, "aicore_alloc", 1, 16, aicore, why) || !take(json, "memory_alloc", 0, 1 << 30, memory, why) ||
        (json.contains("priority") && !take(json, "priority", 0, 9, priority, why)))
        return std::nullopt;
    task.npu = static_cast<int>(npu);
    task.chip = static_cast<int>(chip);
    task.aicore_alloc = static_cast<unsigned>(aicore);
    task.memory_alloc = static_cast<std::uint64_t>(memory);
    task.priority = static_cast<unsigned>(priority);
    return task;
}

std::string format_task(const Task& task) {
    return Json{{"flexnpu_id", task.id},           {"entity", task.entity},
                {"npu", task.npu},                 {"chip", task.chip},
                {"aicore_alloc", task.aicore_alloc}, {"memory_alloc", task.memory_alloc},
                {"priority", task.priority}}
        .dump();
}

const Chip* find_chip(const std::vector<Chip>& chips, int npu, int chip) {
    for (const Chip& one : chips)
        if (one.npu == npu && one.chip == chip) return &one;
    return nullptr;
}

unsigned allotted_slots(const Tasks& tasks, int npu, int chip) {
    unsigned sum = 0;
    for (const auto& [id, task] : tasks)
        if (same_chip(task, npu, chip)) sum += task.aicore_alloc;
    return sum;
}

std::string refusal(const Task& task, const Tasks& tasks, const std::vector<Chip>& chips, const Limits& limits) {
    if (const auto there = tasks.find(task.id); there != tasks.end()) {
        if (there->second == task) return "";
        return "flexnpu_id " + task.id + " is registered already, as " + format_task(there->second) +
               "; unregister it first, or choose another id";
    }
    if (tasks.size() >= limits.max_size)
        return "there are " + std::to_string(tasks.size()) + " tasks, max_size allows " +
               std::to_string(limits.max_size) + "; unregister one, or raise max_size in flexnpud.conf";
    const Chip* const chip = find_chip(chips, task.npu, task.chip);
    if (chip == nullptr) {
        std::string list;
        for (const Chip& one : chips) list += (list.empty() ? "" : ", ") + named(one);
        return "there is no npu " + std::to_string(task.npu) + " chip " + std::to_string(task.chip) +
               "; this host has " + (list.empty() ? "none" : list);
    }
    const unsigned slots = allotted_slots(tasks, task.npu, task.chip);
    if (slots + task.aicore_alloc > limits.quota)
        return "aicore_alloc is " + std::to_string(task.aicore_alloc) + "; of the " + std::to_string(limits.quota) +
               " slots (quota) of " + named(*chip) + " " + std::to_string(limits.quota - std::min(slots, limits.quota)) +
               " are free; lower it, unregister a task there, or raise quota (at most 16)";
    std::uint64_t memory = 0;
    for (const auto& [id, other] : tasks)
        if (same_chip(other, task.npu, task.chip)) memory += other.memory_alloc;
    if (memory + task.memory_alloc > chip->memory_mb)
        return "memory_alloc is " + std::to_string(task.memory_alloc) + " MB; of the " +
               std::to_string(chip->memory_mb) + " MB of " + named(*chip) + " " +
               std::to_string(chip->memory_mb - std::min(memory, chip->memory_mb)) +
               " MB are free; lower it, or unregister a task there";
    return "";
}

Tasks load_tasks(const std::string& directory, std::vector<std::string>& torn) {
    Tasks tasks;
    fs::create_directories(directory);
    for (const auto& entry : fs::directory_iterator(directory)) {
        const std::string name = entry.path().filename().string();
        const std::string ending = entry.path().extension().string();
        if (!entry.is_regular_file() || ending == ".torn") continue;
        if (ending == ".new") { // of a daemon that died while it wrote; nobody was told OK
            fs::remove(entry.path());
            continue;
        }
        std::ifstream stream(entry.path());
        std::ostringstream text;
        text << stream.rdbuf();
        std::string why;
        const auto task = parse_task(text.str(), why);
        if (task && task->id == name) {
            tasks[task->id] = *task;
            continue;
        }
        fs::rename(entry.path(), entry.path().string() + ".torn");
        torn.push_back(name + " (" + (task ? "it names another id, " + task->id : why) + ")");
    }
    return tasks;
}

void save_task(const std::string& directory, const Task& task) {
    const std::string path = directory + "/" + task.id;
    const std::string beside = path + ".new";
    const std::string text = format_task(task) + "\n";
    const int file = open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    const bool written = file >= 0 && write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                         fsync(file) == 0;
    const int error = errno;
    if (file >= 0) close(file);
    if (written && rename(beside.c_str(), path.c_str()) == 0) return;
    unlink(beside.c_str());
    throw std::runtime_error("cannot write " + path + ": " + std::strerror(written ? errno : error) +
                             "; make room there and register again");
}

void drop_task(const std::string& directory, const std::string& id) { fs::remove(directory + "/" + id); }

} // namespace flexnpu
