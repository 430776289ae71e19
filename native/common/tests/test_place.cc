// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <fstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "xpu/place.h"

using namespace xpu;

namespace {

std::string scratch(const char* name) {
    const char* directory = std::getenv("XPU_TEST_DIR");
    return std::string(directory == nullptr ? "." : directory) + "/" + name;
}

bool denies(const std::string& content) {
    const std::string page = scratch("config.page");
    std::ofstream(scratch("on_error"), std::ios::binary) << content;
    return read_on_error(page.c_str()) == OnError::kDenyNewMemory;
}

CASE(only_the_word_itself_denies) {
    CHECK(parse_on_error("deny-new-memory") == OnError::kDenyNewMemory);
    CHECK(parse_on_error("deny-new-memory\n") == OnError::kDenyNewMemory);
    for (const char* other : {"", "\n", "allow", "allow\n", "deny", "deny-new-memory\n\n",
                              "deny-new-memory ", "DENY-NEW-MEMORY", "deny-new-memoryx"})
        CHECK(parse_on_error(other) == OnError::kAllow);
}

CASE(the_policy_is_read_beside_the_page) {
    CHECK(denies("deny-new-memory\n"));
    CHECK(!denies("allow\n"));
    CHECK(!denies(""));
    CHECK(!denies(std::string(100, 'd')));
    CHECK(!denies(std::string("deny-new-memory\0", 16)));
}

CASE(without_the_file_all_is_allowed) {
    CHECK(read_on_error(scratch("nowhere/config.page").c_str()) == OnError::kAllow);
    CHECK(read_on_error(std::string(400, 'x').c_str()) == OnError::kAllow);
    mkdir(scratch("dir").c_str(), 0755);
    mkdir(scratch("dir/on_error").c_str(), 0755); // a directory can be opened, not read
    CHECK(read_on_error(scratch("dir/config.page").c_str()) == OnError::kAllow);
}

CASE(names_beside_a_path) {
    char out[256];
    CHECK(name_beside("/etc/xpu/config.page", "on_error", out));
    CHECK_EQ(std::string(out), "/etc/xpu/on_error");
    CHECK(name_beside("config.page", "on_error", out));
    CHECK_EQ(std::string(out), "on_error");
    CHECK(!name_beside((std::string(250, 'x') + "/p").c_str(), "on_error", out));
}

CASE(paths_are_the_products_without_a_test_build) {
    setenv("XPU_CONFIG_PAGE", "/elsewhere", 1);
    CHECK_EQ(std::string(config_page_path()), "/etc/xpu/config.page");
    CHECK_EQ(std::string(ledger_page_path()), "/run/xpu/ledger.page");
}

} // namespace

int main(int argc, char** argv) { return check::run(argc, argv); }
