// SPDX-License-Identifier: Apache-2.0
//
// flexnpud's pure parts (configuration, HTTP, what may be registered, the files in ins/) and the pages' layout.
#include "../../common/tests/check.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "conf.h"
#include "http.h"
#include "registry.h"
#include "xpu_ascend/grant_page.h"

using namespace flexnpu;

namespace {

std::string conf_error(const std::string& text) {
    try {
        parse_conf(text, "x.conf");
    } catch (const ConfError& error) {
        return error.what();
    }
    return "";
}

std::string body(const std::string& changed = "", const std::string& value = "") {
    std::string text = "{";
    for (const auto& [key, usual] : std::vector<std::pair<std::string, std::string>>{
             {"flexnpu_id", "\"a\""}, {"entity", "\"e\""}, {"npu", "0"}, {"chip", "0"},
             {"aicore_alloc", "2"},   {"memory_alloc", "100"}}) {
        const std::string now = key == changed ? value : usual;
        if (!now.empty()) text += (text.size() > 1 ? ", \"" : "\"") + key + "\": " + now;
    }
    return text + "}";
}

std::string task_error(const std::string& text) {
    std::string why;
    return parse_task(text, why) ? "" : why;
}

Task task(const std::string& id, unsigned aicore, std::uint64_t memory = 0, int npu = 0) {
    Task made;
    made.id = id;
    made.entity = "e";
    made.npu = npu;
    made.aicore_alloc = aicore;
    made.memory_alloc = memory;
    return made;
}

std::string refused(const Task& one, const Tasks& tasks, Limits limits = {10, 128}) {
    return refusal(one, tasks, {{0, 0, "die", 1000}}, limits);
}

std::string scratch() {
    const char* const directory = std::getenv("XPU_TEST_DIR");
    return std::string(directory == nullptr ? "/tmp" : directory) + "/ins";
}

void put(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

} // namespace

CASE(the_documented_keys_are_read) {
    const Conf conf = parse_conf("# why\n[server]\nport = 9\n[flexnpu]\nshare_in_idle=true\n schedule_cycle = 5000 \n"
                                 "[ticker]\nquota = 16\n[logger]\nlog_file = /x y.log\n",
                                 "x.conf");
    CHECK_EQ(conf.port, 9U);
    CHECK(conf.share_in_idle);
    CHECK_EQ(conf.schedule_cycle_us, 5000);
    CHECK_EQ(conf.quota, 16U);
    CHECK_EQ(conf.log_file, std::string("/x y.log"));
    CHECK_EQ(conf.host, std::string("127.0.0.1"));
}

CASE(closed_keys_are_accepted) {
    CHECK_EQ(conf_error("[shared_memory]\nsize = 1024\nname = flexnpud_shm\ntask_execute_bitmap_offset = 0\n"
                        "task_request_bitmap_offset = 16\n[ticker]\nticker_interval = 100\n[server]\ndebug = x\n"
                        "[flexnpu]\nserver_bin = /usr/local/bin/flexnpu-server\n"),
             std::string());
}

CASE(a_wrong_configuration_names_line_value_and_what_is_allowed) {
    const std::pair<const char*, const char*> table[] = {
        {"[ticker]\nquota = 17\n", "x.conf:2: ticker.quota is '17'; allowed is a whole number from 1 to 16"},
        {"[ticker]\nquota = 0\n", "x.conf:2: ticker.quota is '0'; allowed is a whole number from 1 to 16"},
        {"[ticker]\nquota = 1x\n", "x.conf:2: ticker.quota is '1x'; allowed is a whole number from 1 to 16"},
        {"[server]\nhost = 0.0.0.0\n", "x.conf:2: server.host is '0.0.0.0'; allowed is one of 127.0.0.1, ::1, localhost"},
        {"[flexnpu]\nshare_in_idle = yes\n", "x.conf:2: flexnpu.share_in_idle is 'yes'; allowed is true or false"},
        {"[flexnpu]\npersistent_file_dir =\n", "x.conf:2: flexnpu.persistent_file_dir is ''; it must not be empty"},
        {"[ticker]\nquote = 3\n",
         "x.conf:2: there is no key 'ticker.quote'; remove it, or see README.md for those there are"},
        {"[ticker]\nquota = 3\nquota = 4\n", "x.conf:3: ticker.quota is given twice; keep one"},
        {"hello\n", "x.conf:1: 'hello' is no 'key = value'"},
    };
    for (const auto& [text, wanted] : table) CHECK_EQ(conf_error(text), std::string(wanted));
}

CASE(a_body_is_a_task) {
    std::string why;
    const auto made = parse_task(body(), why);
    CHECK(made.has_value());
    CHECK(*made == task("a", 2, 100));
    CHECK(*parse_task(format_task(*made), why) == *made);
    CHECK_EQ(parse_task("{\"priority\": 9, " + body().substr(1), why)->priority, 9U);
}

CASE(a_wrong_body_names_field_value_and_what_is_allowed) {
    CHECK_EQ(task_error("garbage"), std::string("the body is no JSON object"));
    CHECK_EQ(task_error("[]"), std::string("the body is no JSON object"));
    CHECK_EQ(task_error(body("npu", "")), std::string("npu is missing; allowed is a whole number from 0 to 1023"));
    CHECK_EQ(task_error(body("npu", "-1")), std::string("npu is -1; allowed is a whole number from 0 to 1023"));
    CHECK_EQ(task_error(body("aicore_alloc", "17")),
             std::string("aicore_alloc is 17; allowed is a whole number from 1 to 16"));
    CHECK_EQ(task_error(body("aicore_alloc", "2.5")),
             std::string("aicore_alloc is 2.5; allowed is a whole number from 1 to 16"));
    CHECK_EQ(task_error(body("memory_alloc", "18446744073709551615")),
             std::string("memory_alloc is 18446744073709551615; allowed is a whole number from 0 to 1073741824"));
    CHECK_EQ(task_error(body("flexnpu_id", "\"../x\"")),
             std::string("flexnpu_id is '../x'; allowed are 1 to 64 letters, digits, '.', '_' and '-', not beginning "
                         "with '.'"));
    CHECK_EQ(task_error("{\"prio\": 1, " + body().substr(1)), std::string("there is no field 'prio'; remove it"));
}

CASE(what_fits_is_taken_and_the_rest_refused_with_the_reason) {
    const Tasks there{{"a", task("a", 8, 600)}};
    CHECK_EQ(refused(task("b", 2, 400), there), std::string());
    CHECK_EQ(refused(task("a", 8, 600), there), std::string());
    CHECK_EQ(refused(task("b", 3), there),
             std::string("aicore_alloc is 3; of the 10 slots (quota) of npu 0 chip 0 2 are free; lower it, unregister a "
                         "task there, or raise quota (at most 16)"));
    CHECK_EQ(refused(task("b", 1, 401), there),
             std::string("memory_alloc is 401 MB; of the 1000 MB of npu 0 chip 0 400 MB are free; lower it, or "
                         "unregister a task there"));
    CHECK_EQ(refused(task("b", 1, 0, 3), there), std::string("there is no npu 3 chip 0; this host has npu 0 chip 0"));
    CHECK(refused(task("a", 7, 600), there).rfind("flexnpu_id a is registered already, as {", 0) == 0);
    CHECK_EQ(refused(task("b", 1), there, {10, 1}),
             std::string("there are 1 tasks, max_size allows 1; unregister one, or raise max_size in flexnpud.conf"));
}

CASE(a_saved_task_is_loaded_and_a_torn_one_set_aside) {
    const std::string directory = scratch();
    std::filesystem::remove_all(directory);
    std::vector<std::string> torn;
    CHECK(load_tasks(directory, torn).empty());
    save_task(directory, task("a", 2, 100));
    save_task(directory, task("b", 3));
    put(directory + "/c", body().substr(0, 20));
    put(directory + "/d", format_task(task("other", 1)));
    put(directory + "/e.new", "half");
    const Tasks found = load_tasks(directory, torn);
    CHECK_EQ(found.size(), std::size_t{2});
    CHECK(found.at("a") == task("a", 2, 100));
    CHECK_EQ(torn.size(), std::size_t{2});
    CHECK(std::filesystem::exists(directory + "/c.torn") && std::filesystem::exists(directory + "/d.torn"));
    CHECK(!std::filesystem::exists(directory + "/e.new"));
    torn.clear();
    CHECK_EQ(load_tasks(directory, torn).size(), std::size_t{2});
    CHECK(torn.empty()); // it is reported once
    drop_task(directory, "a");
    CHECK_EQ(load_tasks(directory, torn).size(), std::size_t{1});
}

CASE(a_full_disk_leaves_nothing_half_written) {
    std::string said;
    try {
        save_task("/dev/full", task("a", 1));
    } catch (const std::runtime_error& error) {
        said = error.what();
    }
    CHECK(said.rfind("cannot write /dev/full/a: ", 0) == 0);
}

CASE(a_request_is_read_however_it_is_cut) {
    const std::string whole = "POST /device/register?x HTTP/1.1\r\nHost: a\r\nauthorization:  Bearer t \r\n"
                              "Content-Length: 4\r\n\r\n{\"\"}";
    for (std::size_t cut = 0; cut < whole.size(); ++cut)
        CHECK_EQ(parse_request(whole.substr(0, cut)).state, Parsed::kMore);
    const Parsed parsed = parse_request(whole);
    CHECK_EQ(parsed.state, Parsed::kDone);
    CHECK_EQ(parsed.request.method + " " + parsed.request.path, std::string("POST /device/register"));
    CHECK_EQ(parsed.request.body, std::string("{\"\"}"));
    CHECK_EQ(parsed.request.authorization, std::string("Bearer t"));
}

CASE(what_is_no_request_is_told_so) {
    const std::pair<std::string, int> table[] = {
        {"garbage\r\n\r\n", 400},
        {"GET  HTTP/1.1\r\nnocolon\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413},
        {std::string(9000, 'a'), 431},
    };
    for (const auto& [bytes, status] : table) {
        const Parsed parsed = parse_request(bytes);
        CHECK_EQ(parsed.state, Parsed::kBad);
        CHECK_EQ(parsed.status, status);
    }
}

// The frozen layout, as bytes: entry 1 of a grant page, entry 1 of slot 1 of a request page.
CASE(the_pages_lie_where_version_1_says) {
    static unsigned char bytes[sizeof(xpu_request_page)];
    const auto put_at = [](std::size_t at, std::uint64_t value, std::size_t size) { std::memcpy(bytes + at, &value, size); };
    put_at(0, 0x47555058, 4);
    put_at(16, 77, 8);
    put_at(64 + 64, 5, 8);
    put_at(64 + 64 + 8, 1234567890123, 8);
    put_at(64 + 64 + 16, 9, 4);
    put_at(64 + 64 + 20, 16, 4);
    xpu_grant_page grants;
    std::memcpy(&grants, bytes, sizeof grants);
    CHECK_EQ(grants.magic, XPU_GRANT_MAGIC);
    CHECK_EQ(grants.beat_ns, 77);
    CHECK_EQ(grants.card[1].turn, 5U);
    CHECK_EQ(grants.card[1].until_ns, 1234567890123);
    CHECK_EQ(grants.card[1].word, 9U);
    CHECK_EQ(grants.card[1].operators, 16U);
    std::memset(bytes, 0, sizeof bytes);
    put_at(8, 2, 4);
    put_at(64 + 576 + 64 + 32, 5, 8);
    put_at(64 + 576 + 64 + 32 + 8, 6, 8);
    put_at(64 + 576 + 64 + 32 + 16, 1, 4);
    static xpu_request_page requests;
    std::memcpy(&requests, bytes, sizeof requests);
    CHECK_EQ(requests.slots_used, 2U);
    CHECK_EQ(requests.process[1].card[1].using_turn, 5U);
    CHECK_EQ(requests.process[1].card[1].launches, 6U);
    CHECK_EQ(requests.process[1].card[1].wants, 1U);
}

int main(int argc, char** argv) { return check::run(argc, argv); }
