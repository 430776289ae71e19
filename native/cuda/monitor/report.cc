// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace xpu::monitor {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

std::string print(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string print(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

double percent_of(std::uint64_t before, std::uint64_t after, Nanos period) {
    if (after <= before || period <= 0) return 0;
    return 100.0 * static_cast<double>(after - before) / static_cast<double>(period);
}

unsigned whole(double percent) { return static_cast<unsigned>(std::lround(percent)); }

// A slot that had another owner before began at nothing.
std::uint64_t charged_before(const Reading& before, const Reading::Process& process,
                             unsigned card) {
    for (const Reading::Process& candidate : before.processes) {
        if (candidate.owner == process.owner && candidate.pid == process.pid)
            return candidate.charged_ns[card];
    }
    return 0;
}

DeviceReport device_report(unsigned index, const xpu_card_config& grant, const CardView& card,
                           const Reading& before, const Reading& after) {
    const Nanos period = after.at - before.at;
    const bool limited = grant.mode != XPU_MODE_NONE && grant.cores_percent != 0;
    DeviceReport device{grant.uuid,
                        percent_of(before.charged_ns[index], after.charged_ns[index], period),
                        limited ? grant.cores_percent : 100,
                        0,
                        grant.memory_bytes != 0 ? grant.memory_bytes : card.total_bytes,
                        card,
                        {}};
    for (const Reading::Process& process : after.processes) {
        const double core = percent_of(charged_before(before, process, index),
                                       process.charged_ns[index], period);
        device.memory_bytes += process.memory_bytes[index];
        device.processes.push_back({process.pid, core, process.memory_bytes[index]});
    }
    return device;
}

std::string nvml_text(const CardView& card) {
    return card.known ? print(", whole card by NVML %u%%", card.utilisation_percent) : "";
}

std::string device_json(unsigned index, const DeviceReport& device) {
    std::string text = print("{\"device\":%u,\"core\":%u,\"core_quota\":%u,\"memory\":%llu,"
                             "\"memory_quota\":%llu,\"processes\":[",
                             index, whole(device.core_percent), device.core_quota,
                             static_cast<unsigned long long>(device.memory_bytes),
                             static_cast<unsigned long long>(device.memory_quota));
    const char* comma = "";
    for (const ProcessReport& process : device.processes) {
        text += print("%s{\"pid\":%u,\"core\":%u,\"memory\":%llu,\"core_exact\":%.2f}", comma,
                      process.pid, whole(process.core_percent),
                      static_cast<unsigned long long>(process.memory_bytes),
                      process.core_percent);
        comma = ",";
    }
    text += print("],\"uuid\":\"%s\",\"core_exact\":%.2f", device.uuid.c_str(),
                  device.core_percent);
    if (device.card.known)
        text += print(",\"nvml_card_core\":%u", device.card.utilisation_percent);
    return text + "}";
}

} // namespace

std::vector<DeviceReport> make_report(const Config& config, const std::vector<CardView>& cards,
                                      const Reading& before, const Reading& after) {
    std::vector<DeviceReport> devices;
    for (unsigned index = 0; index < config.cards; ++index) {
        const CardView card = index < cards.size() ? cards[index] : CardView{};
        devices.push_back(device_report(index, config.card[index], card, before, after));
    }
    return devices;
}

// Up to the unit of memory each line is upstream's; what we add comes after it.
std::string as_table(const std::vector<DeviceReport>& devices) {
    std::string text = print("vGPU num: %zu\n", devices.size());
    for (std::size_t index = 0; index < devices.size(); ++index) {
        const DeviceReport& device = devices[index];
        text += print("vGPU %zu usage %2u%%, limit %2u%%, memory usage %6llu/%lluMB", index,
                      whole(device.core_percent), device.core_quota,
                      static_cast<unsigned long long>(device.memory_bytes / kMiB),
                      static_cast<unsigned long long>(device.memory_quota / kMiB));
        text += nvml_text(device.card) + "\n";
        for (const ProcessReport& process : device.processes) {
            text += print("pid %u, core usage %2u%%, memory usage %6lluMB\n", process.pid,
                          whole(process.core_percent),
                          static_cast<unsigned long long>(process.memory_bytes / kMiB));
        }
    }
    return text;
}

std::string as_json(const std::vector<DeviceReport>& devices, Nanos period) {
    std::string text = "{\"type\":\"vGPU\",\"vxpus\":[";
    for (std::size_t index = 0; index < devices.size(); ++index) {
        if (index != 0) text += ",";
        text += device_json(static_cast<unsigned>(index), devices[index]);
    }
    return text + print("],\"period_seconds\":%.3f}\n", static_cast<double>(period) / 1e9);
}

} // namespace xpu::monitor
