// SPDX-License-Identifier: Apache-2.0
//
// config.page: what is taken for good may be enforced without another look.
#include <algorithm>
#include <cstring>

#include "fuzz.h"
#include "xpu/limiter.h"
#include "xpu/slice.h"

using namespace xpu;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static xpu_config_page page;
    page = {};
    if (size != 0) std::memcpy(static_cast<void*>(&page), data, std::min(size, sizeof page));
    Config config;
    const PageState state = read_config(page, config);
    HOLDS(describe(state) != nullptr);
    if (page.epoch % 2 != 0) HOLDS(state == PageState::kBeingWritten);
    if (state != PageState::kGood) return 0;
    HOLDS(config.cards <= XPU_MAX_CARDS && config.epoch == page.epoch);
    for (std::uint32_t index = 0; index < config.cards; ++index) {
        const xpu_card_config& card = config.card[index];
        const std::size_t length = strnlen(card.uuid, sizeof card.uuid);
        HOLDS(length > 0 && length < sizeof card.uuid);
        HOLDS(card.cores_percent <= 100 && card.mode <= XPU_MODE_PRIORITY);
        const Rate rate = make_rate(card.cores_percent, card.trim_q16, card.tau_ns);
        HOLDS(rate.limited() == (card.cores_percent != 0) && rate.tau >= 0);
        HOLDS(scaled(1'000'000, rate) >= 0 && scaled(INT64_MAX, rate) <= kLongestDebt);
    }
    return 0;
}
