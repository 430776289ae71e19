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
#include "image.h"
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

TEST(what_is_submitted_late_runs_late_and_never_in_the_past) {
  Bench bench(2);
  bench.submit(0, 0, 1 * kMs);
  bench.submit(1, 0, 50 * kMs);
  bench.advance(30 * kMs);
  // A thread that lost its processor between reading the clock and handing its item over.
  bench.submit(0, 5 * kMs, 4 * kMs);
  bench.advance(100 * kMs);
  EQUAL(bench.start(0, 1) >= 30 * kMs, true);
  EQUAL(bench.runners[0].clock.busy_ns, 5 * kMs);
  EQUAL(bench.runners[1].clock.busy_ns, 50 * kMs);
  EQUAL(bench.card.busy_ns, 55 * kMs);
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

namespace image {

template <class Number>
void put(std::string& out, Number number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

template <class Number>
void put_at(std::string& out, std::size_t offset, Number number) {
  std::memcpy(&out[offset], &number, sizeof(number));
}

struct Part {
  const char* name;
  std::uint32_t type, link;
  std::string content;
};

std::string kparam(std::uint16_t number, std::uint16_t offset, std::uint32_t size) {
  std::string out("\x04\x17\x0c\x00\0\0\0\0", 8);
  put(out, number);
  put(out, offset);
  put(out, std::uint32_t{size << 18 | 0x1f000});
  return out;
}

// A cubin as ptxas makes it, as far as it is read: kernel `k` with parameters at 8 (four bytes) and 0 (eight).
std::string cubin(std::uint32_t flags, unsigned char abi) {
  std::string strings("\0k\0f\0", 5);
  std::string symbols(24, '\0');
  for (const auto& [name, other] : {std::pair{1u, 0x10}, std::pair{3u, 0}}) {
    put(symbols, std::uint32_t{name});
    symbols += static_cast<char>(0x12);
    symbols += static_cast<char>(other);
    symbols.append(18, '\0');
  }
  const std::string other("\x03\x19\x44\x00", 4);
  std::vector<Part> parts = {{"", 0, 0, ""},
                             {".shstrtab", 3, 0, ""},
                             {".strtab", 3, 0, strings},
                             {".symtab", 2, 2, symbols},
                             {".nv.info.k", 0x70000000, 0, other + kparam(1, 8, 4) + kparam(0, 0, 8)}};
  std::string names;
  std::vector<std::uint32_t> name_at;
  for (const Part& part : parts) {
    name_at.push_back(static_cast<std::uint32_t>(names.size()));
    names += part.name;
    names += '\0';
  }
  parts[1].content = names;
  std::string out("\x7f" "ELF\x02\x01\x01\x33", 8);
  out.resize(64, '\0');
  out[8] = static_cast<char>(abi);
  put_at(out, 18, std::uint16_t{190});
  put_at(out, 48, flags);
  std::string headers;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    put(headers, name_at[i]);
    put(headers, parts[i].type);
    headers.append(16, '\0');
    put(headers, std::uint64_t{out.size()});
    put(headers, std::uint64_t{parts[i].content.size()});
    put(headers, parts[i].link);
    headers.append(20, '\0');
    out += parts[i].content;
  }
  put_at(out, 40, std::uint64_t{out.size()});
  put_at(out, 58, std::uint16_t{64});
  put_at(out, 60, static_cast<std::uint16_t>(parts.size()));
  put_at(out, 62, std::uint16_t{1});
  return out + headers;
}

struct Packed {
  std::uint16_t kind;
  std::uint32_t capability;
  std::uint64_t flags;
  std::size_t unpacked;
  std::string content;
};

std::string fatbin(const std::vector<Packed>& entries) {
  std::string out;
  for (const Packed& entry : entries) {
    const std::size_t padded = (entry.content.size() + 7) / 8 * 8;
    put(out, entry.kind);
    put(out, std::uint16_t{0x101});
    put(out, std::uint32_t{64});
    put(out, std::uint64_t{padded});
    put(out, static_cast<std::uint32_t>(entry.content.size()));
    put(out, std::uint32_t{0});
    put(out, std::uint32_t{0x10007});
    put(out, entry.capability);
    put(out, std::uint64_t{0});
    put(out, entry.flags);
    put(out, std::uint64_t{0});
    put(out, std::uint64_t{entry.unpacked});
    out += entry.content;
    out.append(padded - entry.content.size(), '\0');
  }
  std::string head;
  put(head, std::uint32_t{0xba55ed50});
  put(head, std::uint16_t{1});
  put(head, std::uint16_t{16});
  put(head, std::uint64_t{out.size()});
  return head + out;
}

// LZ4 of literals only.
std::string lz4(const std::string& text) {
  std::string out(1, static_cast<char>(0xf0));
  std::size_t left = text.size() - 15;
  for (; left >= 255; left -= 255) out += static_cast<char>(0xff);
  return out + static_cast<char>(left) + text;
}

const char* name(sim::ImageError error) {
  constexpr const char* kNames[] = {"none", "malformed", "not for this card", "not PTX", "packed"};
  return kNames[static_cast<int>(error)];
}

}  // namespace image

TEST(a_cubin_s_kernels_and_parameters_are_read) {
  for (const auto& [flags, abi] : {std::pair{0x500550u, 7}, std::pair{0x6005000u, 8}}) {
    const sim::Image found = sim::read_cubin(image::cubin(flags, static_cast<unsigned char>(abi)), 80);
    EQUAL(std::string(image::name(found.error)), "none");
    EQUAL(found.kernels.size(), 1u);  // `f` is a function of kernels
    EQUAL(found.kernels[0].name, "k");
    EQUAL(found.kernels[0].parameters.size(), 2u);
    EQUAL(found.kernels[0].parameters[0].size, 8u);
    EQUAL(found.kernels[0].parameters[1].offset, 8u);
    EQUAL(found.kernels[0].parameters[1].size, 4u);
  }
}

TEST(machine_code_runs_on_its_own_major_version_only) {
  const std::string file = image::cubin(0x500550, 7);
  for (const auto& [card, wanted] : {std::pair{80, "none"}, std::pair{86, "none"}, std::pair{75, "not for this card"},
                                     std::pair{90, "not for this card"}}) {
    EQUAL(std::string(image::name(sim::read_cubin(file, card).error)), wanted);
  }
}

TEST(a_fatbin_gives_the_nearest_code_and_else_ptx) {
  const std::string ptx = ".version 8.0 .entry p(.param .u64 a) {} // long enough to be packed";
  const std::string old = image::cubin(0x4b054b, 7);
  const std::string file = image::fatbin({{2, 75, 0x11, 0, old},
                                          {1, 70, 0x2011, ptx.size(), image::lz4(ptx)},
                                          {1, 90, 0x8011, ptx.size(), "zstd"}});
  const auto on = [&](int card) { return sim::read_fatbin(file, card, nullptr); };
  EQUAL(on(75).kernels[0].name, "k");
  EQUAL(on(80).kernels[0].name, "p");
  EQUAL(std::string(image::name(on(60).error)), "not for this card");
  EQUAL(std::string(image::name(on(90).error)), "packed");
  const auto unpacked = sim::read_fatbin(file, 90, [&](std::string_view, std::size_t) { return ptx; });
  EQUAL(unpacked.kernels[0].name, "p");
}

TEST(lz4_repeats_what_it_wrote) {
  const std::string run("\x12" "a\x01\x00\x10" "b", 6);  // a, six more of it, b
  EQUAL(sim::unpack_lz4(run, 8).value_or("nothing"), "aaaaaaab");
  EQUAL(sim::unpack_lz4(run, 7).has_value(), false);
  EQUAL(sim::unpack_lz4(std::string("\x12" "a\x02\x00", 4), 7).has_value(), false);  // before the beginning
  EQUAL(sim::unpack_lz4(std::string("\xf0", 1), 15).has_value(), false);
}

TEST(images_cut_short_or_with_a_wrong_byte_harm_nobody) {
  const std::string ptx = ".version 8.0 .entry p(.param .u64 a) {} // long enough to be packed";
  for (const std::string& file : {image::cubin(0x500550, 7), image::fatbin({{2, 80, 0x11, 0, image::cubin(0x500550, 7)},
                                                                            {1, 70, 0x2011, ptx.size(), image::lz4(ptx)}})}) {
    const auto read = [](const std::string& bytes) {
      // In memory of its own, so that a sanitizer sees a step beyond it.
      const std::vector<char> own(bytes.begin(), bytes.end());
      const std::string_view view(own.data(), own.size());
      (void)sim::read_cubin(view, 80);
      (void)sim::read_fatbin(view, 80, nullptr);
      (void)sim::read_fatbin(view, 75, nullptr);
    };
    for (std::size_t size = 0; size < file.size(); ++size) read(file.substr(0, size));
    for (std::size_t at = 0; at < file.size(); ++at) {
      for (const char wrong : {'\0', '\x01', '\x7f', '\xff'}) {
        std::string bytes = file;
        bytes[at] = wrong;
        read(bytes);
      }
    }
  }
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

TEST(the_jitter_of_events_is_even_bounded_and_repeatable) {
  constexpr std::int64_t kMost = 1000;
  constexpr int kEvents = 100'000;
  std::int64_t sum = 0;
  int outer = 0;
  for (std::uint64_t event = 0; event < kEvents; ++event) {
    const std::int64_t off = sim::jitter_ns(event, kMost);
    EQUAL(off, sim::jitter_ns(event, kMost));
    EQUAL(off >= -kMost && off <= kMost, true);
    sum += off;
    outer += off < -kMost / 2 || off > kMost / 2;
  }
  EQUAL(std::abs(sum / kEvents) <= 10, true);
  EQUAL(outer > kEvents * 49 / 100 && outer < kEvents * 51 / 100, true);
  EQUAL(sim::jitter_ns(7, 0), 0);
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
