// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

namespace flexnpu {
namespace {

int level_of(const std::string& name) {
    if (name == "debug") return 0;
    if (name == "warning") return 2;
    return name == "error" ? 3 : 1;
}

int open_log(const std::string& path) {
    return open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
}

} // namespace

Log::Log(const Conf& conf)
    : path_(conf.log_file), most_bytes_(conf.log_file_size), archives_(conf.log_file_archive_count),
      level_(level_of(conf.log_level)), file_(open_log(path_)) {
    if (file_ < 0) throw std::runtime_error("cannot write log_file " + path_ + ": " + std::strerror(errno));
}

void Log::rotate() {
    for (unsigned number = archives_; number > 1; --number)
        rename((path_ + "." + std::to_string(number - 1)).c_str(), (path_ + "." + std::to_string(number)).c_str());
    if (archives_ == 0) unlink(path_.c_str());
    else rename(path_.c_str(), (path_ + ".1").c_str());
    const int next = open_log(path_);
    if (next < 0) return; // the old file takes what comes, wherever it lies now
    close(file_);
    file_ = next;
}

void Log::write(int level, const char* name, const std::string& text) {
    if (level < level_) return;
    struct stat found = {};
    if (fstat(file_, &found) == 0 && static_cast<std::uint64_t>(found.st_size) >= most_bytes_) rotate();
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    localtime_r(&now, &parts);
    char when[32];
    std::strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &parts);
    const std::string line = std::string(when) + " [" + name + "] " + text + "\n";
    // A full disk costs log lines, nothing else.
    if (::write(file_, line.data(), line.size()) < 0) return;
}

} // namespace flexnpu
