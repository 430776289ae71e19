// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "xpu/log.h"
#include "xpu/slice.h"
#include "xpu/uncancelled.h"

namespace xpu {
namespace {

// How often a claim that collided with another process' claim is tried again. Two claims that
// together exceed the quota both step back; which of them wins is decided by who comes first again.
constexpr unsigned kClaimAttempts = 16;
// What a debt may at most be when the first process of a slice starts (see forgive()).
constexpr Nanos kInheritedDebt = 10'000'000'000;

std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) noexcept {
    const std::uint64_t sum = a + b;
    return sum < a ? ~std::uint64_t{0} : sum;
}

// Never below zero: the page is the tenant's to scribble on, and a wrap would look like 16 EiB.
void subtract(std::atomic<std::uint64_t>& value, std::uint64_t amount) noexcept {
    std::uint64_t seen = value.load(std::memory_order_relaxed);
    while (!value.compare_exchange_weak(seen, seen - std::min(seen, amount))) {
    }
}

struct flock slot_range(unsigned slot, short type) noexcept {
    struct flock range = {};
    range.l_type = type;
    range.l_whence = SEEK_SET;
    range.l_start = static_cast<off_t>(offsetof(xpu_ledger_page, process) +
                                       slot * sizeof(xpu_process_slot));
    range.l_len = 1;
    return range;
}

bool try_lock(int fd, unsigned slot) noexcept {
    struct flock range = slot_range(slot, F_WRLCK);
    return fcntl(fd, F_SETLK, &range) == 0;
}

void unlock(int fd, unsigned slot) noexcept {
    struct flock range = slot_range(slot, F_UNLCK);
    (void)fcntl(fd, F_SETLK, &range);
}

unsigned slots_used(const xpu_ledger_page& page) noexcept {
    return std::min(shared(page.slots_used).load(), XPU_MAX_PROCESSES);
}

std::uint64_t sum_of_slots(const xpu_ledger_page& page, unsigned card) noexcept {
    std::uint64_t sum = 0;
    for (unsigned slot = 0, used = slots_used(page); slot < used; ++slot)
        sum = saturating_add(sum, shared(page.process[slot].memory_bytes[card]).load());
    return sum;
}

void clear(xpu_process_slot& slot) noexcept {
    for (unsigned card = 0; card < XPU_MAX_CARDS; ++card) {
        shared(slot.memory_bytes[card]).store(0);
        shared(slot.charged_ns[card]).store(0);
    }
}

std::uint64_t now_ticks() noexcept {
    timespec now = {};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 100 + static_cast<std::uint64_t>(now.tv_nsec) / 10'000'000;
}

std::uint64_t start_time_ticks() noexcept {
    char text[1024] = {};
    const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    // Without /proc the moment of joining tells processes of one pid apart as well.
    if (fd < 0) return now_ticks();
    const ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    const char* at = length > 0 ? std::strrchr(text, ')') : nullptr; // the name may hold blanks
    for (int field = 2; at != nullptr && field < 22; ++field) {
        at = std::strchr(at + 1, ' ');
    }
    return at == nullptr ? 0 : std::strtoull(at + 1, nullptr, 10);
}

// One thread at a time, the others go on without: maintenance is never worth waiting for.
class Turn {
  public:
    explicit Turn(std::atomic<bool>& taken) noexcept
        : taken_(taken), mine_(!taken.exchange(true, std::memory_order_acquire)) {}
    ~Turn() {
        if (mine_) taken_.store(false, std::memory_order_release);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    explicit operator bool() const noexcept { return mine_; }

  private:
    std::atomic<bool>& taken_;
    bool mine_;
};

} // namespace

std::uint64_t own_identity() noexcept {
    const auto pid = static_cast<std::uint64_t>(getpid());
    return (start_time_ticks() << 32) ^ pid;
}

bool slot_alive(int ledger_fd, unsigned slot) noexcept {
    if (ledger_fd < 0) return true;
    struct flock range = slot_range(slot, F_WRLCK);
    if (fcntl(ledger_fd, F_GETLK, &range) != 0) return true; // in doubt nobody is declared dead
    return range.l_type != F_UNLCK;
}

void Ledger::attach(const Mapping& mapping, const char* path) noexcept {
    path_ = path;
    fd_ = mapping.fd;
    page_ = static_cast<xpu_ledger_page*>(mapping.base);
    struct stat found = {};
    if (fd_ >= 0 && fstat(fd_, &found) == 0) {
        device_ = found.st_dev;
        inode_ = found.st_ino;
    }
    if (page_ != nullptr) return;
    if (mapping.state != PageState::kGood)
        XPU_LOG_ONCE("%s %s: limits hold for each process alone", path, describe(mapping.state));
    fd_ = -1;
    void* own = mmap(nullptr, sizeof *page_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page_ = own == MAP_FAILED ? nullptr : static_cast<xpu_ledger_page*>(own);
}

bool Ledger::is_our_file(int fd) const noexcept {
    struct stat found = {};
    return fstat(fd, &found) == 0 && found.st_dev == device_ && found.st_ino == inode_;
}

// The application may have closed our descriptor (daemons close all), and the number may be one of its
// own files by now: that knows of no locks, and we would take everybody for dead. Then the ledger is
// opened anew and our slot locked again. The lost number is the application's, so it is not closed.
bool Ledger::own_descriptor() noexcept {
    if (fd_ < 0 || is_our_file(fd_)) return true;
    const int fresh = open(path_, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fresh < 0) return false;
    if (!is_our_file(fresh)) {
        close(fresh);
        return false;
    }
    fd_ = fresh;
    if (still_mine()) (void)try_lock(fresh, static_cast<unsigned>(slot_.load() - page_->process));
    return true;
}

bool Ledger::claim(unsigned index) noexcept {
    xpu_process_slot& slot = page_->process[index];
    if (fd_ >= 0 && !try_lock(fd_, index)) return false;
    clear(slot);
    std::uint32_t used = shared(page_->slots_used).load();
    while (used < index + 1 && !shared(page_->slots_used).compare_exchange_weak(used, index + 1)) {
    }
    slot.pid = static_cast<std::uint32_t>(getpid());
    shared(slot.owner).store(owner_);
    slot_ = &slot;
    return true;
}

bool Ledger::join(Nanos now) noexcept {
    if (page_ == nullptr) return false;
    const Uncancelled here;
    owner_ = own_identity();
    (void)reap();
    const bool lockable = own_descriptor();
    bool alone = true;
    for (unsigned index = 0; index < XPU_MAX_PROCESSES; ++index) {
        const bool free = shared(page_->process[index].owner).load() == 0;
        if (free && lockable && slot_ == nullptr && claim(index)) continue;
        alone = alone && free;
    }
    if (alone) {
        for (xpu_card_ledger& card : page_->card) forgive(shared(card.tat_ns), now, kInheritedDebt);
    }
    if (slot_ == nullptr) {
        XPU_LOG_ONCE("%s: all %u process slots are taken by living processes; this process gets no "
                     "device memory",
                     path_, XPU_MAX_PROCESSES);
    }
    return slot_ != nullptr;
}

void Ledger::abandon() noexcept {
    slot_ = nullptr;
    owner_ = 0;
    if (page_ != nullptr && fd_ < 0) std::memset(static_cast<void*>(page_), 0, sizeof *page_);
    for (auto& held : held_) held.store(0);
    rejoining_.store(false);
    maintaining_.store(false);
}

bool Ledger::still_mine() const noexcept {
    const xpu_process_slot* slot = slot_.load(std::memory_order_relaxed);
    return slot != nullptr && shared(slot->owner).load(std::memory_order_relaxed) == owner_;
}

// The application closed our descriptor, or another one of the ledger's, and someone took us for dead:
// come back with everything we hold.
void Ledger::rejoin() noexcept {
    const Uncancelled here;
    Turn turn(rejoining_);
    if (!turn || still_mine() || owner_ == 0) return;
    slot_ = nullptr;
    if (!own_descriptor()) return;
    for (unsigned index = 0; slot_ == nullptr && index < XPU_MAX_PROCESSES; ++index) {
        if (shared(page_->process[index].owner).load() == 0) claim(index);
    }
    xpu_process_slot* slot = slot_;
    if (slot == nullptr) return;
    for (unsigned card = 0; card < XPU_MAX_CARDS; ++card)
        shared(slot->memory_bytes[card]).fetch_add(held_[card].load());
}

void Ledger::publish(unsigned card, std::uint64_t sum) noexcept {
    shared(page_->card[card].memory_bytes).store(sum, std::memory_order_relaxed);
}

Charge Ledger::charge_memory(unsigned card, std::uint64_t bytes, std::uint64_t quota,
                             bool counts_refusal) noexcept {
    if (page_ == nullptr) return quota == 0 ? Charge::kGranted : Charge::kDenied;
    if (!still_mine()) rejoin();
    xpu_process_slot* slot = slot_;
    if (slot == nullptr) return quota == 0 ? Charge::kGranted : Charge::kDenied;
    auto& mine = shared(slot->memory_bytes[card]);
    const std::uint64_t limit = quota == 0 ? ~std::uint64_t{0} : quota;
    bool reaped = false;
    for (unsigned attempt = 0; attempt < kClaimAttempts; ++attempt) {
        if (saturating_add(sum_of_slots(*page_, card), bytes) > limit) {
            if (reaped || reap() == 0) break;
            reaped = true;
            continue;
        }
        mine.fetch_add(bytes);
        const std::uint64_t sum = sum_of_slots(*page_, card);
        if (sum <= limit) {
            held_[card].fetch_add(bytes, std::memory_order_relaxed);
            publish(card, sum);
            return Charge::kGranted;
        }
        subtract(mine, bytes);
        sched_yield();
    }
    if (counts_refusal) shared(page_->card[card].denied).fetch_add(1, std::memory_order_relaxed);
    return Charge::kDenied;
}

void Ledger::refund_memory(unsigned card, std::uint64_t bytes) noexcept {
    if (page_ == nullptr) return;
    subtract(held_[card], bytes); // also without a slot: what is joined with again must be the rest
    xpu_process_slot* slot = slot_;
    if (slot == nullptr || !still_mine()) return;
    subtract(shared(slot->memory_bytes[card]), bytes);
    publish(card, sum_of_slots(*page_, card));
}

std::uint64_t Ledger::memory(unsigned card) const noexcept {
    return page_ == nullptr ? 0 : sum_of_slots(*page_, card);
}

void Ledger::add_charged(unsigned card, Nanos gpu_time) noexcept {
    if (page_ == nullptr || gpu_time <= 0) return;
    const auto amount = static_cast<std::uint64_t>(gpu_time);
    shared(page_->card[card].charged_ns).fetch_add(amount, std::memory_order_relaxed);
    xpu_process_slot* slot = slot_;
    if (slot != nullptr && still_mine())
        shared(slot->charged_ns[card]).fetch_add(amount, std::memory_order_relaxed);
}

// The lock is taken before a dead slot is cleared: between our question and our answer another
// process may have moved in, and then it holds the lock.
unsigned Ledger::reap() noexcept {
    if (page_ == nullptr || fd_ < 0) return 0;
    const Uncancelled here;
    Turn turn(maintaining_);
    if (!turn || !own_descriptor()) return 0;
    unsigned cleared = 0;
    for (unsigned index = 0, used = slots_used(*page_); index < used; ++index) {
        xpu_process_slot& slot = page_->process[index];
        if (&slot == slot_ || shared(slot.owner).load() == 0 || slot_alive(fd_, index)) continue;
        if (!try_lock(fd_, index)) continue;
        clear(slot);
        shared(slot.owner).store(0);
        unlock(fd_, index);
        ++cleared;
    }
    return cleared;
}

} // namespace xpu
