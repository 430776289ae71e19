// SPDX-License-Identifier: Apache-2.0
//
// The tenant's side of xpu_ascend/grant_page.h for one card: operators start while flexnpud has given a turn,
// and wait otherwise. While a turn is held, starting costs no system call. A thread of ours ends the turn: the
// application may be busy with something else then.
//
// A flexnpud that gives no sign of life for kSilent has died, and nobody restarts it: work goes on without
// turns until it is back. The alternative is a service that hangs because its scheduler does.
#ifndef XPU_ASCEND_GATE_H
#define XPU_ASCEND_GATE_H

#include <atomic>
#include <cstdint>
#include <mutex>

#include "flight.h"
#include "xpu_ascend/grant_page.h"

namespace ascend {

constexpr std::int64_t kSilent = 10'000'000'000;
constexpr std::int64_t kLinger = 1'000'000; // so long may a turn be held without starting anything

struct Pages {
    const xpu_grant_page* grants = nullptr; // null: none
    xpu_process_request* request = nullptr; // our slot
    char doorbell[256] = {};
};

// Beside the slice's two pages. Where one is unusable `grants` is null, and XPU_LOG says why.
Pages open_pages(const char* config_page_path, const char* ledger_page_path) noexcept;

class Gate {
  public:
    Gate(const Pages& pages, unsigned card) noexcept;
    void start() noexcept; // the thread

    // Around the start of an operator; enter() may wait.
    void enter() noexcept;
    void leave(void* stream, bool started) noexcept;

    void forget_stream(void* stream) noexcept;
    void forget_context(void* context) noexcept;

  private:
    static void* run(void* self) noexcept;
    [[noreturn]] void attend() noexcept;
    bool open() noexcept;
    bool begin(std::uint64_t turn) noexcept;
    void wait() noexcept;
    void end_turn() noexcept;
    void ring() noexcept;
    bool silent(std::int64_t now) noexcept;

    const xpu_grant_page& grants_;
    const xpu_card_grant& grant_;
    xpu_card_request& request_;
    const char* doorbell_;
    std::atomic<int> bell_{-1};
    std::atomic<std::uint32_t> held_{0};      // futex: changes when a turn begins
    std::atomic<std::uint32_t> launching_{0}; // threads between enter() and leave()
    std::atomic<std::uint32_t> waiting_{0};
    std::atomic<bool> attended_{false};       // our thread runs
    std::atomic<bool> closing_{false};
    std::mutex lock_; // of flight_, and of beginning a turn
    Flight flight_;
};

} // namespace ascend
#endif
