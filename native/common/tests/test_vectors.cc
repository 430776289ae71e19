// SPDX-License-Identifier: Apache-2.0
//
// Prints a config page given on stdin as the C++ reader understands it, one "name value" a line; the
// test in test_common.py compares with vectors/pages.json.
#include <cstdio>

#include "xpu/slice.h"

int main() {
    static xpu_config_page page;
    if (std::fread(&page, sizeof page, 1, stdin) != 1) return 2;
    std::printf("state %d\n", static_cast<int>(xpu::check(page)));
    std::printf("epoch %u\ncards %u\n", page.epoch, page.cards);
    for (unsigned index = 0; index < page.cards; ++index) {
        const xpu_card_config& card = page.card[index];
        std::printf("%u.uuid %s\n", index, card.uuid);
        std::printf("%u.memory_bytes %llu\n", index,
                    static_cast<unsigned long long>(card.memory_bytes));
        std::printf("%u.tau_ns %llu\n", index, static_cast<unsigned long long>(card.tau_ns));
        std::printf("%u.cores_percent %u\n", index, card.cores_percent);
        std::printf("%u.mode %u\n", index, card.mode);
        std::printf("%u.weight %u\n", index, card.weight);
        std::printf("%u.trim_q16 %u\n", index, card.trim_q16);
        std::printf("%u.vid %u\n", index, card.vid);
        std::printf("%u.effective_q16 %u\n", index, card.effective_q16);
        std::printf("%u.overhead_bytes %llu\n", index,
                    static_cast<unsigned long long>(card.overhead_bytes));
        std::printf("%u.context_bytes %llu\n", index,
                    static_cast<unsigned long long>(card.context_bytes));
        std::printf("%u.flags %u\n", index, card.flags);
        std::printf("%u.frame_us %u\n", index, card.frame_us);
        std::printf("%u.window_start_us %u\n", index, card.window_start_us);
        std::printf("%u.window_us %u\n", index, card.window_us);
    }
    return 0;
}
