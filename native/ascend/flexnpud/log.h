// SPDX-License-Identifier: Apache-2.0
//
// flexnpud.log: a line an event, with the local time. A file that has reached its size becomes <file>.1, that
// one <file>.2, and so on; what is beyond the count goes.
#pragma once

#include <cstdint>
#include <string>

#include "conf.h"

namespace flexnpu {

class Log {
  public:
    explicit Log(const Conf& conf); // throws std::runtime_error where the file can't be opened

    void debug(const std::string& text) { write(0, "debug", text); }
    void info(const std::string& text) { write(1, "info", text); }
    void warning(const std::string& text) { write(2, "warning", text); }
    void error(const std::string& text) { write(3, "error", text); }

  private:
    void write(int level, const char* name, const std::string& text);
    void rotate();

    std::string path_;
    std::uint64_t most_bytes_;
    unsigned archives_;
    int level_;
    int file_ = -1;
};

} // namespace flexnpu
