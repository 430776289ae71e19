// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "check.h"
#include "usage.h"

using namespace xpu;
using namespace xpu::nvml;

namespace {

constexpr Nanos kMs = 1'000'000;

std::unique_ptr<Reading> reading(Nanos at) {
    auto made = std::make_unique<Reading>();
    made->at = at;
    return made;
}

void add(Reading& to, std::uint64_t owner, std::uint64_t memory, std::uint64_t charged) {
    Reading::Process& process = to.process[to.processes++];
    process.owner = owner;
    process.pid = static_cast<std::uint32_t>(owner);
    process.memory_bytes[0] = memory;
    process.charged_ns[0] = charged;
}

CASE(percent_is_rounded_and_bounded) {
    CHECK_EQ(percent_of(0, 200, 1000), 20u);
    CHECK_EQ(percent_of(0, 196, 1000), 20u);
    CHECK_EQ(percent_of(0, 194, 1000), 19u);
    CHECK_EQ(percent_of(0, 5000, 1000), 100u);
    CHECK_EQ(percent_of(10, 5, 1000), 0u); // a page that was made anew
    CHECK_EQ(percent_of(0, 5, 0), 0u);
    CHECK_EQ(percent_of(0, ~std::uint64_t{0}, 1), 100u);
}

CASE(a_process_is_compared_with_itself) {
    const auto before = reading(1000 * kMs), after = reading(2000 * kMs);
    add(*before, 7, 5, 100 * kMs);
    add(*before, 8, 5, 900 * kMs);
    add(*after, 7, 5, 300 * kMs);
    add(*after, 9, 6, 50 * kMs); // in the slot that was 8's
    add(*after, 10, 0, 0);       // on another card
    before->charged_ns[0] = 1000 * kMs;
    after->charged_ns[0] = 1250 * kMs;
    Usage usage;
    compare(before.get(), *after, 0, usage);
    CHECK_EQ(usage.percent, 25u);
    CHECK_EQ(usage.processes, 2u);
    CHECK_EQ(usage.process[0].percent, 20u);
    CHECK_EQ(usage.process[1].percent, 5u);
    CHECK_EQ(usage.process[1].pid, 9u);
    CHECK_EQ(usage.memory_bytes, 11u);
}

CASE(without_a_past_nobody_is_busy) {
    const auto now = reading(1000 * kMs);
    add(*now, 7, 5, 300 * kMs);
    Usage usage;
    compare(nullptr, *now, 0, usage);
    CHECK_EQ(usage.percent, 0u);
    CHECK_EQ(usage.process[0].busy, false);
    CHECK_EQ(usage.process[0].memory_bytes, 5u);
}

CASE(a_sample_is_at_least_a_window) {
    const auto history = std::make_unique<History>();
    CHECK_EQ(history->begin(5000 * kMs, 0) == nullptr, true);
    history->keep(*reading(1000 * kMs));
    CHECK_EQ(history->begin(1100 * kMs, 0) == nullptr, true);
    CHECK_EQ(history->begin(1000 * kMs + History::kWindow, 0)->at, 1000 * kMs);
}

CASE(readings_closer_than_a_window_are_not_kept) {
    const auto history = std::make_unique<History>();
    for (Nanos at = 0; at <= 1000 * kMs; at += 10 * kMs) history->keep(*reading(1 + at));
    CHECK_EQ(history->begin(1170 * kMs, 0)->at, 1 + 850 * kMs);
}

CASE(a_sample_begins_where_the_last_one_seen_ended) {
    const auto history = std::make_unique<History>();
    for (Nanos at = 1000 * kMs; at <= 2000 * kMs; at += 200 * kMs) history->keep(*reading(at));
    CHECK_EQ(history->begin(2500 * kMs, 0)->at, 2000 * kMs);
    CHECK_EQ(history->begin(2500 * kMs, 1600 * kMs)->at, 1600 * kMs);
    CHECK_EQ(history->begin(2500 * kMs, 1500 * kMs)->at, 1400 * kMs);
    CHECK_EQ(history->begin(2500 * kMs, 1)->at, 1000 * kMs); // before all we know
}

CASE(the_oldest_make_room) {
    const auto history = std::make_unique<History>();
    for (int count = 1; count <= 20; ++count) {
        history->keep(*reading(count * 1000 * kMs));
        CHECK_EQ(history->oldest()->at, std::max(1, count - 7) * 1000 * kMs);
    }
    CHECK_EQ(history->begin(20000 * kMs, 1)->at, 13000 * kMs);
}

} // namespace

int main(int argc, char** argv) { return check::run(argc, argv); }
