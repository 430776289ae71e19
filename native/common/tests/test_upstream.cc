// SPDX-License-Identifier: Apache-2.0
//
// Upstream's two text files as a grant, and which source of a grant is taken.
#include <fstream>
#include <unistd.h>

#include "check.h"
#include "xpu/upstream.h"

using namespace xpu;

namespace {

constexpr const char* kLimits = "UsedMem:3072\nUsedCores:20\n";
constexpr const char* kIds = "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf-3\n";

std::string in_directory(const char* name) {
    const char* base = std::getenv("XPU_TEST_DIR");
    CHECK(base != nullptr);
    return std::string(base) + "/" + name;
}

void write_file(const char* name, const std::string& text) {
    std::ofstream(in_directory(name), std::ios::binary) << text;
}

struct Bad {
    const char* name;
    std::string limits, ids;
    PageState state;
};

} // namespace

CASE(upstreams_files_grant_what_a_page_would) {
    xpu_config_page page;
    CHECK(parse_upstream(kLimits, kIds, page) == PageState::kGood);
    Config config;
    CHECK(read_config(page, config) == PageState::kGood);
    CHECK_EQ(config.cards, 1u);
    const xpu_card_config& card = config.card[0];
    CHECK_EQ(std::string(card.uuid), "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
    CHECK_EQ(card.memory_bytes, std::uint64_t{3} << 30);
    CHECK_EQ(card.cores_percent, 20u);
    CHECK_EQ(card.mode, static_cast<std::uint32_t>(XPU_MODE_HARD));
    CHECK_EQ(card.tau_ns, std::uint64_t{XPU_DEFAULT_TAU_NS});
    CHECK_EQ(card.vid, 3u);
}

CASE(zero_is_no_limit_and_a_whole_card_needs_none) {
    xpu_config_page page;
    CHECK(parse_upstream("UsedMem:0\nUsedCores:0", kIds, page) == PageState::kGood);
    CHECK_EQ(page.card[0].memory_bytes, 0u);
    CHECK_EQ(page.card[0].mode, static_cast<std::uint32_t>(XPU_MODE_NONE));
    CHECK(parse_upstream("UsedMem:0\nUsedCores:100", kIds, page) == PageState::kGood);
    CHECK_EQ(page.card[0].mode, static_cast<std::uint32_t>(XPU_MODE_NONE));
}

CASE(virtual_cards_on_one_card_share_one_grant) {
    xpu_config_page page;
    CHECK(parse_upstream(kLimits, "GPU-1-0\nGPU-2-7\nGPU-1-1\n", page) == PageState::kGood);
    CHECK_EQ(page.cards, 2u);
    CHECK_EQ(std::string(page.card[1].uuid), "GPU-2");
    CHECK_EQ(page.card[1].vid, 7u);
}

CASE(what_upstream_would_not_write_is_refused) {
    std::string many;
    for (int card = 0; card < 17; ++card) many += "GPU-" + std::to_string(card) + "-0\n";
    const PageState limits = PageState::kBadLimits, ids = PageState::kBadIds;
    const Bad rows[] = {
        {"empty", "", kIds, limits},
        {"one line", "UsedMem:3072\n", kIds, limits},
        {"the other order", "UsedCores:20\nUsedMem:3072\n", kIds, limits},
        {"a third line", std::string(kLimits) + "UsedCores:99\n", kIds, limits},
        {"a sign", "UsedMem:-1\nUsedCores:20\n", kIds, limits},
        {"a space", "UsedMem: 3072\nUsedCores:20\n", kIds, limits},
        {"a unit", "UsedMem:3072MiB\nUsedCores:20\n", kIds, limits},
        {"no figure", "UsedMem:\nUsedCores:20\n", kIds, limits},
        {"over 100 percent", "UsedMem:3072\nUsedCores:101\n", kIds, limits},
        {"more than 64 bits", "UsedMem:99999999999999999999999\nUsedCores:20\n", kIds, limits},
        {"no card", kLimits, "", ids},
        {"an empty line", kLimits, "\n", ids},
        {"no number", kLimits, "GPU-a0\n", ids},
        {"no uuid", kLimits, "-3\n", ids},
        {"no hyphen", kLimits, "GPU\n", ids},
        {"a uuid that does not fit", kLimits, std::string(48, 'x') + "-3\n", ids},
        {"a number that does not fit", kLimits, "GPU-1-4294967296\n", ids},
        {"more cards than a slice has", kLimits, many, ids},
    };
    for (const Bad& row : rows) {
        xpu_config_page page;
        if (parse_upstream(row.limits, row.ids, page) != row.state)
            check::failed(__FILE__, __LINE__, std::string("taken or refused wrongly: ") + row.name);
    }
}

CASE(the_page_goes_before_the_files_and_the_files_before_nothing) {
    const std::string page_path = in_directory("config.page");
    xpu_config_page made;
    GrantSource source = open_grant(page_path.c_str(), made);
    CHECK(source.state == PageState::kAbsent);
    CHECK_EQ(std::string(source.file), page_path);

    write_file("vgpu.config", kLimits);
    source = open_grant(page_path.c_str(), made);
    CHECK(source.state == PageState::kNoIds);
    CHECK_EQ(std::string(source.file), in_directory("vgpu-ids.config"));

    write_file("vgpu-ids.config", kIds);
    source = open_grant(page_path.c_str(), made);
    CHECK(source.state == PageState::kGood && source.page == &made);
    CHECK_EQ(made.card[0].cores_percent, 20u);

    write_file("vgpu.config", "UsedMem:3072\n");
    source = open_grant(page_path.c_str(), made);
    CHECK(source.state == PageState::kBadLimits && source.page == nullptr);
    CHECK_EQ(std::string(source.file), in_directory("vgpu.config"));

    write_file("vgpu.config", std::string(kLimits) + std::string(5000, '\n'));
    CHECK(open_grant(page_path.c_str(), made).state == PageState::kBadLimits);

    // A damaged page is damage, never a reason to believe somebody else's files.
    write_file("vgpu.config", kLimits);
    write_file("config.page", "too short");
    source = open_grant(page_path.c_str(), made);
    CHECK(source.state == PageState::kTooShort && source.page == nullptr);
    write_file("config.page", std::string(sizeof(xpu_config_page), '\0'));
    source = open_grant(page_path.c_str(), made);
    CHECK(source.state == PageState::kGood && source.page != &made);
}

int main(int argc, char** argv) { return check::run(argc, argv); }
