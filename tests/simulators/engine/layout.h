// SPDX-License-Identifier: GPL-3.0-or-later
//
// The shared memory of one simulated host: its cards, the processes that use them, their queues.
//
// One daemon creates it, hands it to every process that connects, and clears what a process leaves
// behind when it dies. Three rules make a SIGKILL at any instruction harmless:
//   - a Seat (one process on one card) has one writer for its queue: the process itself;
//   - a card's clock is written only under the card's lock, and through its Journal, so that the next
//     holder finishes or drops what a dead one began;
//   - nothing is counted twice: a card's used memory is the sum over its seats.
//
// All times are CLOCK_MONOTONIC nanoseconds, which containers of one machine share.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sim {

using Nanos = std::int64_t;

constexpr std::uint32_t kMagic = 0x4d495358;  // "XSIM"
constexpr std::uint32_t kLayoutVersion = 4;
constexpr std::uint32_t kDaemonTicket = 1;
constexpr std::size_t kMaxCards = 16;
constexpr std::int32_t kWhole = -1;
constexpr std::size_t kMaxProcesses = 512;
constexpr std::size_t kQueueDepth = 1024;
constexpr std::size_t kSamples = 128;
constexpr std::size_t kGraves = 1024;
constexpr Nanos kSliceNs = 2'000'000;
constexpr Nanos kSampleNs = 1'000'000'000 / 6;

enum class ItemKind : std::uint32_t {
  kWork = 0,  // occupies the card for duration_ns
  kMark = 1,  // takes no time; completes when everything before it has
  kGate = 2,  // a mark that may not start before its owner opens it, by setting submit_ns
};

struct WorkItem {
  Nanos submit_ns;    // not started before
  Nanos duration_ns;  // on a card of its own
  Nanos start_ns;     // result
  Nanos end_ns;       // result; valid once the head of the queue has passed the item
  ItemKind kind;
  std::uint32_t stream;
  std::uint64_t reserved[3];
};
static_assert(sizeof(WorkItem) == 64);

// Busy time within one window of kSampleNs; `window` is the window's number since time 0.
struct Sample {
  Nanos window;
  Nanos busy_ns;
};

struct ProcessClock {
  std::uint64_t head;  // first item not completed
  Nanos head_done_ns;  // how much of it has run
  Nanos busy_ns;       // card time used since the process began
  Sample current;      // the window in which the process ran last
};

struct CardClock {
  Nanos now;  // the card's history is settled up to here
  Nanos slice_left_ns;
  Nanos busy_ns;
  Sample current;
  std::uint32_t seat;  // whose slice it is
  std::uint32_t reserved;
};

// What an advance of the card's clock will write; `rows` counts only when `valid` is set.
struct Journal {
  struct Row {
    std::uint32_t seat;
    std::uint32_t drained;
    ProcessClock clock;
  };
  std::atomic<std::uint32_t> valid;
  std::uint32_t rows;
  CardClock card;
  std::array<Row, kMaxProcesses> row;
};

// One process on one card.
struct alignas(4096) Seat {
  alignas(64) std::atomic<std::uint64_t> tail;  // items ever submitted; written by the process
  std::atomic<std::uint64_t> memory_bytes;      // card memory it holds; written under the card's lock
  std::atomic<std::uint64_t> memory_peak_bytes;
  alignas(64) ProcessClock clock;
  std::array<Sample, kSamples> samples;
  std::array<WorkItem, kQueueDepth> ring;
};

// What a card is; written by the daemon before anyone can see it.
struct CardInfo {
  char name[96];
  char uuid[48];
  char serial[32];
  char pci_address[16];
  char profile[32];
  std::uint32_t minor;
  std::int32_t numa_node;
  std::int32_t part_of;  // the card of this fleet that this one is a part of; kWhole: none
  std::uint32_t parts;   // that it is divided into; it runs nothing itself then
  std::uint64_t memory_bytes;
  std::uint64_t reserved_bytes;  // never available to processes
  std::uint64_t context_bytes;   // what a context costs
  char attributes[3072];         // the profile's text, for what only one vendor's bridge knows
};

// A lock whose holder is named by the ticket the daemon gave to his connection, so that the daemon can
// release it when he dies. (A robust pthread mutex names the holder by a thread id of his own pid
// namespace; two containers have equal ones, and the kernel may release the wrong holder's lock.)
struct Lock {
  std::atomic<std::uint32_t> word;  // 0: free; else the holder's ticket, and kWaiters
  static constexpr std::uint32_t kWaiters = 0x80000000;
};

struct Card {
  CardInfo info;
  alignas(64) Lock lock;
  alignas(64) std::atomic<std::uint32_t> epoch;  // futex; changes when waiters must look again
  alignas(64) std::array<std::atomic<std::uint64_t>, kMaxProcesses / 64> active;
  alignas(64) CardClock clock;
  std::array<Sample, kSamples> samples;
  Journal journal;
};

struct Process {
  std::atomic<std::uint32_t> live;
  std::int32_t host_pid;  // as the daemon sees it
  std::int32_t pid;       // as the process sees itself
  std::uint32_t reserved;
  Nanos since_ns;
  char command[32];
};

// What is remembered of a process that has gone; one per process and card it used.
struct Grave {
  std::int32_t host_pid;
  std::int32_t pid;
  std::uint32_t card;
  std::uint32_t reserved;
  Nanos busy_ns;
  std::uint64_t memory_peak_bytes;
  Nanos died_ns;
};

struct Fleet {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint32_t cards;
  std::uint32_t reserved;
  char driver_version[32];
  std::atomic<std::uint64_t> graves;  // ever dug; the newest kGraves are kept
  std::array<Grave, kGraves> grave;
  std::array<Process, kMaxProcesses> process;
  std::array<Card, kMaxCards> card;
  std::array<std::array<Seat, kMaxProcesses>, kMaxCards> seat;
};

static_assert(sizeof(Seat) % 4096 == 0, "seats are given back to the kernel page by page");
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

}  // namespace sim
