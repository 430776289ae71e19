// SPDX-License-Identifier: Apache-2.0
//
// Logging for code that lives in other people's processes: silent unless XPU_LOG is set, each
// place at most once per process, one write(2) to stderr, no allocation. Silent costs one load.
#ifndef XPU_LOG_H
#define XPU_LOG_H

#include <atomic>

namespace xpu {

bool log_wanted() noexcept;
void log_line(const char* format, ...) noexcept __attribute__((format(printf, 1, 2)));

} // namespace xpu

#define XPU_LOG_ONCE(...)                                                                          \
    do {                                                                                           \
        static std::atomic<bool> said{false};                                                      \
        if (!said.load(std::memory_order_relaxed) && ::xpu::log_wanted() &&                        \
            !said.exchange(true, std::memory_order_relaxed))                                       \
            ::xpu::log_line(__VA_ARGS__);                                                          \
    } while (0)

#endif
