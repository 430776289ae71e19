// SPDX-License-Identifier: Apache-2.0
#include "xpu/log.h"

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <unistd.h>

#include "xpu/uncancelled.h"

namespace xpu {
namespace {

enum class Wanted { kUnknown, kNo, kYes };
std::atomic<Wanted> wanted{Wanted::kUnknown};

// A pipe that is full would make us wait, one that nobody reads any more would be SIGPIPE.
bool takes_a_line(int fd) noexcept {
    pollfd asked = {fd, POLLOUT, 0};
    return poll(&asked, 1, 0) == 1 && asked.revents == POLLOUT;
}

} // namespace

bool log_wanted() noexcept {
    Wanted now = wanted.load(std::memory_order_relaxed);
    if (now == Wanted::kUnknown) {
        const char* value = std::getenv("XPU_LOG");
        now = value != nullptr && value[0] != '\0' ? Wanted::kYes : Wanted::kNo;
        wanted.store(now, std::memory_order_relaxed);
    }
    return now == Wanted::kYes;
}

void log_line(const char* format, ...) noexcept {
    const Uncancelled here;
    const int saved = errno; // the application may be about to look at its own errno
    char text[512];
    int used = std::snprintf(text, sizeof text, "xpu[%d]: ", static_cast<int>(getpid()));
    va_list arguments;
    va_start(arguments, format);
    used += std::max(0, std::vsnprintf(text + used, sizeof text - static_cast<size_t>(used) - 1,
                                       format, arguments));
    va_end(arguments);
    size_t length = std::min(static_cast<size_t>(used), sizeof text - 2);
    text[length++] = '\n';
    if (takes_a_line(STDERR_FILENO) && write(STDERR_FILENO, text, length) < 0) errno = saved;
    errno = saved;
}

} // namespace xpu
