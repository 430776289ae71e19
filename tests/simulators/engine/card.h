// SPDX-License-Identifier: GPL-3.0-or-later
//
// What a process does with a card: submit work, wait for it, take and give back memory; and what an
// observer reads. Everything here works on the shared memory of layout.h and takes the clock from
// the caller's hand where it decides anything.
#pragma once

#include <string>
#include <vector>

#include "layout.h"

namespace sim {

Nanos monotonic_now();

// Starts a card's clock; called once, by the daemon, before the card is visible.
void init_card(Card& card);

// The process with that ticket is dead: if it holds the card's lock, the lock is free again.
void release_dead(Card& card, std::uint32_t ticket);

// One card of the fleet, seen by an observer.
class CardView {
 public:
  // `ticket` is the caller's name as a holder of locks.
  CardView(Fleet& fleet, std::size_t index, std::uint32_t ticket)
      : fleet_(&fleet), card_(&fleet.card[index]), index_(index), ticket_(ticket) {}

  const CardInfo& info() const { return card_->info; }
  std::size_t index() const { return index_; }

  // Settles the card's history up to now.
  void settle() const;

  std::uint64_t used_bytes() const;  // by processes, without what the card reserves
  Nanos busy_ns() const { return card_->clock.busy_ns; }
  // Percent of the latest complete window in which the card was busy.
  unsigned utilisation_percent(Nanos now) const;

  struct Usage {
    std::uint32_t seat;
    std::int32_t host_pid;
    std::int32_t pid;
    std::string command;
    Nanos busy_ns;
    std::uint64_t memory_bytes;
  };
  // Processes that hold memory on the card or have run on it.
  std::vector<Usage> usages() const;

  // Usages and the instant up to which they hold. Both are taken under the card's lock: read one
  // after the other, a reader who is delayed in between would see a share that never was.
  struct Reading {
    Nanos at_ns;
    Nanos busy_ns;  // of the card, by whomever, since the beginning
    std::vector<Usage> usages;
  };
  Reading read() const;

  struct WindowBusy {
    Nanos end_ns;
    Nanos busy_ns;
  };
  // Complete windows that end after `since` and in which the seat's process was busy, oldest first.
  std::vector<WindowBusy> windows(std::uint32_t seat, Nanos since, Nanos now) const;

  // A place in a process' queue, for others to ask about; since_ns tells the process from later ones on its seat.
  struct Point {
    std::uint32_t seat;
    Nanos since_ns;
    std::uint64_t bound;
  };
  // Whether all items below have completed, or their process has gone.
  bool reached(const Point& point) const;
  void wait_for(const Point& point) const;

  // The process on `seat` is gone: forget its queue, return its memory, wake whoever waited for it.
  // Returns whether it had used the card, and what it had used.
  bool evict(std::uint32_t seat, Grave& grave) const;

 protected:
  class Hold;
  void settle_held(Nanos now) const;
  Nanos projected_end(std::uint32_t seat, std::uint64_t item) const;
  bool gone(const Point& point) const;
  // Sleeps until the seat's items below the bound have completed, or the point's process has gone.
  void sleep_until(const Point& point, bool of_other) const;

  Fleet* fleet_;
  Card* card_;
  std::size_t index_;
  std::uint32_t ticket_;
};

// One card as seen by a process that has a seat.
class CardClient : public CardView {
 public:
  CardClient(Fleet& fleet, std::size_t index, std::uint32_t seat, std::uint32_t ticket)
      : CardView(fleet, index, ticket), seat_(&fleet.seat[index][seat]), seat_number_(seat) {}

  // Number of the next item that submit() will return; items below have been submitted.
  std::uint64_t submitted() const { return seat_->tail.load(std::memory_order_relaxed); }

  // Sleeps while kQueueDepth items are outstanding.
  void make_room();
  // Appends an item, after make_room(). One caller at a time.
  std::uint64_t submit(ItemKind kind, Nanos duration_ns, std::uint32_t stream);

  // Lets a gate, and what is behind it, go on.
  void open(std::uint64_t gate) const;

  Point point(std::uint64_t bound) const {
    return {seat_number_, fleet_->process[seat_number_].since_ns, bound};
  }

  // Whether all items below `bound` have completed, now.
  bool completed(std::uint64_t bound) const;
  // Sleeps until they have.
  void wait(std::uint64_t bound) const;
  // When a completed item ended; only for the last kQueueDepth items.
  Nanos end_of(std::uint64_t item) const { return seat_->ring[item % kQueueDepth].end_ns; }

  // Takes card memory if that much is free.
  bool take(std::uint64_t bytes) const;
  void give(std::uint64_t bytes) const;
  std::uint64_t held_bytes() const { return seat_->memory_bytes.load(); }

 private:
  std::uint64_t settled_head() const;

  Seat* seat_;
  std::uint32_t seat_number_;
  std::uint64_t known_head_ = 0;  // a lower bound, so that submit() seldom needs the lock
};

}  // namespace sim
