// SPDX-License-Identifier: Apache-2.0
//
// The pages of xpu/pages.h, mapped: what the slice grants (config) and what it has used (ledger).
//
// Memory accounting has one truth per process: its slot. A charge is claimed in the slot first and
// checked against the sum of all slots second, so that a process killed at any instruction leaves
// exactly its own slot behind, and clearing that slot undoes exactly what it held. Nothing is ever
// stored in two places that a crash could leave apart; card.memory_bytes is only the last sum seen.
//
// Whether the owner of a slot lives is answered by the kernel: it holds a POSIX record lock on the
// byte of the ledger file whose offset is the slot's, which ends with the process and with exec,
// is not inherited by fork, and can be asked about across pid namespaces.
#ifndef XPU_SLICE_H
#define XPU_SLICE_H

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "xpu/limiter.h"
#include "xpu/pages.h"

namespace xpu {

// The pages' "shared" fields are plain C; this is the only place that turns them into atomics.
template <typename T>
inline std::atomic<T>& shared(T& field) noexcept {
    static_assert(sizeof(std::atomic<T>) == sizeof(T) && std::atomic<T>::is_always_lock_free);
    return reinterpret_cast<std::atomic<T>&>(field);
}

template <typename T>
inline const std::atomic<T>& shared(const T& field) noexcept {
    return reinterpret_cast<const std::atomic<T>&>(field);
}

// Why a page, or a file that stands in for one (xpu/upstream.h), cannot be used.
enum class PageState {
    kGood,
    kAbsent,
    kUnreadable,
    kExhausted, // no descriptor or no memory now; may be good in a moment
    kTooShort,
    kHoles,
    kWrongMagic,
    kWrongVersion,
    kInvalid,
    kBeingWritten,
    kBadLimits,
    kBadIds,
    kNoIds
};
const char* describe(PageState state) noexcept;
PageState state_of_open_error(int error) noexcept; // of errno

// A consistent copy of a config page, checked.
struct Config {
    std::uint32_t epoch = 0;
    std::uint32_t cards = 0;
    xpu_card_config card[XPU_MAX_CARDS] = {};
};

PageState check(const xpu_config_page& page) noexcept; // magic, version, ranges, uuid termination

// Reads a consistent copy. kBeingWritten when the writer kept the epoch odd or moving throughout; then
// keep what you had. Never waits.
PageState read_config(const xpu_config_page& page, Config& out) noexcept;

// For who has nothing to keep: gives a writer 20 ms to finish, then takes what stands there, old
// or new, field by field. All of it was granted, and no limit was not.
PageState await_config(const xpu_config_page& page, Config& out) noexcept;

// A file mapping; closes nothing it did not open. Not destroyed on exit: other threads may use it.
struct Mapping {
    void* base = nullptr;
    int fd = -1; // open only for the ledger, which carries the record locks
    PageState state = PageState::kAbsent;
};
Mapping map_config(const char* path) noexcept;
Mapping map_ledger(const char* path, bool writable) noexcept;
void unmap(Mapping& mapping, std::size_t bytes) noexcept;

enum class Charge { kGranted, kDenied };

// This process's place in a ledger. Thread-safe after join(), except abandon().
class Ledger {
  public:
    // Takes over the mapping. Where it is unusable, a private page stands in, so that limits
    // still hold for this process alone.
    void attach(const Mapping& mapping, const char* path) noexcept;

    // Find a slot and make it ours. False when all are taken by living processes.
    bool join(Nanos now) noexcept;

    // After fork, in the child: the parent's slot is not ours, its lock was not inherited.
    void abandon() noexcept;

    // Claim `bytes` of card `card` if the sum over all processes stays within `quota` (0 = none). A
    // refusal is counted, unless the caller makes room and tries again.
    Charge charge_memory(unsigned card, std::uint64_t bytes, std::uint64_t quota,
                         bool counts_refusal = true) noexcept;
    void refund_memory(unsigned card, std::uint64_t bytes) noexcept;
    std::uint64_t memory(unsigned card) const noexcept;

    void add_charged(unsigned card, Nanos gpu_time) noexcept;
    xpu_card_ledger& card(unsigned index) noexcept { return page_->card[index]; }

    // Clear the slots of dead processes; returns how many.
    unsigned reap() noexcept;

    bool shared_with_others() const noexcept { return fd_.load() >= 0; }

  private:
    bool claim(unsigned slot) noexcept;
    bool own_descriptor() noexcept;
    bool is_our_file(int fd) const noexcept;
    bool still_mine() const noexcept;
    void rejoin() noexcept;
    void publish(unsigned card, std::uint64_t sum) noexcept;

    xpu_ledger_page* page_ = nullptr;
    std::atomic<xpu_process_slot*> slot_{nullptr};
    std::atomic<int> fd_{-1};
    std::uint64_t device_ = 0, inode_ = 0; // of the ledger file
    const char* path_ = nullptr;
    std::uint64_t owner_ = 0;
    // What this process holds, for the case that its slot was taken for dead (it closed our
    // descriptor, say): the next charge then joins again with all of it.
    std::atomic<std::uint64_t> held_[XPU_MAX_CARDS] = {};
    std::atomic<bool> rejoining_{false};
    std::atomic<bool> maintaining_{false};
};

// Is the owner of this slot alive? Asks the kernel about the record lock. With a descriptor of -1
// (a private page) only ourselves exist, and we live.
bool slot_alive(int ledger_fd, unsigned slot) noexcept;

std::uint64_t own_identity() noexcept; // (start time in ticks << 32) ^ pid

} // namespace xpu
#endif
