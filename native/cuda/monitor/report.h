// SPDX-License-Identifier: Apache-2.0
//
// What gpu-monitor shows: two readings of the pages become a report, a report becomes text. Pure.
#ifndef XPU_MONITOR_REPORT_H
#define XPU_MONITOR_REPORT_H

#include <cstdint>
#include <string>
#include <vector>

#include "xpu/slice.h"

namespace xpu::monitor {

// The ledger at one moment, with only the processes that live.
struct Reading {
    struct Process {
        std::uint64_t owner = 0;
        std::uint32_t pid = 0;
        std::uint64_t memory_bytes[XPU_MAX_CARDS] = {};
        std::uint64_t charged_ns[XPU_MAX_CARDS] = {};
    };
    Nanos at = 0;
    std::uint64_t charged_ns[XPU_MAX_CARDS] = {};
    std::vector<Process> processes;
};

// What NVML says of a whole card, where it is there to be asked.
struct CardView {
    bool known = false;
    unsigned utilisation_percent = 0;
    std::uint64_t total_bytes = 0;
};

struct ProcessReport {
    std::uint32_t pid;
    double core_percent; // of the card
    std::uint64_t memory_bytes;
};

struct DeviceReport {
    std::string uuid;
    double core_percent;
    unsigned core_quota; // 100 where the slice has no compute limit
    std::uint64_t memory_bytes;
    std::uint64_t memory_quota; // 0 where neither the slice nor NVML tells
    CardView card;
    std::vector<ProcessReport> processes;
};

std::vector<DeviceReport> make_report(const Config& config, const std::vector<CardView>& cards,
                                      const Reading& before, const Reading& after);

std::string as_table(const std::vector<DeviceReport>& devices);
std::string as_json(const std::vector<DeviceReport>& devices, Nanos period);

} // namespace xpu::monitor
#endif
