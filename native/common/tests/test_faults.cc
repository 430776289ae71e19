// SPDX-License-Identifier: Apache-2.0
//
// Faults of the world around the pages: descriptors that became other files, files with holes, a
// writer that died, clocks that jump, threads that are cancelled.
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "xpu/limiter.h"
#include "xpu/log.h"
#include "xpu/slice.h"

using namespace xpu;

namespace {

constexpr std::uint64_t kMiB = 1u << 20;
constexpr Nanos kSecond = 1'000'000'000;

std::string scratch_file(const char* name) {
    const char* base = std::getenv("XPU_TEST_DIR");
    CHECK(base != nullptr);
    return std::string(base) + "/" + name;
}

void write_ledger_header(const std::string& path) {
    xpu_ledger_page page = {};
    page.magic = XPU_LEDGER_MAGIC;
    page.version = XPU_PAGES_VERSION;
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(&page), 64);
}

std::string fresh_ledger(const char* name) {
    const std::string path = scratch_file(name);
    write_ledger_header(path);
    std::ofstream file(path, std::ios::binary | std::ios::app);
    file << std::string(sizeof(xpu_ledger_page) - 64, '\0');
    return path;
}

std::string ledger_with_holes(const char* name) {
    const std::string path = scratch_file(name);
    write_ledger_header(path);
    CHECK(truncate(path.c_str(), sizeof(xpu_ledger_page)) == 0);
    return path;
}

Mapping attach(Ledger& ledger, const std::string& path) {
    const Mapping mapping = map_ledger(path.c_str(), true);
    ledger.attach(mapping, path.c_str());
    CHECK(ledger.shared_with_others());
    return mapping;
}

// A process that joined, holds `bytes`, and lives until it is released.
class Neighbour {
  public:
    Neighbour(const std::string& path, std::uint64_t bytes) {
        int ready[2];
        CHECK(pipe(ready) == 0 && pipe(done_) == 0);
        pid_ = fork();
        char byte = 0;
        if (pid_ == 0) {
            close(done_[1]);
            Ledger own;
            attach(own, path);
            CHECK(own.join(0) && own.charge_memory(0, bytes, 0) == Charge::kGranted);
            CHECK(write(ready[1], "r", 1) == 1);
            (void)!read(done_[0], &byte, 1);
            _exit(0);
        }
        CHECK(read(ready[0], &byte, 1) == 1);
    }
    void end() {
        close(done_[1]);
        waitpid(pid_, nullptr, 0);
    }

  private:
    int done_[2] = {};
    pid_t pid_ = 0;
};

xpu_config_page good_page(std::uint32_t epoch) {
    xpu_config_page page = {};
    page.magic = XPU_CONFIG_MAGIC;
    page.version = XPU_PAGES_VERSION;
    page.epoch = epoch;
    page.cards = 1;
    std::strcpy(page.card[0].uuid, "GPU");
    page.card[0].cores_percent = 30;
    return page;
}

} // namespace

// A daemon closes every descriptor and opens its own files: one of them gets our number. Asked for
// locks it knows of none, and every neighbour would be taken for dead.
CASE(a_descriptor_that_became_another_file_declares_nobody_dead) {
    const std::string path = fresh_ledger("other.page");
    Neighbour neighbour(path, 60 * kMiB);
    Ledger ledger;
    const Mapping mapping = attach(ledger, path);
    CHECK(ledger.join(0));
    CHECK(ledger.charge_memory(0, 10 * kMiB, 100 * kMiB) == Charge::kGranted);
    const int other = open(scratch_file("journal").c_str(), O_RDWR | O_CREAT, 0600);
    CHECK(dup2(other, mapping.fd) == mapping.fd);
    CHECK(ledger.charge_memory(0, 40 * kMiB, 100 * kMiB) == Charge::kDenied);
    CHECK_EQ(ledger.memory(0), 70 * kMiB);
    neighbour.end();
    CHECK(ledger.charge_memory(0, 90 * kMiB, 100 * kMiB) == Charge::kGranted);
    struct flock range = {};
    range.l_type = F_WRLCK;
    CHECK(fcntl(mapping.fd, F_GETLK, &range) == 0);
    CHECK_EQ(range.l_type, F_UNLCK); // the application's file was never locked
}

CASE(the_slot_is_locked_again_after_the_descriptor_was_lost) {
    const std::string path = fresh_ledger("relock.page");
    Ledger ledger;
    const Mapping mapping = attach(ledger, path);
    CHECK(ledger.join(0));
    CHECK(ledger.charge_memory(0, 60 * kMiB, 100 * kMiB) == Charge::kGranted);
    close(mapping.fd);
    CHECK_EQ(ledger.reap(), 0u); // notices
    Neighbour neighbour(path, 1 * kMiB); // would take an unlocked slot for a dead one's
    CHECK_EQ(ledger.memory(0), 61 * kMiB);
    neighbour.end();
}

// Freed while a thread of ours is about to join again: what it then brings along must be the rest.
CASE(what_is_freed_after_the_slot_was_lost_is_not_brought_back) {
    const std::string path = fresh_ledger("lost.page");
    Ledger ledger;
    const Mapping mapping = attach(ledger, path);
    CHECK(ledger.join(0));
    CHECK(ledger.charge_memory(0, 60 * kMiB, 100 * kMiB) == Charge::kGranted);
    auto* page = static_cast<xpu_ledger_page*>(mapping.base);
    for (xpu_process_slot& slot : page->process) slot.owner = 1; // none is free
    page->process[0].memory_bytes[0] = 0;
    CHECK(ledger.charge_memory(0, kMiB, 100 * kMiB) == Charge::kDenied); // no slot to join
    ledger.refund_memory(0, 60 * kMiB);
    for (xpu_process_slot& slot : page->process) slot.owner = 0;
    CHECK(ledger.charge_memory(0, kMiB, 100 * kMiB) == Charge::kGranted);
    CHECK_EQ(ledger.memory(0), kMiB);
}

CASE(holes_in_a_ledger_are_filled_before_it_is_used) {
    const std::string path = ledger_with_holes("holes.page");
    struct stat found = {};
    Ledger ledger;
    attach(ledger, path);
    CHECK(stat(path.c_str(), &found) == 0);
    CHECK(found.st_blocks * 512 >= static_cast<long>(sizeof(xpu_ledger_page)));
    CHECK(ledger.join(0));
}

// Not in the list, since it fills the filesystem of XPU_TEST_DIR, where to touch a hole is SIGBUS then;
// test_common.py runs it on a small one.
static void full_filesystem() {
    const std::string path = ledger_with_holes("full.page");
    std::ofstream filler(scratch_file("filler"));
    while (filler << std::string(4096, 'x') << std::flush) {
    }
    CHECK(map_ledger(path.c_str(), true).state == PageState::kHoles);
    CHECK(map_ledger(path.c_str(), false).state == PageState::kHoles);
    Ledger ledger;
    ledger.attach(map_ledger(path.c_str(), true), path.c_str());
    CHECK(ledger.join(0)); // on a page of its own
    CHECK(ledger.charge_memory(0, 2, 1) == Charge::kDenied);
    CHECK(ledger.charge_memory(0, 1, 1) == Charge::kGranted);
}

CASE(what_cannot_be_opened_now_is_told_from_what_is_not_there) {
    const std::string path = fresh_ledger("limit.page");
    rlimit before = {}, none = {};
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none.rlim_max = before.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    const PageState state = map_ledger(path.c_str(), true).state;
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(state == PageState::kExhausted);
    CHECK(map_ledger(path.c_str(), true).state == PageState::kGood);
}

CASE(a_pipe_in_place_of_a_page_is_not_waited_for) {
    const std::string path = scratch_file("pipe.page");
    CHECK(mkfifo(path.c_str(), 0600) == 0);
    CHECK(map_config(path.c_str()).state == PageState::kTooShort);
    CHECK(map_ledger(path.c_str(), true).state == PageState::kTooShort);
}

// The writer was killed, or stopped for long, between its two steps: what stands there was granted,
// old or new, field by field, and is a better answer than no limit.
CASE(a_page_that_is_being_written_for_ever_is_taken_as_it_stands) {
    std::vector<xpu_config_page> pages(1, good_page(7));
    Config config;
    CHECK(read_config(pages[0], config) == PageState::kBeingWritten);
    CHECK(await_config(pages[0], config) == PageState::kGood);
    CHECK_EQ(config.card[0].cores_percent, 30u);
    CHECK_EQ(config.epoch, 7u);
    pages[0].card[0].cores_percent = 101;
    CHECK(await_config(pages[0], config) == PageState::kInvalid);
}

CASE(a_clock_that_jumped_back_holds_nobody_longer_than_the_longest_debt) {
    const Rate rate = make_rate(20u << 16, 0, 100'000'000);
    for (const Nanos back : {3'600 * kSecond, 1'000'000 * kSecond}) {
        std::atomic<Nanos> tat{2'000'000 * kSecond};
        Nanos now = tat.load() - back;
        const Nanos started = now;
        while (const Nanos wait = admit(tat, now, kSecond, rate)) now += wait;
        CHECK_IN(now - started, 0, kLongestDebt);
    }
}

CASE(an_absurd_page_holds_nobody_longer_than_the_longest_debt) {
    const Rate rate = make_rate(20u << 16, 0, 100'000'000);
    for (const Nanos absurd : {INT64_MAX, INT64_MAX - 1, INT64_MIN, INT64_MIN + 1}) {
        std::atomic<Nanos> tat{absurd};
        Nanos now = 5 * kSecond;
        while (const Nanos wait = admit(tat, now, kSecond, rate)) now += wait;
        CHECK_IN(now, 5 * kSecond, 5 * kSecond + kLongestDebt);
        CHECK_IN(tat.load(), now, now + 2 * kLongestDebt);
    }
}

// Time that nobody saw is worth one tau, however long it was.
CASE(a_clock_that_jumped_ahead_gives_no_more_than_the_burst) {
    const Nanos tau = 100'000'000, cost = 1'000'000;
    const Rate rate = make_rate(50u << 16, 0, tau);
    std::atomic<Nanos> tat{0};
    Nanos now = 0;
    while (admit(tat, now, cost, rate) == 0) {
    }
    now += 86'400 * kSecond;
    Nanos admitted = 0;
    while (admit(tat, now, cost, rate) == 0) admitted += cost;
    CHECK_IN(admitted, tau / 2, tau / 2 + 2 * cost);
}

namespace {

void* cancelled_while_it_joins(void* ledger) {
    pthread_cancel(pthread_self()); // takes effect at the next cancellation point
    (void)static_cast<Ledger*>(ledger)->join(0);
    pthread_testcancel();
    return nullptr;
}

} // namespace

CASE(a_thread_is_not_cancelled_inside_the_ledger) {
    const std::string path = fresh_ledger("cancel.page");
    Ledger ledger;
    attach(ledger, path);
    pthread_t thread;
    void* result = nullptr;
    CHECK(pthread_create(&thread, nullptr, cancelled_while_it_joins, &ledger) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK(ledger.charge_memory(0, kMiB, kMiB) == Charge::kGranted); // it had joined by then
}

// A message is never worth a signal or a wait: nobody reads, or nobody reads any more.
CASE(a_message_that_nobody_takes_is_dropped) {
    int ends[2];
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    const int errors = dup(STDERR_FILENO);
    CHECK(dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
    for (int message = 0; message < 10'000; ++message) log_line("message %d", message);
    close(ends[0]);
    log_line("the reader is gone");
    CHECK(dup2(errors, STDERR_FILENO) == STDERR_FILENO);
}

int main(int argc, char** argv) {
    if (argc > 1 && std::string(argv[1]) == "full_filesystem") {
        full_filesystem();
        return 0;
    }
    return check::run(argc, argv);
}
