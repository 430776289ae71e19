// SPDX-License-Identifier: Apache-2.0
//
// vgpu.config and vgpu-ids.config, joined by a NUL: what is taken for good is a good config page.
#include <algorithm>
#include <cstring>

#include "fuzz.h"
#include "xpu/upstream.h"

using namespace xpu;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto* text = reinterpret_cast<const char*>(data);
    const std::size_t cut = static_cast<std::size_t>(std::find(text, text + size, '\0') - text);
    const std::string_view limits(text, cut);
    const std::string_view ids =
        cut == size ? std::string_view() : std::string_view(text + cut + 1, size - cut - 1);
    static xpu_config_page page;
    const PageState state = parse_upstream(limits, ids, page);
    HOLDS(state == PageState::kGood || state == PageState::kBadLimits || state == PageState::kBadIds);
    if (state != PageState::kGood) return 0;
    HOLDS(check(page) == PageState::kGood && page.cards >= 1);
    for (std::uint32_t index = 0; index < page.cards; ++index) {
        HOLDS(page.card[index].memory_bytes % (1u << 20) == 0);
        HOLDS((page.card[index].mode == XPU_MODE_NONE) == (page.card[index].cores_percent % 100 == 0));
    }
    return 0;
}
