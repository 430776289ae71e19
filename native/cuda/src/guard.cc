// SPDX-License-Identifier: Apache-2.0
#include "guard.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>

#include "allocations.h"
#include "meter.h"
#include "xpu/log.h"
#include "xpu/uncancelled.h"
#include "xpu/upstream.h"

// What pthread_atfork() is made of. Taken directly because the wrapper is a static function of the
// newer glibc and a shared one of the older; without a handle it stays registered, which is right
// for a library linked with -z nodelete.
extern "C" int __register_atfork(void (*prepare)(), void (*parent)(), void (*child)(),
                                 void* dso_handle);

namespace xpu {
namespace {

constexpr const char* kConfigPath = "/etc/xpu/config.page";
constexpr const char* kLedgerPath = "/run/xpu/ledger.page";
constexpr std::size_t kUuidText = sizeof "GPU-00000000-0000-0000-0000-000000000000";

// Only a build for tests lets the environment choose: a tenant sets his own environment.
const char* path_of(const char* product_path, [[maybe_unused]] const char* variable) noexcept {
#ifdef XPU_TEST_PATHS
    if (const char* chosen = std::getenv(variable)) return chosen;
#endif
    return product_path;
}

void format_uuid(const CUuuid& uuid, char (&text)[kUuidText]) noexcept {
    const unsigned char* b = uuid.bytes;
    std::snprintf(text, sizeof text,
                  "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                  b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
                  b[14], b[15]);
}

void child_of_fork() { guard.after_fork(); }

} // namespace

// Constant initialisation: the library is loaded into processes that never use CUDA, and loading
// must do nothing. A test checks that there is no .init_array.
Guard guard;

Nanos monotonic_now() noexcept {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<Nanos>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// True when it is ours to initialise; otherwise another thread has. A process that was forked meanwhile
// waits for nobody: the thread at work stayed in the parent, and child_of_fork is not registered yet.
bool Guard::take_turn() noexcept {
    for (;;) {
        State seen = State::kFresh;
        if (state_.compare_exchange_strong(seen, State::kBusy)) break;
        if (seen != State::kBusy) return false;
        if (initialiser_.load() != getpid()) state_.compare_exchange_strong(seen, State::kFresh);
        else sched_yield();
    }
    initialiser_.store(getpid());
    return true;
}

void Guard::initialise() noexcept {
    const Uncancelled here;
    if (!take_turn()) return;
    const Found found = resolve_real_driver() ? map_pages() : Found::kNone;
    if (found == Found::kGrant) __register_atfork(nullptr, nullptr, child_of_fork, nullptr);
    const State result = found == Found::kGrant    ? State::kActive
                         : found == Found::kNotNow ? State::kFresh
                                                   : State::kIdle;
    state_.store(result, std::memory_order_release);
}

// Out of descriptors or memory is no answer: the driver will not start like this either, and the next
// call asks again.
Guard::Found Guard::map_pages() noexcept {
    const char* path = path_of(kConfigPath, "XPU_CONFIG_PAGE");
    GrantSource source = open_grant(path, made_page_);
    Config config;
    if (source.state == PageState::kGood) source.state = await_config(*source.page, config);
    const char* ledger_path = path_of(kLedgerPath, "XPU_LEDGER_PAGE");
    Mapping ledger;
    if (source.state == PageState::kGood) ledger = map_ledger(ledger_path, true);
    const bool now = source.state != PageState::kExhausted && ledger.state != PageState::kExhausted;
    if (source.state != PageState::kGood || !now) {
        if (now)
            XPU_LOG_ONCE("%s %s: no limits in this process", source.file, describe(source.state));
        unmap(source.mapping, sizeof(xpu_config_page));
        return now ? Found::kNone : Found::kNotNow;
    }
    page_ = source.page;
    apply(config);
    ledger_.attach(ledger, ledger_path);
    return Found::kGrant;
}

void Guard::reread() noexcept {
    if (!rereading_.try_lock()) return;
    Config config;
    const std::uint32_t epoch = shared(page_->epoch).load(std::memory_order_acquire);
    const PageState state = read_config(*page_, config);
    if (state == PageState::kGood) {
        apply(config);
    } else {
        // Looked at: a writer that died half way must not cost every launch a look at its page.
        seen_epoch_.store(epoch, std::memory_order_relaxed);
        XPU_LOG_ONCE("the changed config page %s: the old grant stays", describe(state));
    }
    rereading_.unlock();
}

void Guard::apply(const Config& config) noexcept {
    config_ = config;
    for (std::uint32_t index = 0; index < XPU_MAX_CARDS; ++index) {
        const xpu_card_config& card = config.card[index];
        const bool present = index < config.cards;
        // elastic, fixed-share and priority are enforced as hard until their policies exist: a
        // tenant gets what was granted, never more.
        const bool limited = present && card.mode != XPU_MODE_NONE;
        const Rate rate =
            limited ? make_rate(card.cores_percent, card.trim_q16, card.tau_ns) : Rate{};
        grants_[index].scale_q32.store(rate.scale_q32, std::memory_order_relaxed);
        grants_[index].tau.store(rate.tau, std::memory_order_relaxed);
        grants_[index].memory_quota.store(present ? card.memory_bytes : 0,
                                          std::memory_order_relaxed);
        grants_[index].present.store(present, std::memory_order_relaxed);
    }
    for (auto& known : card_of_device_) known.store(0, std::memory_order_relaxed);
    seen_epoch_.store(config.epoch, std::memory_order_relaxed);
}

int Guard::find_card(CUdevice device) noexcept {
    CUuuid uuid = {};
    if (real.cuDeviceGetUuid == nullptr || real.cuDeviceGetUuid(&uuid, device) != CUDA_SUCCESS)
        return kNoCard;
    char text[kUuidText];
    format_uuid(uuid, text);
    Hold hold(rereading_);
    for (std::uint32_t index = 0; index < config_.cards; ++index) {
        if (std::strcmp(config_.card[index].uuid, text) == 0) return static_cast<int>(index);
    }
    return kNoCard;
}

int Guard::card_of(CUdevice device) noexcept {
    if (device < 0 || device >= kMaxDevices) return kNoCard;
    const int known = card_of_device_[device].load(std::memory_order_relaxed);
    if (known != 0) return known - 2;
    const int card = find_card(device);
    card_of_device_[device].store(card + 2, std::memory_order_relaxed);
    return card;
}

int Guard::current_card() noexcept {
    CUdevice device = 0;
    return real.cuCtxGetDevice(&device) == CUDA_SUCCESS ? card_of(device) : kNoCard;
}

void Guard::join_now() noexcept {
    Hold hold(joining_);
    if (joined_.load(std::memory_order_relaxed)) return;
    ledger_.join(monotonic_now());
    joined_.store(true, std::memory_order_release);
}

void Guard::after_fork() noexcept {
    if (state_.load() == State::kBusy) state_.store(State::kFresh);
    rereading_.unlock();
    joining_.unlock();
    joined_.store(false);
    ledger_.abandon();
    allocations.forget_all();
    forget_all_meters();
}

} // namespace xpu
