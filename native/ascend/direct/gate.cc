// SPDX-License-Identifier: Apache-2.0
#include "gate.h"

#include <cerrno>
#include <climits>
#include <csignal>
#include <ctime>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "xpu/log.h"
#include "xpu/place.h"
#include "xpu/slice.h"

namespace ascend {
namespace {

using xpu::shared;

constexpr std::int64_t kLook = 10'000'000; // a waiter looks so often, whatever wakes it
constexpr std::int32_t kDrainMs = 900;     // below flexnpud's patience, so that the turn is returned, not taken

std::int64_t monotonic_now() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// At most `ns`; -1 is for ever. Both processes map the file, so the futex is not a private one.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t seen, std::int64_t ns) noexcept {
    const timespec left{ns / 1'000'000'000, ns % 1'000'000'000};
    syscall(SYS_futex, &word, FUTEX_WAIT, seen, ns < 0 ? nullptr : &left, nullptr, 0);
}

template <typename Page>
Page* map_page(const char* path, int flags, int protection, int& file) noexcept {
    file = ::open(path, flags | O_CLOEXEC);
    struct stat found = {};
    if (file < 0 || fstat(file, &found) != 0 || found.st_size < static_cast<off_t>(sizeof(Page))) {
        if (file >= 0) close(file);
        file = -1;
        return nullptr;
    }
    void* const mapped = mmap(nullptr, sizeof(Page), protection, MAP_SHARED, file, 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<Page*>(mapped);
}

// The first slot whose lock nobody holds: taking the lock is taking the slot.
xpu_process_request* take_slot(xpu_request_page& page, int file) noexcept {
    for (unsigned slot = 0; slot < XPU_MAX_REQUESTS; ++slot) {
        struct flock range = {};
        range.l_type = F_WRLCK;
        range.l_whence = SEEK_SET;
        range.l_start = static_cast<off_t>(offsetof(xpu_request_page, process) + slot * sizeof(xpu_process_request));
        range.l_len = 1;
        if (fcntl(file, F_SETLK, &range) != 0) continue;
        xpu_process_request& mine = page.process[slot];
        for (xpu_card_request& card : mine.card) {
            shared(card.wants).store(0);
            shared(card.using_turn).store(0);
            shared(card.launches).store(0);
        }
        mine.pid = static_cast<std::uint32_t>(getpid());
        auto& used = shared(page.slots_used);
        std::uint32_t seen = used.load();
        while (seen <= slot && !used.compare_exchange_weak(seen, slot + 1)) {
        }
        return &mine;
    }
    return nullptr;
}

} // namespace

Pages open_pages(const char* config_page_path, const char* ledger_page_path) noexcept {
    char grant_path[256], request_path[256];
    Pages pages;
    if (!xpu::name_beside(config_page_path, "grant.page", grant_path) ||
        !xpu::name_beside(ledger_page_path, "request.page", request_path) ||
        !xpu::name_beside(ledger_page_path, "request.fifo", pages.doorbell))
        return pages;
    int file = -1;
    const auto* const grants = map_page<const xpu_grant_page>(grant_path, O_RDONLY, PROT_READ, file);
    if (grants == nullptr) {
        XPU_LOG_ONCE("no %s: time is not shared here", grant_path);
        return pages;
    }
    close(file);
    // This file stays open: it carries the lock.
    auto* const requests = map_page<xpu_request_page>(request_path, O_RDWR, PROT_READ | PROT_WRITE, file);
    if (grants->magic != XPU_GRANT_MAGIC || grants->version != XPU_GRANT_VERSION || requests == nullptr ||
        requests->magic != XPU_REQUEST_MAGIC || requests->version != XPU_GRANT_VERSION) {
        XPU_LOG_ONCE("%s and %s are no pages of version 1: time is not shared here", grant_path, request_path);
        return pages;
    }
    pages.request = take_slot(*requests, file);
    if (pages.request == nullptr) XPU_LOG_ONCE("%s: all slots are taken: this process' time is not shared", request_path);
    else pages.grants = grants;
    return pages;
}

Gate::Gate(const Pages& pages, unsigned card) noexcept
    : grants_(*pages.grants), grant_(pages.grants->card[card]), request_(pages.request->card[card]),
      doorbell_(pages.doorbell) {}

void Gate::start() noexcept {
    // The application's signals are none of this thread's.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, run, this) == 0) {
        pthread_detach(thread);
        attended_.store(true);
    } else {
        XPU_LOG_ONCE("no thread can be made here: this process' time is not shared");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void* Gate::run(void* self) noexcept {
    prctl(PR_SET_TIMERSLACK, 1UL);
    static_cast<Gate*>(self)->attend();
}

void Gate::ring() noexcept {
    int bell = bell_.load();
    if (bell < 0) {
        const int made = ::open(doorbell_, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        if (made < 0) return; // flexnpud is not there; whoever waits rings again
        if (!bell_.compare_exchange_strong(bell, made)) close(made);
        else bell = made;
    }
    // A full pipe has been rung already; without a reader this would be SIGPIPE, so it is held back.
    sigset_t pipe, before;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    const char byte = 1;
    if (write(bell, &byte, 1) < 0 && errno == EPIPE && sigismember(&before, SIGPIPE) == 0) {
        const timespec now{0, 0};
        sigtimedwait(&pipe, nullptr, &now);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool Gate::silent(std::int64_t now) noexcept {
    const std::int64_t beat = shared(grants_.beat_ns).load(std::memory_order_relaxed);
    if (now - beat <= kSilent) return false;
    XPU_LOG_ONCE("flexnpud gives no sign of life: work starts without turns until it does");
    return true;
}

// Says in the request page that the turn is used, and looks again whether it is still open.
bool Gate::begin(std::uint64_t turn) noexcept {
    const std::lock_guard<std::mutex> hold(lock_);
    auto& used = shared(request_.using_turn);
    if (used.load() == turn) return true;
    used.store(turn);
    shared(request_.wants).store(0);
    const bool still = shared(grant_.turn).load() == turn && shared(grant_.until_ns).load() > monotonic_now();
    if (!still) used.store(0);
    ring();
    if (!still) return false;
    held_.fetch_add(1);
    syscall(SYS_futex, &held_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    return true;
}

bool Gate::open() noexcept {
    if (closing_.load()) return false;
    const std::int64_t until = shared(grant_.until_ns).load();
    const std::uint64_t turn = shared(grant_.turn).load();
    if (until <= monotonic_now()) return false;
    return shared(request_.using_turn).load() == turn || begin(turn);
}

void Gate::wait() noexcept {
    waiting_.fetch_add(1);
    auto& word = shared(grant_.word);
    const std::uint32_t seen = word.load();
    if (shared(grant_.until_ns).load() <= monotonic_now()) {
        // Always rung: flexnpud may have been restarted since the last time.
        shared(request_.wants).store(1);
        ring();
        futex_wait(word, seen, kLook);
    } else {
        const timespec moment{0, 20'000}; // the turn is being closed by our own thread
        nanosleep(&moment, nullptr);
    }
    waiting_.fetch_sub(1);
}

void Gate::enter() noexcept {
    while (true) {
        launching_.fetch_add(1);
        // Turns that nobody would end are not begun.
        if (!attended_.load() || open() || silent(monotonic_now())) break;
        launching_.fetch_sub(1);
        wait();
    }
    const std::lock_guard<std::mutex> hold(lock_);
    flight_.make_room(shared(grant_.operators).load(std::memory_order_relaxed));
}

void Gate::leave(void* stream, bool started) noexcept {
    if (started) {
        const std::lock_guard<std::mutex> hold(lock_);
        flight_.started(stream, shared(grant_.operators).load(std::memory_order_relaxed));
        shared(request_.launches).fetch_add(1, std::memory_order_relaxed);
    }
    launching_.fetch_sub(1);
}

void Gate::forget_stream(void* stream) noexcept {
    const std::lock_guard<std::mutex> hold(lock_);
    flight_.forget_stream(stream);
}

void Gate::forget_context(void* context) noexcept {
    const std::lock_guard<std::mutex> hold(lock_);
    flight_.forget_context(context);
}

void Gate::end_turn() noexcept {
    closing_.store(true);
    // Who came in before is let out; one that is stuck in the runtime does not keep the turn for ever.
    const std::int64_t patience = monotonic_now() + kDrainMs * 1'000'000LL / 2;
    while (launching_.load() != 0 && monotonic_now() < patience) {
        const timespec moment{0, 10'000};
        nanosleep(&moment, nullptr);
    }
    {
        const std::lock_guard<std::mutex> hold(lock_);
        if (!flight_.drain(kDrainMs / 2)) XPU_LOG_ONCE("work is under way for longer than the turn and half a second");
        shared(request_.wants).store(waiting_.load() != 0 ? 1 : 0);
        shared(request_.using_turn).store(0);
    }
    closing_.store(false);
    ring();
}

// Of our thread: sleeps while there is no turn, ends one when its time is over or it is not used.
void Gate::attend() noexcept {
    std::uint64_t started = 0;
    std::int64_t since = 0;
    while (true) {
        const std::uint32_t held = held_.load();
        const std::uint64_t turn = shared(request_.using_turn).load();
        if (turn == 0) {
            syscall(SYS_futex, &held_, FUTEX_WAIT_PRIVATE, held, nullptr, nullptr, 0);
            since = monotonic_now();
            continue;
        }
        const std::uint32_t seen = shared(grant_.word).load();
        const std::int64_t now = monotonic_now();
        const std::int64_t until = shared(grant_.until_ns).load();
        if (shared(grant_.turn).load() != turn || until <= now) {
            end_turn();
            continue;
        }
        const std::uint64_t launches = shared(request_.launches).load();
        if (launches != started || launching_.load() != 0) {
            started = launches;
            since = now;
        } else if (now - since >= kLinger) {
            end_turn();
            continue;
        }
        futex_wait(shared(grant_.word), seen, until - now < kLinger ? until - now : kLinger);
    }
}

} // namespace ascend
