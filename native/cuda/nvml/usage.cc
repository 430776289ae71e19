// SPDX-License-Identifier: Apache-2.0
#include "usage.h"

#include <algorithm>

namespace xpu::nvml {
namespace {

// A slot that had another owner before began at nothing.
std::uint64_t charged_before(const Reading* before, const Reading::Process& process,
                             unsigned card) noexcept {
    for (unsigned index = 0; before != nullptr && index < before->processes; ++index) {
        const Reading::Process& candidate = before->process[index];
        if (candidate.owner == process.owner) return candidate.charged_ns[card];
    }
    return 0;
}

} // namespace

unsigned percent_of(std::uint64_t before, std::uint64_t after, Nanos period) noexcept {
    if (after <= before || period <= 0) return 0;
    const double share = static_cast<double>(after - before) / static_cast<double>(period);
    return static_cast<unsigned>(std::min(100.0 * share + 0.5, 100.0));
}

void compare(const Reading* before, const Reading& after, unsigned card, Usage& out) noexcept {
    const Nanos period = before == nullptr ? 0 : after.at - before->at;
    out.until = after.at;
    out.percent = before == nullptr ? 0
                                    : percent_of(before->charged_ns[card], after.charged_ns[card],
                                                 period);
    out.memory_bytes = 0;
    out.processes = 0;
    for (unsigned index = 0; index < after.processes; ++index) {
        const Reading::Process& process = after.process[index];
        const std::uint64_t charged = process.charged_ns[card];
        if (process.memory_bytes[card] == 0 && charged == 0) continue; // on another card
        const std::uint64_t earlier = charged_before(before, process, card);
        out.memory_bytes += process.memory_bytes[card];
        out.process[out.processes++] = {process.pid, process.memory_bytes[card],
                                        percent_of(earlier, charged, period),
                                        period > 0 && charged > earlier};
    }
}

const Reading* History::oldest() const noexcept {
    if (kept_ == 0) return nullptr;
    return &reading_[kept_ < kReadings ? 0 : kept_ % kReadings];
}

const Reading* History::begin(Nanos now, Nanos since) const noexcept {
    const Reading* found = nullptr; // the newest that will do, else the oldest there is
    for (unsigned age = std::min(kept_, kReadings); age > 0; --age) {
        const Reading& reading = reading_[(kept_ - age) % kReadings];
        if (reading.at > now - kWindow) break;
        if (found == nullptr || since == 0 || reading.at <= since) found = &reading;
    }
    return found;
}

void History::keep(const Reading& reading) noexcept {
    if (kept_ > 0 && reading.at < reading_[(kept_ - 1) % kReadings].at + kWindow) return;
    reading_[kept_++ % kReadings] = reading;
}

} // namespace xpu::nvml
