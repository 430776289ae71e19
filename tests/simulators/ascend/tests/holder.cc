// SPDX-License-Identifier: GPL-3.0-or-later
//
// A process that uses a chip, for tests of what observers see: takes MIB of card CARD, keeps it busy
// for MS milliseconds, says so, and waits until its input ends.
#include <cstdio>
#include <cstdlib>

#include "ascend.h"
#include "card.h"
#include "session.h"
#include "wire.h"

int main(int count, char** words) {
  if (count != 4) return 2;
  const auto number = [&](int at) { return std::strtoull(words[at], nullptr, 10); };
  sim::Session session = sim::Session::open(simascend::socket_path(), sim::kTenant);
  if (!session.ok()) return std::fprintf(stderr, "%s\n", session.error().c_str()), 1;
  sim::CardClient card(session.fleet(), number(1), session.seat(), session.ticket());
  if (!card.take(number(2) << 20)) return std::fputs("no memory\n", stderr), 1;
  card.make_room();
  const auto item = card.submit(sim::ItemKind::kWork, static_cast<sim::Nanos>(number(3)) * 1'000'000, 0);
  card.wait(item + 1);
  std::puts("holds");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
}
