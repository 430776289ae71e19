// SPDX-License-Identifier: Apache-2.0
#include "contexts.h"

#include <algorithm>

#include "allocations.h"
#include "charges.h"
#include "leaving.h"
#include "meter.h"

namespace xpu {
namespace {

constexpr unsigned kLimits = 3; // CU_LIMIT_STACK_SIZE, _PRINTF_FIFO_SIZE, _MALLOC_HEAP_SIZE

struct Context {
    std::uint64_t key = 0;
    std::uint64_t bytes = 0; // charged for the context as such
    int card = kNoCard;
    std::uint32_t uses = 0;
    std::uint64_t raised[kLimits] = {};   // charged for each limit
    std::uint64_t original[kLimits] = {}; // 1 + its bytes before the first change; 0: not changed yet
};
Table<Context> contexts;

struct Primary {
    SpinLock lock;
    bool charged = false;
    ContextCharge charge = {kNoCard, 0, false};
    CUcontext context = nullptr;
};
Primary primaries[kMaxDevices];

bool known(CUdevice device) noexcept { return device >= 0 && device < kMaxDevices; }

std::uint64_t key_of(CUcontext context) noexcept {
    return reinterpret_cast<std::uintptr_t>(context);
}

void refund_context(const Context& gone) noexcept {
    std::uint64_t bytes = gone.bytes;
    for (const std::uint64_t more : gone.raised) bytes += more;
    if (gone.card != kNoCard) refund(gone.card, bytes);
}

// The stack limit is bytes for each thread that the card can hold at once.
std::uint64_t threads_of(CUdevice device) noexcept {
    int processors = 0, threads = 0;
    if (real.cuDeviceGetAttribute == nullptr) return 0;
    (void)real.cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    (void)real.cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
                                    device);
    return static_cast<std::uint64_t>(std::max(processors, 0)) *
           static_cast<std::uint64_t>(std::max(threads, 0));
}

std::uint64_t bytes_of_limit(int limit, std::uint64_t value) noexcept {
    const std::uint64_t each = limit == CU_LIMIT_STACK_SIZE ? threads_of(current_device()) : 1;
    std::uint64_t bytes = 0;
    return __builtin_mul_overflow(value, each, &bytes) ? ~std::uint64_t{0} >> 1 : bytes;
}

bool limit_now(int limit, std::uint64_t& bytes) noexcept {
    std::size_t value = 0;
    if (real.cuCtxGetLimit == nullptr || real.cuCtxGetLimit(&value, limit) != CUDA_SUCCESS)
        return false;
    bytes = bytes_of_limit(limit, value);
    return true;
}

std::uint64_t above(std::uint64_t bytes, std::uint64_t original) noexcept {
    return rounded_up(bytes > original ? bytes - original : 0, kGranule);
}

void end_primary(Primary& primary) noexcept {
    primary.charged = false;
    if (primary.context != nullptr) context_ended(primary.context);
    else context_not_made(primary.charge);
    primary.context = nullptr;
}

} // namespace

ContextCharge charge_context(CUdevice device) noexcept {
    ContextCharge wanted = {charged_card(device), 0, true};
    if (wanted.card == kNoCard) return wanted;
    wanted.bytes = guard.grants(wanted.card).context_bytes.load(std::memory_order_relaxed);
    wanted.granted = wanted.bytes == 0 || charge(wanted.card, wanted.bytes);
    return wanted;
}

void context_began(CUcontext context, const ContextCharge& charge) noexcept {
    const bool noted = contexts.with_new(key_of(context), [&](Context& entry) {
        entry.card = charge.card;
        entry.bytes = charge.bytes;
        entry.uses = 1;
        return true;
    });
    // Without memory to remember it, it stays charged until the process ends.
    (void)noted;
}

void context_not_made(const ContextCharge& charge) noexcept {
    if (charge.card != kNoCard) refund(charge.card, charge.bytes);
}

void context_ended(CUcontext context) noexcept {
    if (context == nullptr) return;
    end_allocations(context);
    end_leaving(context);
    forget_meter(context);
    refund_context(contexts.take(key_of(context)));
}

void context_attached(CUcontext context) noexcept {
    contexts.with(key_of(context), [](Context& entry) {
        ++entry.uses;
        return true;
    });
}

bool context_detached(CUcontext context) noexcept {
    bool last = false;
    contexts.with(key_of(context), [&](Context& entry) {
        last = --entry.uses == 0;
        return true;
    });
    return last;
}

bool primary_needs_room(CUdevice device) noexcept {
    if (!known(device)) return true; // the driver refuses it by itself
    Primary& primary = primaries[device];
    Hold hold(primary.lock);
    if (primary.charged) return true;
    primary.charge = charge_context(device);
    primary.charged = primary.charge.granted;
    return primary.charged;
}

void primary_used(CUdevice device, CUcontext context, CUresult result) noexcept {
    if (!known(device)) return;
    if (result != CUDA_SUCCESS) {
        primary_released(device); // refused by the driver: not there, unless others use it
        return;
    }
    Primary& primary = primaries[device];
    Hold hold(primary.lock);
    if (!primary.charged) { // released by another thread between our charge and the driver's answer
        primary.charge = charge_context(device);
        primary.charged = true;
    }
    if (context == nullptr || primary.context == context) return;
    primary.context = context;
    context_began(context, primary.charge);
}

CUcontext primary_context(CUdevice device) noexcept {
    if (!known(device)) return nullptr;
    Hold hold(primaries[device].lock);
    return primaries[device].context;
}

void primary_released(CUdevice device) noexcept {
    if (!known(device) || real.cuDevicePrimaryCtxGetState == nullptr) return;
    Primary& primary = primaries[device];
    Hold hold(primary.lock);
    unsigned flags = 0;
    int still_there = 0;
    if (!primary.charged ||
        real.cuDevicePrimaryCtxGetState(device, &flags, &still_there) != CUDA_SUCCESS)
        return;
    if (still_there == 0) end_primary(primary);
}

void primaries_released() noexcept {
    for (CUdevice device = 0; device < kMaxDevices; ++device)
        if (primaries[device].charged) primary_released(device);
}

CUresult change_limit(int limit, std::uint64_t wanted, CUresult (*set)(int, std::size_t)) noexcept {
    CUcontext context = nullptr;
    std::uint64_t before = 0;
    const bool costs = limit >= 0 && limit < static_cast<int>(kLimits) &&
                       real.cuCtxGetCurrent(&context) == CUDA_SUCCESS && context != nullptr &&
                       limit_now(limit, before);
    const int card = costs ? current_charged_card() : kNoCard;
    if (card == kNoCard) return set(limit, wanted);
    std::uint64_t original = before, held = 0;
    contexts.with(key_of(context), [&](Context& entry) {
        if (entry.original[limit] == 0) entry.original[limit] = before + 1;
        original = entry.original[limit] - 1;
        held = entry.raised[limit];
        return true;
    });
    const std::uint64_t needed = above(bytes_of_limit(limit, wanted), original);
    const std::uint64_t prepaid = needed > held ? needed - held : 0;
    if (prepaid != 0 && !charge(card, prepaid)) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = set(limit, wanted);
    std::uint64_t now = before;
    (void)limit_now(limit, now); // drivers round
    const std::uint64_t holds = result == CUDA_SUCCESS ? above(now, original) : held;
    const std::uint64_t charged = held + prepaid;
    if (holds > charged) (void)charge(card, holds - charged);
    else refund(card, charged - holds);
    contexts.with(key_of(context), [&](Context& entry) {
        entry.raised[limit] = holds;
        return true;
    });
    return result;
}

void forget_all_contexts() noexcept {
    contexts.forget_all();
    for (Primary& primary : primaries) {
        primary.lock.unlock();
        primary.charged = false;
        primary.context = nullptr;
    }
}

} // namespace xpu
