// SPDX-License-Identifier: Apache-2.0
//
// ledger.page, which the tenant can write: whatever stands there, the quota is never exceeded by what is
// granted, nobody waits longer than the longest debt, and what was granted can be given back.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

#include "fuzz.h"
#include "xpu/slice.h"

using namespace xpu;

namespace {

constexpr std::uint64_t kQuota = 1u << 30;

void write_page(int file, const std::uint8_t* data, std::size_t size) {
    static xpu_ledger_page page;
    std::memset(static_cast<void*>(&page), 0, sizeof page);
    if (size != 0) std::memcpy(static_cast<void*>(&page), data, std::min(size, sizeof page));
    HOLDS(pwrite(file, &page, sizeof page, 0) == static_cast<ssize_t>(sizeof page));
}

} // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const int file = static_cast<int>(syscall(SYS_memfd_create, "ledger.page", 0u));
    static char path[64];
    std::snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    write_page(file, data, size);
    Mapping mapping = map_ledger(path, true);
    const bool good = mapping.state == PageState::kGood;
    HOLDS(good == (mapping.base != nullptr));
    if (!good) return 0;
    Ledger ledger;
    ledger.attach(mapping, path);
    if (ledger.join(1'000'000'000)) {
        const std::uint64_t before = ledger.memory(0);
        if (ledger.charge_memory(0, 4096, kQuota) == Charge::kGranted) {
            HOLDS(ledger.memory(0) <= kQuota && ledger.memory(0) >= 4096);
            ledger.refund_memory(0, 4096);
            HOLDS(ledger.memory(0) <= before);
        }
        HOLDS(ledger.charge_memory(0, ~std::uint64_t{0}, kQuota) == Charge::kDenied);
    }
    ledger.add_charged(1, 5);
    const Rate tenth = make_rate(10u << 16, 0, XPU_DEFAULT_TAU_NS);
    const Nanos wait = admit(shared(ledger.card(0).tat_ns), 5, 1000, tenth);
    HOLDS(wait >= 0 && wait <= kLongestDebt);
    unmap(mapping, sizeof(xpu_ledger_page));
    close(mapping.fd);
    return 0;
}
