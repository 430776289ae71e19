// SPDX-License-Identifier: Apache-2.0
//
// Pages and ledger, with real files and real processes: their promises are about crashes.
#include <cstddef>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <random>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "check.h"
#include "xpu/slice.h"

using namespace xpu;

namespace {

constexpr std::uint64_t kMiB = 1u << 20;

std::string scratch_file(const char* name) {
    const char* base = std::getenv("XPU_TEST_DIR");
    CHECK(base != nullptr);
    return std::string(base) + "/" + name;
}

std::string fresh_ledger(const char* name) {
    std::vector<char> page(sizeof(xpu_ledger_page), 0);
    auto* header = reinterpret_cast<xpu_ledger_page*>(page.data());
    header->magic = XPU_LEDGER_MAGIC;
    header->version = XPU_PAGES_VERSION;
    const std::string path = scratch_file(name);
    std::ofstream(path, std::ios::binary).write(page.data(), static_cast<long>(page.size()));
    return path;
}

void attach(Ledger& ledger, const std::string& path) {
    ledger.attach(map_ledger(path.c_str(), true), path.c_str());
    CHECK(ledger.shared_with_others());
}

// Runs `body` in a process of its own, which ends by `signal` or normally.
template <typename Body>
int in_child(Body body) {
    const pid_t child = fork();
    if (child == 0) {
        body();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

} // namespace

CASE(config_is_checked) {
    std::vector<xpu_config_page> pages(1);
    xpu_config_page& page = pages[0];
    page = {};
    Config config;
    CHECK(read_config(page, config) == PageState::kWrongMagic);
    page.magic = XPU_CONFIG_MAGIC;
    CHECK(read_config(page, config) == PageState::kWrongVersion);
    page.version = XPU_PAGES_VERSION;
    CHECK(read_config(page, config) == PageState::kGood);
    page.cards = XPU_MAX_CARDS + 1;
    CHECK(read_config(page, config) == PageState::kInvalid);
    page.cards = 1;
    CHECK(read_config(page, config) == PageState::kInvalid); // no uuid
    std::memset(page.card[0].uuid, 'x', sizeof page.card[0].uuid);
    CHECK(read_config(page, config) == PageState::kInvalid); // uuid without an end
    page.card[0].uuid[4] = '\0';
    CHECK(read_config(page, config) == PageState::kGood);
    page.card[0].cores_percent = 101;
    CHECK(read_config(page, config) == PageState::kInvalid);
    page.card[0].cores_percent = 100;
    page.epoch = 3;
    CHECK(read_config(page, config) == PageState::kBeingWritten);
}

CASE(config_is_never_torn) {
    std::vector<xpu_config_page> pages(1);
    xpu_config_page& page = pages[0];
    page = {};
    page.magic = XPU_CONFIG_MAGIC;
    page.version = XPU_PAGES_VERSION;
    page.cards = 1;
    std::strcpy(page.card[0].uuid, "GPU");
    std::atomic<bool> stop{false};
    std::thread writer([&] {
        for (std::uint32_t value = 1; !stop.load(); ++value) {
            shared(page.epoch).fetch_add(1, std::memory_order_acq_rel);
            shared(page.card[0].vid).store(value);
            shared(page.card[0].weight).store(value);
            shared(page.epoch).fetch_add(1, std::memory_order_acq_rel);
        }
    });
    // Counted by what was read, not by attempts: the writer may be held up with an odd epoch.
    for (int good = 0; good < check::rounds(5000);) {
        Config config;
        if (read_config(page, config) != PageState::kGood) continue;
        CHECK_EQ(config.card[0].vid, config.card[0].weight);
        ++good;
    }
    stop.store(true);
    writer.join();
}

CASE(short_missing_and_foreign_files) {
    CHECK(map_config("/nonexistent/config.page").state == PageState::kAbsent);
    const std::string path = scratch_file("short.page");
    std::ofstream(path) << "too short";
    CHECK(map_config(path.c_str()).state == PageState::kTooShort);
    std::ofstream(path) << std::string(sizeof(xpu_ledger_page), 'x');
    CHECK(map_ledger(path.c_str(), true).state == PageState::kWrongMagic);
}

CASE(quota_is_exact) {
    Ledger ledger;
    attach(ledger, fresh_ledger("exact.page"));
    CHECK(ledger.join(0));
    CHECK(ledger.charge_memory(0, 10 * kMiB, 10 * kMiB) == Charge::kGranted);
    CHECK(ledger.charge_memory(0, 1, 10 * kMiB) == Charge::kDenied);
    CHECK(ledger.charge_memory(1, 10 * kMiB, 10 * kMiB) == Charge::kGranted); // another card
    ledger.refund_memory(0, 1);
    CHECK(ledger.charge_memory(0, 1, 10 * kMiB) == Charge::kGranted);
    CHECK(ledger.charge_memory(0, ~std::uint64_t{0}, 10 * kMiB) == Charge::kDenied); // no wrap
    CHECK_EQ(ledger.card(0).denied, 2u);
    ledger.refund_memory(0, 99 * kMiB); // more than was charged: never below zero
    CHECK_EQ(ledger.memory(0), 0u);
}

CASE(what_a_killed_process_held_is_free_again) {
    const std::string path = fresh_ledger("killed.page");
    Ledger ledger;
    attach(ledger, path);
    CHECK(ledger.join(0));
    const int status = in_child([&] {
        Ledger own;
        attach(own, path);
        CHECK(own.join(0));
        CHECK(own.charge_memory(0, 60 * kMiB, 100 * kMiB) == Charge::kGranted);
        kill(getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(ledger.memory(0), 60 * kMiB); // nobody has looked yet
    CHECK(ledger.charge_memory(0, 100 * kMiB, 100 * kMiB) == Charge::kGranted);
    CHECK_EQ(ledger.memory(0), 100 * kMiB);
}

CASE(a_living_process_is_never_reaped) {
    const std::string path = fresh_ledger("living.page");
    int ready[2], done[2];
    CHECK(pipe(ready) == 0 && pipe(done) == 0);
    const pid_t child = fork();
    char byte = 0;
    if (child == 0) {
        Ledger own;
        attach(own, path);
        CHECK(own.join(0) && own.charge_memory(0, 60 * kMiB, 0) == Charge::kGranted);
        CHECK(write(ready[1], "r", 1) == 1);
        CHECK(read(done[0], &byte, 1) == 1);
        _exit(0);
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    Ledger ledger;
    attach(ledger, path);
    CHECK(ledger.join(0));
    CHECK_EQ(ledger.reap(), 0u);
    CHECK(ledger.charge_memory(0, 50 * kMiB, 100 * kMiB) == Charge::kDenied);
    CHECK(write(done[1], "d", 1) == 1);
    waitpid(child, nullptr, 0);
    CHECK(ledger.charge_memory(0, 50 * kMiB, 100 * kMiB) == Charge::kGranted);
}

CASE(fork_inherits_nothing) {
    const std::string path = fresh_ledger("fork.page");
    Ledger ledger;
    attach(ledger, path);
    CHECK(ledger.join(0));
    CHECK(ledger.charge_memory(0, 60 * kMiB, 100 * kMiB) == Charge::kGranted);
    const int status = in_child([&] {
        ledger.abandon();
        CHECK(ledger.join(0));
        CHECK_EQ(ledger.memory(0), 60 * kMiB); // the parent's, seen but not ours
        ledger.refund_memory(0, 60 * kMiB);    // not ours to give back
        CHECK_EQ(ledger.memory(0), 60 * kMiB);
        CHECK(ledger.charge_memory(0, 40 * kMiB, 100 * kMiB) == Charge::kGranted);
    });
    CHECK_EQ(status, 0);
    CHECK(ledger.charge_memory(0, 40 * kMiB, 100 * kMiB) == Charge::kGranted);
}

CASE(a_closed_descriptor_does_not_lose_the_charges) {
    const std::string path = fresh_ledger("closed.page");
    Ledger ledger;
    const Mapping mapping = map_ledger(path.c_str(), true);
    ledger.attach(mapping, path.c_str());
    CHECK(ledger.join(0));
    CHECK(ledger.charge_memory(0, 60 * kMiB, 100 * kMiB) == Charge::kGranted);
    close(mapping.fd); // as a daemon does that closes everything
    const int status = in_child([&] {
        Ledger other;
        attach(other, path);
        CHECK(other.join(0)); // takes the first one for dead
        CHECK_EQ(other.memory(0), 0u);
    });
    CHECK_EQ(status, 0);
    CHECK(ledger.charge_memory(0, 50 * kMiB, 100 * kMiB) == Charge::kDenied);
    CHECK(ledger.charge_memory(0, 40 * kMiB, 100 * kMiB) == Charge::kGranted);
    CHECK_EQ(ledger.memory(0), 100 * kMiB);
}

// Many processes charge, refund and are killed at random instructions: when all are gone nothing
// is left, neither held nor lost.
CASE(storm_of_kills_leaves_an_exact_ledger) {
    const std::string path = fresh_ledger("storm.page");
    constexpr std::uint64_t kQuota = 64 * kMiB;
    constexpr int kWorkers = 8;
    Ledger ledger;
    attach(ledger, path);
    CHECK(ledger.join(0));
    std::mt19937_64 random(99);
    std::vector<pid_t> workers(kWorkers, 0);
    const auto start_worker = [&](pid_t& place) {
        const std::uint64_t seed = random();
        place = fork();
        if (place != 0) return;
        std::mt19937_64 own_random(seed);
        Ledger own;
        attach(own, path);
        if (!own.join(0)) _exit(9);
        for (;;) {
            const std::uint64_t bytes = 1 + own_random() % (16 * kMiB);
            if (own.charge_memory(0, bytes, kQuota) == Charge::kGranted) own.refund_memory(0, bytes);
        }
    };
    for (pid_t& worker : workers) start_worker(worker);
    for (int round = 0; round < check::rounds(60); ++round) {
        usleep(static_cast<useconds_t>(random() % 3000));
        pid_t& victim = workers[random() % workers.size()];
        int status = 0;
        kill(victim, SIGKILL);
        waitpid(victim, &status, 0);
        CHECK(WIFSIGNALED(status)); // none ended by itself
        start_worker(victim);
    }
    for (const pid_t worker : workers) {
        kill(worker, SIGKILL);
        waitpid(worker, nullptr, 0);
    }
    CHECK(ledger.charge_memory(0, kQuota, kQuota) == Charge::kGranted);
    CHECK_EQ(ledger.memory(0), kQuota);
}

// Four ask at once for 40 of 100: exactly two get it, however their claims collide.
CASE(charges_at_once_fill_the_quota_and_never_exceed_it) {
    const std::string path = fresh_ledger("race.page");
    for (int round = 0; round < check::rounds(30); ++round) {
        int start[2], answers[2], finish[2];
        CHECK(pipe(start) == 0 && pipe(answers) == 0 && pipe(finish) == 0);
        std::vector<pid_t> racers;
        for (int racer = 0; racer < 4; ++racer) {
            racers.push_back(fork());
            if (racers.back() != 0) continue;
            close(start[1]);
            close(finish[1]);
            Ledger own;
            attach(own, path);
            if (!own.join(0)) _exit(9);
            char byte = 0;
            (void)!read(start[0], &byte, 1); // ends for all at once
            const Charge charge = own.charge_memory(0, 40 * kMiB, 100 * kMiB);
            (void)!write(answers[1], charge == Charge::kGranted ? "g" : "d", 1);
            (void)!read(finish[0], &byte, 1); // nobody leaves before all have asked
            _exit(0);
        }
        close(start[1]);
        int granted = 0;
        for (int answer = 0; answer < 4; ++answer) {
            char byte = 0;
            CHECK(read(answers[0], &byte, 1) == 1);
            granted += byte == 'g';
        }
        close(finish[1]);
        for (const pid_t child : racers) waitpid(child, nullptr, 0);
        for (const int end : {start[0], answers[0], answers[1], finish[0]}) close(end);
        CHECK_EQ(granted, 2);
    }
}

// The check after the claim is what keeps two that passed the check before it apart: hold 60 of 100
// as often as possible in four processes, never two at a time.
CASE(two_that_exclude_each_other_never_hold_together) {
    const std::string path = fresh_ledger("exclude.page");
    auto* holders = static_cast<std::atomic<int>*>(mmap(
        nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    std::vector<pid_t> workers;
    for (int worker = 0; worker < 4; ++worker) {
        workers.push_back(fork());
        if (workers.back() != 0) continue;
        Ledger own;
        attach(own, path);
        if (!own.join(0)) _exit(9);
        for (int turn = 0; turn < check::rounds(400'000); ++turn) {
            if (own.charge_memory(0, 60 * kMiB, 100 * kMiB) != Charge::kGranted) continue;
            if (holders->fetch_add(1) != 0) _exit(8);
            holders->fetch_sub(1);
            own.refund_memory(0, 60 * kMiB);
        }
        _exit(0);
    }
    for (const pid_t child : workers) {
        int status = 0;
        waitpid(child, &status, 0);
        CHECK_EQ(status, 0);
    }
}

CASE(no_more_slots_than_processes_may_have) {
    const std::string path = fresh_ledger("slots.page");
    Ledger first;
    attach(first, path);
    CHECK(first.join(0));
    auto* page = static_cast<xpu_ledger_page*>(map_ledger(path.c_str(), true).base);
    CHECK_EQ(page->slots_used, 1u);
    page->slots_used = 0xFFFFFFFF; // a tenant's scribble
    CHECK_EQ(first.memory(0), 0u);
    for (xpu_process_slot& slot : page->process) slot.owner = 1;
    Ledger second;
    second.attach(Mapping{}, "private"); // a private page: limits hold for this process alone
    CHECK(!second.shared_with_others());
    CHECK(second.join(0));
    CHECK(second.charge_memory(0, 2, 1) == Charge::kDenied);
    CHECK(second.charge_memory(0, 1, 1) == Charge::kGranted);
}

int main(int argc, char** argv) { return check::run(argc, argv); }
