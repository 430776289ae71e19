// SPDX-License-Identifier: Apache-2.0
#include "guard.h"

#include <cstdio>
#include <cstring>
#include <ctime>
#include <unistd.h>

#include "charges.h"
#include "meter.h"
#include "xpu/log.h"
#include "xpu/place.h"
#include "xpu/uncancelled.h"
#include "xpu/upstream.h"

// What pthread_atfork() is made of. Taken directly because the wrapper is a static function of the
// newer glibc and a shared one of the older; without a handle it stays registered, which is right
// for a library linked with -z nodelete.
extern "C" int __register_atfork(void (*prepare)(), void (*parent)(), void (*child)(),
                                 void* dso_handle);

namespace xpu {
namespace {

constexpr std::size_t kUuidText = sizeof "00000000-0000-0000-0000-000000000000";
constexpr std::size_t kUuidKind = sizeof "GPU-" - 1;

void format_uuid(const CUuuid& uuid, char (&text)[kUuidText]) noexcept {
    const unsigned char* b = uuid.bytes;
    std::snprintf(text, sizeof text,
                  "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                  b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
                  b[14], b[15]);
}

// The driver's bytes don't tell a card (GPU-) from an instance of one (MIG-); none has another's.
bool is_named(const char* uuid, const char* text) noexcept {
    return (std::strncmp(uuid, "GPU-", kUuidKind) == 0 ||
            std::strncmp(uuid, "MIG-", kUuidKind) == 0) &&
           std::strcmp(uuid + kUuidKind, text) == 0;
}

// In MIG mode the older function names the card that the instance is part of. A driver that lacks
// the newer one knows no instances as devices either.
CUresult uuid_of(CUdevice device, CUuuid& uuid) noexcept {
    if (real.cuDeviceGetUuid_v2 != nullptr) return real.cuDeviceGetUuid_v2(&uuid, device);
    if (real.cuDeviceGetUuid != nullptr) return real.cuDeviceGetUuid(&uuid, device);
    return CUDA_ERROR_NOT_FOUND;
}

// 0 means no limit, so where the overhead alone fills the quota a single byte is left.
std::uint64_t limit_of(const xpu_card_config& card) noexcept {
    if (card.memory_bytes == 0) return 0;
    return card.memory_bytes > card.overhead_bytes ? card.memory_bytes - card.overhead_bytes : 1;
}

void child_of_fork() { guard.after_fork(); }

// A quota nothing fits in, and no charge but for what the application itself allocates.
void deny_memory(Config& config) noexcept {
    for (xpu_card_config& card : config.card) {
        card.memory_bytes = 1;
        card.overhead_bytes = card.context_bytes = 0;
        card.flags &= ~XPU_CARD_OVERSUBSCRIBE;
    }
}

} // namespace

// Constant initialisation: the library is loaded into processes that never use CUDA, and loading
// must do nothing. A test checks that there is no .init_array.
Guard guard;

Nanos monotonic_now() noexcept {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<Nanos>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

void Grants::set_terms(const Terms& terms) noexcept {
    tau.store(terms.rate.tau, std::memory_order_relaxed);
    paused.store(terms.paused, std::memory_order_relaxed);
    frame.store(terms.window.frame, std::memory_order_relaxed);
    window_start.store(terms.window.start, std::memory_order_relaxed);
    window_length.store(terms.window.length, std::memory_order_relaxed);
    scale_q32.store(terms.rate.scale_q32, std::memory_order_relaxed);
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
    const char* path = config_page_path();
    GrantSource source = open_grant(path, made_page_);
    Config config;
    if (source.state == PageState::kGood) source.state = await_config(*source.page, config);
    Mapping ledger;
    if (source.state == PageState::kGood) ledger = map_ledger(ledger_page_path(), true);
    const bool now = source.state != PageState::kExhausted && ledger.state != PageState::kExhausted;
    if (source.state != PageState::kGood || !now) {
        unmap(source.mapping, sizeof(xpu_config_page));
        return now ? without_grant(source.file, source.state, read_on_error(path)) : Found::kNotNow;
    }
    page_ = source.page;
    if (ledger.state != PageState::kGood && read_on_error(path) == OnError::kDenyNewMemory) {
        XPU_LOG_ONCE("%s %s: by the node's policy this process gets no device memory",
                     ledger_page_path(), describe(ledger.state));
        deny_.store(Deny::kCards);
    }
    apply(config);
    ledger_.attach(ledger, ledger_page_path());
    return Found::kGrant;
}

// kGrant where a policy has to be kept although nothing is known of the grant.
Guard::Found Guard::without_grant(const char* file, PageState state, OnError policy) noexcept {
    if (policy == OnError::kAllow) {
        XPU_LOG_ONCE("%s %s: no limits in this process", file, describe(state));
        return Found::kNone;
    }
    XPU_LOG_ONCE("%s %s: by the node's policy this process gets no device memory", file,
                 describe(state));
    deny_.store(Deny::kEveryDevice);
    made_page_ = {};
    page_ = &made_page_;
    Config config;
    config.cards = XPU_MAX_CARDS;
    apply(config);
    Mapping own;
    own.state = PageState::kGood; // a private page is what is wanted here, not a makeshift
    ledger_.attach(own, ledger_page_path());
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
    if (denies_memory()) deny_memory(config_);
    for (std::uint32_t index = 0; index < XPU_MAX_CARDS; ++index) {
        const xpu_card_config& card = config_.card[index];
        const bool present = index < config.cards;
        grants_[index].set_terms(present ? terms_of(card) : Terms{});
        grants_[index].memory_quota.store(present ? card.memory_bytes : 0,
                                          std::memory_order_relaxed);
        grants_[index].memory_limit.store(present ? limit_of(card) : 0, std::memory_order_relaxed);
        grants_[index].context_bytes.store(card.context_bytes, std::memory_order_relaxed);
        grants_[index].flags.store(card.flags, std::memory_order_relaxed);
        grants_[index].present.store(present, std::memory_order_relaxed);
    }
    for (auto& known : card_of_device_) known.store(0, std::memory_order_relaxed);
    seen_epoch_.store(config.epoch, std::memory_order_relaxed);
}

int Guard::find_card(CUdevice device) noexcept {
    CUuuid uuid = {};
    if (uuid_of(device, uuid) != CUDA_SUCCESS) return kNoCard;
    if (deny_.load(std::memory_order_relaxed) == Deny::kEveryDevice)
        return device % static_cast<int>(XPU_MAX_CARDS);
    char text[kUuidText];
    format_uuid(uuid, text);
    Hold hold(rereading_);
    for (std::uint32_t index = 0; index < config_.cards; ++index) {
        if (is_named(config_.card[index].uuid, text)) return static_cast<int>(index);
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
    forget_all_memory();
    forget_all_meters();
}

} // namespace xpu
