// SPDX-License-Identifier: Apache-2.0
//
// From two readings of the ledger to what NVML shows. Pure.
#ifndef XPU_NVML_USAGE_H
#define XPU_NVML_USAGE_H

#include <cstdint>

#include "xpu/limiter.h"
#include "xpu/pages.h"

namespace xpu::nvml {

// The ledger at one moment, with only the processes that live.
struct Reading {
    struct Process {
        std::uint64_t owner;
        std::uint32_t pid;
        std::uint64_t memory_bytes[XPU_MAX_CARDS];
        std::uint64_t charged_ns[XPU_MAX_CARDS];
    };
    Nanos at = 0;
    std::uint64_t charged_ns[XPU_MAX_CARDS] = {};
    unsigned processes = 0;
    Process process[XPU_MAX_PROCESSES] = {};
};

// What happened on one card between two readings. Percentages are of the whole card, as
// gpu-monitor's and as NVML's own: a slice of 20 % that is used to the full shows 20.
struct Usage {
    struct Process {
        std::uint32_t pid;
        std::uint64_t memory_bytes;
        unsigned percent;
        bool busy;
    };
    Nanos until = 0;
    unsigned percent = 0;
    std::uint64_t memory_bytes = 0;
    unsigned processes = 0;
    Process process[XPU_MAX_PROCESSES] = {};
};

unsigned percent_of(std::uint64_t before, std::uint64_t after, Nanos period) noexcept;

// Without `before`: memory and processes only.
void compare(const Reading* before, const Reading& after, unsigned card, Usage& out) noexcept;

// The readings of this process' past, a window or more apart. A fixed few, the oldest make room.
class History {
  public:
    // NVML's own sampling period: nothing is averaged over less.
    static constexpr Nanos kWindow = 166'666'667;

    // Where a sample that ends at `now` begins, for someone who has seen everything up to `since`
    // (0: nothing). Null: there is no reading that is a window old.
    const Reading* begin(Nanos now, Nanos since) const noexcept;
    const Reading* oldest() const noexcept;
    // Kept when it is the first or a window after the last.
    void keep(const Reading& reading) noexcept;

  private:
    static constexpr unsigned kReadings = 8;
    Reading reading_[kReadings];
    unsigned kept_ = 0; // ever
};

} // namespace xpu::nvml
#endif
