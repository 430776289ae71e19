// SPDX-License-Identifier: GPL-3.0-or-later
#include "card.h"

#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "schedule.h"

namespace sim {
namespace {

constexpr std::uint64_t bit(std::uint32_t seat) { return std::uint64_t{1} << (seat % 64); }

// The kernel may fire a timer late by the thread's slack (50 us by default), which is longer than many
// kernels. The application's own value is put back.
class SharpTimers {
 public:
  SharpTimers() : before_(prctl(PR_GET_TIMERSLACK)) { prctl(PR_SET_TIMERSLACK, 1UL); }
  ~SharpTimers() { prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(before_)); }
  SharpTimers(const SharpTimers&) = delete;
  SharpTimers& operator=(const SharpTimers&) = delete;

 private:
  int before_;
};

void futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value) {
  syscall(SYS_futex, &word, operation, value, nullptr, nullptr, 0);
}

// FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time.
void futex_wait_until(std::atomic<std::uint32_t>& word, std::uint32_t seen, Nanos until) {
  const SharpTimers sharp;
  timespec at{until / 1'000'000'000, until % 1'000'000'000};
  syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, seen, &at, nullptr, FUTEX_BITSET_MATCH_ANY);
}

void futex_wake_all(std::atomic<std::uint32_t>& word) {
  word.fetch_add(1);
  futex(word, FUTEX_WAKE, INT_MAX);
}

void apply(Fleet& fleet, std::size_t index, Card& card) {
  Journal& journal = card.journal;
  card.clock = journal.card;
  for (std::uint32_t i = 0; i < journal.rows; ++i) {
    const Journal::Row& row = journal.row[i];
    Seat& seat = fleet.seat[index][row.seat];
    seat.clock = row.clock;
    if (row.drained == 0) continue;
    // The bit goes first and comes back when the process submitted meanwhile; submit() stores its
    // tail first and looks at the bit afterwards, so one of the two sees the other.
    card.active[row.seat / 64].fetch_and(~bit(row.seat));
    if (seat.tail.load() != row.clock.head) card.active[row.seat / 64].fetch_or(bit(row.seat));
  }
  journal.valid.store(0, std::memory_order_release);
}

struct Gathered {
  Timeline line;
  std::size_t count = 0;
  Runner runner[kMaxProcesses];
};

void gather(Fleet& fleet, std::size_t index, bool recording, Gathered& out) {
  Card& card = fleet.card[index];
  for (std::uint32_t word = 0; word < card.active.size(); ++word) {
    for (std::uint64_t bits = card.active[word].load(); bits != 0; bits &= bits - 1) {
      const auto number = word * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits));
      Seat& seat = fleet.seat[index][number];
      out.runner[out.count++] = {number, seat.tail.load(std::memory_order_acquire), seat.ring.data(),
                                 recording ? seat.samples.data() : nullptr, seat.clock};
    }
  }
  out.line = {card.clock, recording ? card.samples.data() : nullptr, out.runner, out.count};
}


}  // namespace

Nanos monotonic_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

void init_card(Card& card) {
  card.clock.now = monotonic_now();
  card.clock.seat = kNobody;
}

void release_dead(Card& card, std::uint32_t ticket) {
  std::uint32_t seen = card.lock.word.load();
  while ((seen & ~Lock::kWaiters) == ticket) {
    if (card.lock.word.compare_exchange_weak(seen, 0)) futex(card.lock.word, FUTEX_WAKE, INT_MAX);
  }
}

// The card's lock. When its last holder died, what he had begun to commit is completed first.
// Who had to wait takes it with kWaiters set: he can't know whether others still wait.
class CardView::Hold {
 public:
  explicit Hold(const CardView& view) : card_(*view.card_) {
    std::uint32_t seen = 0;
    if (!word().compare_exchange_strong(seen, view.ticket_)) wait_for(view.ticket_);
    if (card_.journal.valid.load(std::memory_order_acquire) != 0) {
      apply(*view.fleet_, view.index_, card_);
    }
  }
  ~Hold() {
    if ((word().exchange(0) & Lock::kWaiters) != 0) futex(word(), FUTEX_WAKE, 1);
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

 private:
  std::atomic<std::uint32_t>& word() const { return card_.lock.word; }

  void wait_for(std::uint32_t ticket) const {
    while (true) {
      std::uint32_t seen = word().load();
      if (seen == 0) {
        if (word().compare_exchange_strong(seen, ticket | Lock::kWaiters)) return;
      } else if ((seen & Lock::kWaiters) != 0 ||
                 word().compare_exchange_strong(seen, seen | Lock::kWaiters)) {
        futex(word(), FUTEX_WAIT, seen | Lock::kWaiters);
      }
    }
  }

  Card& card_;
};

void CardView::settle_held(Nanos now) const {
  Gathered all;
  gather(*fleet_, index_, true, all);
  advance(all.line, now);
  Journal& journal = card_->journal;
  journal.card = all.line.card;
  journal.rows = static_cast<std::uint32_t>(all.count);
  for (std::size_t i = 0; i < all.count; ++i) {
    const Runner& runner = all.runner[i];
    journal.row[i] = {runner.seat, runner.clock.head == runner.tail, runner.clock};
  }
  journal.valid.store(1, std::memory_order_release);
  apply(*fleet_, index_, *card_);
}

void CardView::settle() const {
  const Hold hold(*this);
  settle_held(monotonic_now());
}

std::uint64_t CardView::used_bytes() const {
  std::uint64_t total = 0;
  for (std::size_t seat = 0; seat < kMaxProcesses; ++seat) {
    if (fleet_->process[seat].live.load(std::memory_order_acquire) == 0) continue;
    total += fleet_->seat[index_][seat].memory_bytes.load(std::memory_order_relaxed);
  }
  return total;
}

unsigned CardView::utilisation_percent(Nanos now) const {
  const Nanos busy =
      busy_in_window(card_->clock.current, card_->samples.data(), now / kSampleNs - 1);
  return static_cast<unsigned>(std::min<Nanos>(100, busy * 100 / kSampleNs));
}

std::vector<CardView::Usage> CardView::usages() const {
  std::vector<Usage> found;
  for (std::uint32_t number = 0; number < kMaxProcesses; ++number) {
    const Process& process = fleet_->process[number];
    if (process.live.load(std::memory_order_acquire) == 0) continue;
    const Seat& seat = fleet_->seat[index_][number];
    const std::uint64_t bytes = seat.memory_bytes.load(std::memory_order_relaxed);
    if (bytes == 0 && seat.clock.busy_ns == 0) continue;
    found.push_back({number, process.host_pid, process.pid, process.command, seat.clock.busy_ns, bytes});
  }
  return found;
}

CardView::Reading CardView::read() const {
  const Hold hold(*this);
  settle_held(monotonic_now());
  return {card_->clock.now, card_->clock.busy_ns, usages()};
}

std::vector<CardView::WindowBusy> CardView::windows(std::uint32_t number, Nanos since,
                                                    Nanos now) const {
  const Seat& seat = fleet_->seat[index_][number];
  const Nanos complete = now / kSampleNs - 1;
  Nanos window = std::max(since / kSampleNs, complete - static_cast<Nanos>(kSamples) + 2);
  std::vector<WindowBusy> found;
  for (window = std::max<Nanos>(window, 0); window <= complete; ++window) {
    const Nanos end = (window + 1) * kSampleNs;
    const Nanos busy = busy_in_window(seat.clock.current, seat.samples.data(), window);
    if (end > since && busy > 0) found.push_back({end, busy});
  }
  return found;
}

bool CardView::evict(std::uint32_t number, Grave& grave) const {
  Seat& seat = fleet_->seat[index_][number];
  const Hold hold(*this);
  settle_held(monotonic_now());
  grave.busy_ns = seat.clock.busy_ns;
  grave.memory_peak_bytes = seat.memory_peak_bytes.load();
  const bool used = seat.tail.load() != 0 || grave.memory_peak_bytes != 0;
  card_->active[number / 64].fetch_and(~bit(number));
  seat.memory_bytes.store(0);
  seat.memory_peak_bytes.store(0);
  seat.tail.store(0);
  seat.clock = {};
  seat.samples.fill({});
  futex_wake_all(card_->epoch);
  return used;
}

std::uint64_t CardClient::settled_head() const {
  const Hold hold(*this);
  settle_held(monotonic_now());
  return seat_->clock.head;
}

Nanos CardView::projected_end(std::uint32_t seat, std::uint64_t item) const {
  Gathered all;
  gather(*fleet_, index_, false, all);
  advance(all.line, kForever, {seat, item});
  const auto own = std::find_if(all.runner, all.runner + all.count,
                                [seat](const Runner& runner) { return runner.seat == seat; });
  // Behind a closed gate nobody knows when; whoever opens it wakes the waiters.
  const bool reached = own == all.runner + all.count || own->clock.head > item;
  return reached ? all.line.card.now : kForever;
}

void CardClient::make_room() {
  const std::uint64_t item = submitted();
  if (item - known_head_ < kQueueDepth) return;
  wait(item - kQueueDepth + 1);
  known_head_ = settled_head();
}

std::uint64_t CardClient::submit(ItemKind kind, Nanos duration_ns, std::uint32_t stream) {
  make_room();
  const std::uint64_t item = submitted();
  const Nanos from = kind == ItemKind::kGate ? kForever : monotonic_now();
  seat_->ring[item % kQueueDepth] = {from, std::max<Nanos>(duration_ns, 0), 0, 0, kind,
                                     stream, {}};
  seat_->tail.store(item + 1);
  auto& active = card_->active[seat_number_ / 64];
  if ((active.load() & bit(seat_number_)) == 0) active.fetch_or(bit(seat_number_));
  return item;
}

void CardClient::open(std::uint64_t gate) const {
  // Readers settle without asking the owner, so the word must change in one piece.
  __atomic_store_n(&seat_->ring[gate % kQueueDepth].submit_ns, monotonic_now(), __ATOMIC_RELEASE);
  futex_wake_all(card_->epoch);
}

bool CardClient::completed(std::uint64_t bound) const {
  return bound == 0 || settled_head() >= bound;
}

bool CardView::gone(const Point& point) const {
  const Process& process = fleet_->process[point.seat];
  return process.live.load(std::memory_order_acquire) == 0 || process.since_ns != point.since_ns;
}

bool CardView::reached(const Point& point) const {
  const Hold hold(*this);
  settle_held(monotonic_now());
  return gone(point) || fleet_->seat[index_][point.seat].clock.head >= point.bound;
}

void CardView::sleep_until(const Point& point, bool of_other) const {
  while (point.bound != 0) {
    std::uint32_t epoch = 0;
    Nanos wake_at = 0;
    {
      const Hold hold(*this);
      settle_held(monotonic_now());
      if (fleet_->seat[index_][point.seat].clock.head >= point.bound) return;
      if (of_other && gone(point)) return;
      epoch = card_->epoch.load();
      wake_at = projected_end(point.seat, point.bound - 1);
    }
    // Work that others submit meanwhile makes it later, which the next turn sees; a death makes it
    // earlier and changes the epoch.
    futex_wait_until(card_->epoch, epoch, wake_at);
  }
}

void CardView::wait_for(const Point& point) const { sleep_until(point, true); }

void CardClient::wait(std::uint64_t bound) const { sleep_until(point(bound), false); }

bool CardClient::take(std::uint64_t bytes) const {
  const Hold hold(*this);
  const std::uint64_t limit = card_->info.memory_bytes - card_->info.reserved_bytes;
  const std::uint64_t used = used_bytes();
  if (bytes > limit || used > limit - bytes) return false;
  const std::uint64_t held = seat_->memory_bytes.load() + bytes;
  seat_->memory_bytes.store(held);
  if (held > seat_->memory_peak_bytes.load()) seat_->memory_peak_bytes.store(held);
  return true;
}

void CardClient::give(std::uint64_t bytes) const {
  const Hold hold(*this);
  const std::uint64_t held = seat_->memory_bytes.load();
  seat_->memory_bytes.store(held - std::min(held, bytes));
}

}  // namespace sim
