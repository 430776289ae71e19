// SPDX-License-Identifier: Apache-2.0
//
// flexnpud.conf: an INI file with the documented keys. Those the documents call "not open yet" are accepted
// and change nothing; a key that nobody knows is an error, as it was meant to do something.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace flexnpu {

struct Conf {
    std::string host = "127.0.0.1";
    unsigned port = 8080;
    std::string log_level = "info";
    std::string log_file = "./flexnpud.log";
    std::uint64_t log_file_size = 1048576;
    unsigned log_file_archive_count = 100;
    std::int64_t schedule_cycle_us = 10000;
    std::string persistent_file_dir = "./ins";
    unsigned max_size = 128;
    bool share_in_idle = false;
    std::string dcmi_lib_file = "/usr/local/dcmi/libdcmi.so";
    unsigned quota = 10;
    // Ours: where the tasks' pages lie, a directory for each, and who may call the REST routes.
    std::string page_dir = "./pages";
    std::string token_file;
};

struct ConfError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws ConfError that names `origin`, the line, the value, and what is allowed.
Conf parse_conf(const std::string& text, const std::string& origin);

} // namespace flexnpu
