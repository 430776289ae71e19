// SPDX-License-Identifier: Apache-2.0
#include "conf.h"

#include <charconv>
#include <functional>
#include <map>
#include <set>
#include <sstream>

namespace flexnpu {
namespace {

using Reader = std::function<void(Conf&, const std::string&)>;

template <typename T>
Reader number(T Conf::*field, std::uint64_t least, std::uint64_t most) {
    return [=](Conf& conf, const std::string& text) {
        std::uint64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc() || end != text.data() + text.size() || value < least || value > most)
            throw ConfError("allowed is a whole number from " + std::to_string(least) + " to " + std::to_string(most));
        conf.*field = static_cast<T>(value);
    };
}

Reader text(std::string Conf::*field, bool may_be_empty = false) {
    return [=](Conf& conf, const std::string& value) {
        if (value.empty() && !may_be_empty) throw ConfError("it must not be empty");
        conf.*field = value;
    };
}

Reader one_of(std::string Conf::*field, std::set<std::string> allowed) {
    return [=](Conf& conf, const std::string& value) {
        if (allowed.count(value) != 0) {
            conf.*field = value;
            return;
        }
        std::string list;
        for (const std::string& one : allowed) list += (list.empty() ? "" : ", ") + one;
        throw ConfError("allowed is one of " + list);
    };
}

Reader truth(bool Conf::*field) {
    return [=](Conf& conf, const std::string& value) {
        if (value != "true" && value != "false") throw ConfError("allowed is true or false");
        conf.*field = value == "true";
    };
}

// Upstream's keys for what this daemon has no use for: its worker processes, its one shared segment.
const Reader kClosed = [](Conf&, const std::string&) {};

const std::map<std::string, Reader>& keys() {
    static const std::map<std::string, Reader> all = {
        {"server.host", one_of(&Conf::host, {"127.0.0.1", "::1", "localhost"})},
        {"server.port", number(&Conf::port, 0, 65535)},
        {"server.token_file", text(&Conf::token_file, true)},
        {"server.debug", kClosed},
        {"logger.log_level", one_of(&Conf::log_level, {"debug", "info", "warning", "error"})},
        {"logger.log_file", text(&Conf::log_file)},
        {"logger.log_file_size", number(&Conf::log_file_size, 4096, std::uint64_t{1} << 40)},
        {"logger.log_file_archive_count", number(&Conf::log_file_archive_count, 0, 10000)},
        {"flexnpu.schedule_cycle", number(&Conf::schedule_cycle_us, 1000, 1000000)},
        {"flexnpu.persistent_file_dir", text(&Conf::persistent_file_dir)},
        {"flexnpu.page_dir", text(&Conf::page_dir)},
        {"flexnpu.max_size", number(&Conf::max_size, 1, 4096)},
        {"flexnpu.server_bin", kClosed},
        {"flexnpu.share_in_idle", truth(&Conf::share_in_idle)},
        {"flexnpu.dcmi_lib_file", text(&Conf::dcmi_lib_file)},
        {"ticker.ticker_interval", kClosed},
        {"ticker.quota", number(&Conf::quota, 1, 16)},
        {"shared_memory.size", kClosed},
        {"shared_memory.name", kClosed},
        {"shared_memory.task_execute_bitmap_offset", kClosed},
        {"shared_memory.task_request_bitmap_offset", kClosed},
    };
    return all;
}

std::string trimmed(const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

} // namespace

Conf parse_conf(const std::string& text, const std::string& origin) {
    Conf conf;
    std::istringstream lines(text);
    std::string line, section;
    std::set<std::string> seen;
    for (int count = 1; std::getline(lines, line); ++count) {
        const std::string at = origin + ":" + std::to_string(count) + ": ";
        line = trimmed(line);
        if (line.empty() || line[0] == '#' || line[0] == ';') continue;
        if (line.front() == '[' && line.back() == ']') {
            section = trimmed(line.substr(1, line.size() - 2));
            continue;
        }
        const auto equals = line.find('=');
        if (equals == std::string::npos) throw ConfError(at + "'" + line + "' is no 'key = value'");
        const std::string key = section + "." + trimmed(line.substr(0, equals));
        const std::string value = trimmed(line.substr(equals + 1));
        const auto known = keys().find(key);
        if (known == keys().end())
            throw ConfError(at + "there is no key '" + key + "'; remove it, or see README.md for those there are");
        if (!seen.insert(key).second) throw ConfError(at + key + " is given twice; keep one");
        try {
            known->second(conf, value);
        } catch (const ConfError& why) {
            throw ConfError(at + key + " is '" + value + "'; " + why.what());
        }
    }
    return conf;
}

} // namespace flexnpu
