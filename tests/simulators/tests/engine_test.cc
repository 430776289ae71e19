// SPDX-License-Identifier: GPL-3.0-or-later
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <random>

#include "card.h"
#include "check.h"
#include "hardware.h"
#include "kernels.h"
#include "schedule.h"

namespace {

constexpr sim::Nanos kMs = 1'000'000;

// Processes with queues, and a card's clock that starts at 0.
struct Bench {
  struct Queue {
    std::vector<sim::WorkItem> ring = std::vector<sim::WorkItem>(sim::kQueueDepth);
    std::vector<sim::Sample> samples = std::vector<sim::Sample>(sim::kSamples);
  };
  std::vector<std::unique_ptr<Queue>> queues;
  std::vector<sim::Runner> runners;
  std::vector<sim::Sample> samples = std::vector<sim::Sample>(sim::kSamples);
  sim::CardClock card{};

  explicit Bench(std::size_t processes) {
    card.seat = sim::kNobody;
    for (std::uint32_t i = 0; i < processes; ++i) {
      queues.push_back(std::make_unique<Queue>());
      runners.push_back({i, 0, queues[i]->ring.data(), queues[i]->samples.data(), {}});
    }
  }

  void submit(std::size_t process, sim::Nanos at, sim::Nanos duration) {
    sim::Runner& runner = runners[process];
    runner.ring[runner.tail++ % sim::kQueueDepth] = {at, duration, 0, 0, sim::ItemKind::kWork, 0, {}};
  }

  void advance(sim::Nanos until) {
    sim::Timeline line{card, samples.data(), runners.data(), runners.size()};
    sim::advance(line, until);
    card = line.card;
  }

  sim::Nanos end(std::size_t process, std::size_t item) const { return runners[process].ring[item].end_ns; }
  sim::Nanos start(std::size_t process, std::size_t item) const {
    return runners[process].ring[item].start_ns;
  }
};

struct SharedFleet {
  sim::Fleet* fleet;
  SharedFleet() {
    void* memory = mmap(nullptr, sizeof(sim::Fleet), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fleet = static_cast<sim::Fleet*>(memory);
    fleet->cards = 1;
    fleet->card[0].info.memory_bytes = 1 << 30;
    fleet->process[0].live = fleet->process[1].live = 1;
    sim::init_card(fleet->card[0]);
  }
};

}  // namespace

TEST(a_lone_kernel_runs_at_once_for_its_time) {
  Bench bench(1);
  bench.submit(0, 7 * kMs, 5 * kMs);
  bench.advance(100 * kMs);
  EQUAL(bench.start(0, 0), 7 * kMs);
  EQUAL(bench.end(0, 0), 12 * kMs);
  EQUAL(bench.card.now, 100 * kMs);
  EQUAL(bench.runners[0].clock.busy_ns, 5 * kMs);
}

TEST(items_of_one_process_run_in_order_without_gaps) {
  Bench bench(1);
  for (int i = 0; i < 10; ++i) bench.submit(0, 0, 3 * kMs);
  bench.advance(30 * kMs);
  for (std::size_t i = 0; i < 10; ++i) EQUAL(bench.end(0, i), static_cast<sim::Nanos>(i + 1) * 3 * kMs);
}

TEST(two_processes_take_turns_of_two_milliseconds) {
  Bench bench(2);
  bench.submit(0, 0, 5 * kMs);
  bench.submit(1, 0, 5 * kMs);
  bench.advance(10 * kMs);
  // 0 1 0 1 and the last millisecond of each
  EQUAL(bench.end(0, 0), 9 * kMs);
  EQUAL(bench.end(1, 0), 10 * kMs);
}

TEST(a_long_kernel_delays_another_process_by_slices_not_by_its_length) {
  Bench bench(2);
  bench.submit(0, 0, 300 * kMs);
  bench.submit(1, 10 * kMs, 1 * kMs);
  bench.advance(400 * kMs);
  EQUAL(bench.end(1, 0) - 10 * kMs <= sim::kSliceNs + 1 * kMs, true);
  EQUAL(bench.end(0, 0), 301 * kMs);
}

TEST(a_process_without_work_gives_up_its_slice) {
  Bench bench(2);
  bench.submit(0, 0, 500'000);
  bench.submit(1, 0, 1 * kMs);
  bench.advance(10 * kMs);
  EQUAL(bench.start(1, 0), 500'000);
}

TEST(marks_take_no_time_and_keep_their_place) {
  Bench bench(1);
  bench.submit(0, 0, 0);
  bench.submit(0, 0, 4 * kMs);
  bench.submit(0, 0, 0);
  bench.advance(4 * kMs);
  EQUAL(bench.end(0, 0), 0);
  EQUAL(bench.end(0, 2), 4 * kMs);
}

TEST(the_history_does_not_depend_on_when_it_is_settled) {
  std::mt19937 random(20261121);
  for (int round = 0; round < 50; ++round) {
    Bench lazy(4);
    Bench eager(4);
    sim::Nanos at[4] = {};
    for (int i = 0; i < 200; ++i) {
      const std::size_t process = random() % 4;
      at[process] += random() % (3 * kMs);
      const sim::Nanos duration = random() % 10 == 0 ? 0 : random() % (7 * kMs);
      lazy.submit(process, at[process], duration);
      eager.submit(process, at[process], duration);
    }
    for (sim::Nanos now = 0; now < 2000 * kMs; now += random() % (2 * kMs)) eager.advance(now);
    eager.advance(2000 * kMs);
    lazy.advance(2000 * kMs);
    for (std::size_t process = 0; process < 4; ++process) {
      EQUAL(lazy.runners[process].clock.busy_ns, eager.runners[process].clock.busy_ns);
      for (std::size_t i = 0; i < lazy.runners[process].tail; ++i) {
        EQUAL(lazy.start(process, i), eager.start(process, i));
        EQUAL(lazy.end(process, i), eager.end(process, i));
      }
    }
  }
}

TEST(a_projection_foresees_the_end_and_leaves_no_trace) {
  Bench bench(2);
  for (int i = 0; i < 20; ++i) bench.submit(0, 0, 5 * kMs);
  for (int i = 0; i < 20; ++i) bench.submit(1, 0, 3 * kMs);
  std::vector<sim::Runner> copies = bench.runners;
  for (sim::Runner& copy : copies) copy.samples = nullptr;
  sim::Timeline line{bench.card, nullptr, copies.data(), copies.size()};
  sim::advance(line, sim::kForever, {0, 12});
  EQUAL(bench.end(0, 12), 0);
  bench.advance(1000 * kMs);
  EQUAL(bench.end(0, 12), line.card.now);
}

TEST(windows_add_up_to_the_busy_time) {
  Bench bench(2);
  for (int i = 0; i < 300; ++i) bench.submit(i % 2, 0, 5 * kMs);
  bench.advance(3000 * kMs);
  for (std::size_t process = 0; process < 2; ++process) {
    const sim::Runner& runner = bench.runners[process];
    sim::Nanos total = 0;
    for (sim::Nanos window = 0; window < 18; ++window) {
      total += sim::busy_in_window(runner.clock.current, runner.samples, window);
    }
    EQUAL(total, 750 * kMs);
    EQUAL(sim::busy_in_window(runner.clock.current, runner.samples, 3) <= sim::kSampleNs / 2 + 2 * kMs, true);
  }
}

TEST(memory_is_taken_up_to_the_last_byte_and_returned) {
  SharedFleet shared;
  sim::CardClient one(*shared.fleet, 0, 0, 10);
  sim::CardClient other(*shared.fleet, 0, 1, 11);
  EQUAL(one.take((1 << 30) - 1), true);
  EQUAL(other.take(2), false);
  EQUAL(other.take(1), true);
  one.give((1 << 30) - 1);
  EQUAL(one.used_bytes(), 1u);
  EQUAL(other.take(UINT64_MAX), false);
}

TEST(an_evicted_process_leaves_no_memory_and_no_work) {
  SharedFleet shared;
  sim::CardClient one(*shared.fleet, 0, 0, 10);
  one.take(1000);
  one.submit(sim::ItemKind::kWork, 3600 * 1000 * kMs, 0);
  one.settle();
  sim::Grave grave{};
  EQUAL(one.evict(0, grave), true);
  EQUAL(grave.memory_peak_bytes, 1000u);
  EQUAL(one.used_bytes(), 0u);
  sim::CardClient other(*shared.fleet, 0, 1, 11);
  const sim::Nanos before = sim::monotonic_now();
  other.submit(sim::ItemKind::kWork, 1 * kMs, 0);
  other.wait(1);
  EQUAL(sim::monotonic_now() - before < 500 * kMs, true);
}

TEST(what_a_dead_holder_of_the_lock_began_to_commit_is_completed_once) {
  SharedFleet shared;
  sim::Card& card = shared.fleet->card[0];
  sim::CardClient one(*shared.fleet, 0, 0, 10);
  one.submit(sim::ItemKind::kWork, 3600 * 1000 * kMs, 0);
  one.settle();
  const pid_t child = fork();
  if (child == 0) {
    card.lock.word = 77;
    card.journal.card = card.clock;
    card.journal.card.busy_ns = 123456789;
    card.journal.rows = 1;
    card.journal.row[0] = {0, 0, shared.fleet->seat[0][0].clock};
    card.journal.row[0].clock.busy_ns = 123456789;
    card.journal.valid = 1;
    kill(getpid(), SIGKILL);
  }
  waitpid(child, nullptr, 0);
  sim::release_dead(card, 78);
  EQUAL(card.lock.word.load(), 77u);
  sim::release_dead(card, 77);
  const sim::Nanos settled_to = card.clock.now;
  one.settle();
  const sim::Nanos since = card.clock.now - settled_to;
  EQUAL(card.journal.valid.load(), 0u);
  EQUAL(shared.fleet->seat[0][0].clock.busy_ns, 123456789 + since);
  EQUAL(card.clock.busy_ns, 123456789 + since);
}

TEST(the_lock_lets_one_holder_in_at_a_time) {
  SharedFleet shared;
  // All start together, and run for longer than the scheduler leaves one alone: otherwise they would
  // pass one after another without any lock.
  constexpr unsigned kProcesses = 4;
  constexpr unsigned kRounds = 400000;
  std::atomic<std::uint32_t>& gate = shared.fleet->card[1].epoch;
  for (unsigned i = 0; i < kProcesses; ++i) {
    if (fork() != 0) continue;
    // All in one seat, which only the lock makes safe.
    sim::CardClient one(*shared.fleet, 0, 0, 10 + i);
    for (gate.fetch_add(1); gate.load() < kProcesses;) usleep(100);
    for (unsigned round = 0; round < kRounds; ++round) {
      one.take(3);
      one.give(2);
    }
    _exit(0);
  }
  for (unsigned i = 0; i < kProcesses; ++i) wait(nullptr);
  const sim::CardView view(*shared.fleet, 0, 9);
  EQUAL(view.used_bytes(), static_cast<std::uint64_t>(kProcesses * kRounds));
  EQUAL(shared.fleet->card[0].lock.word.load(), 0u);
}

TEST(ptx_entries_and_parameters_are_read) {
  const auto kernels = sim::parse_ptx(
      "// .entry no(\n.version 8.0\n.target sm_80\n/* .entry neither( */\n"
      ".func helper(.param .u32 x) { ret; }\n"
      ".visible .entry first(\n .param .u32 a,\n .param .u64 .ptr .global .align 8 b,\n"
      " .param .align 4 .b8 c[12]\n)\n{ ret; }\n.entry second()\n{ ret; }\n.entry third { ret; }\n");
  EQUAL(kernels.has_value(), true);
  EQUAL(kernels->size(), 3u);
  const auto& first = kernels->at(0);
  EQUAL(first.name, std::string("first"));
  EQUAL(first.parameters.size(), 3u);
  EQUAL(first.parameters[1].offset, 8u);
  EQUAL(first.parameters[2].offset, 16u);
  EQUAL(first.parameters[2].size, 12u);
  EQUAL(kernels->at(1).parameters.size(), 0u);
}

TEST(what_is_not_ptx_is_refused) {
  EQUAL(sim::parse_ptx("").has_value(), false);
  EQUAL(sim::parse_ptx("hello").has_value(), false);
  EQUAL(sim::parse_ptx(".version 8.0 .entry k(.param .u64 a").has_value(), false);
  EQUAL(sim::parse_ptx(".version 8.0 .entry").has_value(), false);
  EQUAL(sim::parse_ptx(".version 8.0 .entry k(.param nothing a) {}").has_value(), false);
}

TEST(only_spin_ns_runs_for_its_parameter) {
  const sim::Kernel spin{"spin_ns", {{0, 8}}};
  const sim::Kernel narrow{"spin_ns", {{0, 4}}};
  const sim::Kernel other{"gemm", {{0, 8}}};
  std::uint64_t ns = 1234;
  void* each[] = {&ns};
  EQUAL(sim::duration_ns(spin, {each, nullptr, 0}, 5000), 1234);
  EQUAL(sim::duration_ns(spin, {nullptr, &ns, sizeof(ns)}, 5000), 1234);
  EQUAL(sim::duration_ns(narrow, {each, nullptr, 0}, 5000), 5000);
  EQUAL(sim::duration_ns(other, {each, nullptr, 0}, 5000), 5000);
  ns = UINT64_MAX;
  EQUAL(sim::duration_ns(spin, {each, nullptr, 0}, 5000) > 0, true);
}

TEST(settings_name_the_line_that_is_wrong) {
  EQUAL(sim::parse_settings("a 1 # one\n\n# none\nb  two words \n", "f").at("b"), std::string("two words"));
  const std::pair<const char*, const char*> bad[] = {
      {"a 1\nlonely\n", "f:2: 'lonely' has no value; write 'key value'"},
      {"a 1\na 2\n", "f:2: 'a' is given twice"}};
  for (const auto& [text, wanted] : bad) {
    std::string found = "nothing thrown";
    try {
      sim::parse_settings(text, "f");
    } catch (const std::exception& error) {
      found = error.what();
    }
    EQUAL(found, std::string(wanted));
  }
}

int main(int count, char** words) { return check::main(count, words); }
