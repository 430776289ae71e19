// SPDX-License-Identifier: Apache-2.0
#include "view.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "xpu/log.h"
#include "xpu/place.h"
#include "xpu/uncancelled.h"
#include "xpu/upstream.h"

extern "C" int __register_atfork(void (*prepare)(), void (*parent)(), void (*child)(),
                                 void* dso_handle); // see src/guard.cc

namespace xpu::nvml {
namespace {

// NVML's times are microseconds; a reading must be found again by what became of its time there.
constexpr Nanos kRounding = 1'000'000;

void child_of_fork() { view.after_fork(); }

int find(const Config& config, const char* uuid) noexcept {
    for (unsigned index = 0; index < config.cards; ++index) {
        if (std::strcmp(config.card[index].uuid, uuid) == 0) return static_cast<int>(index);
    }
    return kNoCard;
}

bool uuid_of(nvmlDevice_t device, char (&uuid)[kUuidText]) noexcept {
    return call(real().nvmlDeviceGetUUID, device, uuid, kUuidText) == NVML_SUCCESS;
}

// Interrupted, it is cut short: a sample over less than a window is still a sample.
void sleep_for(Nanos time) noexcept {
    const int saved = errno;
    const timespec pause = {static_cast<time_t>(time / 1'000'000'000),
                            static_cast<long>(time % 1'000'000'000)};
    nanosleep(&pause, nullptr);
    errno = saved;
}

} // namespace

View view;

Nanos monotonic_now() noexcept {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<Nanos>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

bool View::active() noexcept {
    if (state_.load(std::memory_order_acquire) < State::kIdle) initialise();
    return state_.load(std::memory_order_relaxed) == State::kActive;
}

void View::initialise() noexcept {
    const Uncancelled here;
    State fresh = State::kFresh;
    if (!state_.compare_exchange_strong(fresh, State::kBusy)) {
        while (state_.load(std::memory_order_acquire) == State::kBusy) sched_yield();
        return;
    }
    const State found = map_pages();
    if (found == State::kActive) {
        __register_atfork(nullptr, nullptr, child_of_fork, nullptr);
        Hold hold(reading_);
        read(current_);
        history_.keep(current_);
    }
    state_.store(found, std::memory_order_release);
}

// Without a usable ledger too much would have to be made up, so the card itself is shown then. The
// descriptor is never closed: that would drop the locks by which the CUDA library, in the same
// process, shows that it lives. kFresh: out of descriptors or memory, which is no answer.
View::State View::map_pages() noexcept {
    GrantSource source = open_grant(config_page_path(), made_page_);
    Config unused;
    if (source.state == PageState::kGood) source.state = read_config(*source.page, unused);
    if (source.state != PageState::kGood) {
        unmap(source.mapping, sizeof(xpu_config_page));
        if (source.state == PageState::kExhausted) return State::kFresh;
        XPU_LOG_ONCE("%s %s: NVML shows the whole card", source.file, describe(source.state));
        return State::kIdle;
    }
    const Mapping ledger = map_ledger(ledger_page_path(), false);
    if (ledger.state != PageState::kGood) {
        unmap(source.mapping, sizeof(xpu_config_page));
        if (ledger.state == PageState::kExhausted) return State::kFresh;
        XPU_LOG_ONCE("%s %s: NVML shows the whole card", ledger_page_path(),
                     describe(ledger.state));
        return State::kIdle;
    }
    page_ = source.page;
    ledger_ = static_cast<const xpu_ledger_page*>(ledger.base);
    ledger_fd_ = ledger.fd;
    return State::kActive;
}

bool View::config(Config& out) noexcept {
    return active() && read_config(*page_, out) == PageState::kGood;
}

int View::card_of(nvmlDevice_t device) noexcept {
    Config now;
    char uuid[kUuidText] = {};
    return config(now) && uuid_of(device, uuid) ? find(now, uuid) : kNoCard;
}

bool View::shows(nvmlDevice_t device) noexcept {
    Config now;
    char uuid[kUuidText] = {};
    return !config(now) || !uuid_of(device, uuid) || find(now, uuid) != kNoCard;
}

bool View::instance(char (&uuid)[kUuidText]) noexcept {
    Config now;
    if (!config(now) || now.cards == 0 || std::strncmp(now.card[0].uuid, "MIG-", 4) != 0)
        return false;
    std::memcpy(uuid, now.card[0].uuid, sizeof now.card[0].uuid);
    return true;
}

bool View::memory(int card, std::uint64_t& quota, std::uint64_t& used) noexcept {
    Config now;
    if (!config(now) || now.card[card].memory_bytes == 0) return false;
    quota = now.card[card].memory_bytes;
    Hold hold(reading_);
    read(current_);
    used = now.card[card].overhead_bytes;
    for (unsigned index = 0; index < current_.processes; ++index)
        used += std::min(current_.process[index].memory_bytes[card], quota);
    used = std::min(used, quota);
    return true;
}

bool View::measures(int card) noexcept {
    Config now;
    return config(now) && now.card[card].mode != XPU_MODE_NONE &&
           now.card[card].cores_percent != 0;
}

// Called with reading_ held. Our own slot is ours by name: the kernel tells a process nothing of
// its own locks.
void View::read(Reading& out) noexcept {
    const std::uint64_t self = own_identity();
    out.at = monotonic_now();
    out.processes = 0;
    for (unsigned card = 0; card < XPU_MAX_CARDS; ++card)
        out.charged_ns[card] = shared(ledger_->card[card].charged_ns).load();
    const unsigned used = std::min(shared(ledger_->slots_used).load(), XPU_MAX_PROCESSES);
    for (unsigned index = 0; index < used; ++index) {
        const xpu_process_slot& slot = ledger_->process[index];
        const std::uint64_t owner = shared(slot.owner).load();
        if (owner == 0 || (owner != self && !slot_alive(ledger_fd_, index))) continue;
        Reading::Process& process = out.process[out.processes++];
        process.owner = owner;
        process.pid = slot.pid;
        for (unsigned card = 0; card < XPU_MAX_CARDS; ++card) {
            process.memory_bytes[card] = shared(slot.memory_bytes[card]).load();
            process.charged_ns[card] = shared(slot.charged_ns[card]).load();
        }
    }
}

void View::processes(int card, Usage& out) noexcept {
    Hold hold(reading_);
    read(current_);
    compare(nullptr, current_, static_cast<unsigned>(card), out);
}

View::Answer View::try_usage(int card, Nanos since, bool waited, Usage& out,
                             Nanos& missing) noexcept {
    Hold hold(reading_);
    read(current_);
    if (since != 0 && since > current_.at - History::kWindow) return Answer::kNothingNew;
    const Reading* before = history_.begin(current_.at, since);
    if (before == nullptr && waited) before = history_.oldest();
    if (before == nullptr) {
        const Reading* first = history_.oldest();
        missing = first == nullptr ? 0 : first->at + History::kWindow - current_.at;
        return Answer::kTooEarly;
    }
    compare(before, current_, static_cast<unsigned>(card), out);
    history_.keep(current_);
    return Answer::kGiven;
}

bool View::usage(int card, Nanos since, Usage& out) noexcept {
    if (since != 0) since += kRounding;
    Nanos missing = 0;
    Answer answer = try_usage(card, since, false, out, missing);
    if (answer == Answer::kTooEarly) {
        sleep_for(std::clamp(missing, Nanos{0}, History::kWindow));
        answer = try_usage(card, since, true, out, missing);
    }
    return answer == Answer::kGiven;
}

void View::after_fork() noexcept {
    if (state_.load() == State::kBusy) state_.store(State::kFresh);
    reading_.unlock();
}

} // namespace xpu::nvml
