// SPDX-License-Identifier: Apache-2.0
//
// The functions we stand before: starting work, memory, and what ends streams. Each one resolves the runtime's
// own first; where there is none the application hears what it would have heard without us.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "real.h"
#include "slice.h"

using namespace ascend;

#define XPU_HOOK extern "C" __attribute__((visibility("default")))

namespace {

Gate* current_gate() noexcept {
    Slice* const slice = Slice::get();
    const int card = slice == nullptr ? -1 : slice->current_card();
    return card < 0 ? nullptr : slice->gate(static_cast<unsigned>(card));
}

template <typename Start>
rtError started(void* stream, Start start) noexcept {
    Gate* const gate = current_gate();
    if (gate == nullptr) return start();
    gate->enter();
    const rtError error = start();
    gate->leave(stream, error == kNone);
    return error;
}

// What the driver takes for so many bytes: pages of 2 MiB above 1 MiB, of 4 KiB else (aclrtMalloc's rule).
constexpr std::uint64_t true_size(std::uint64_t bytes) {
    const std::uint64_t page = bytes > (1U << 20) ? 2U << 20 : 4096;
    return bytes > UINT64_MAX - page ? UINT64_MAX : (bytes + page - 1) / page * page;
}

struct Held {
    unsigned card;
    std::uint64_t bytes;
};
std::mutex held_lock;
std::unordered_map<void*, Held>& held() {
    static auto* const map = new std::unordered_map<void*, Held>; // never destroyed: threads may still free at exit
    return *map;
}

// Charged first, refunded where the runtime refuses: nothing is ever over the quota.
template <typename Take>
rtError allocated(void** out, std::uint64_t bytes, Take take) noexcept {
    Slice* const slice = Slice::get();
    const int card = slice == nullptr ? -1 : slice->current_card();
    if (card < 0 || out == nullptr) return take();
    const auto index = static_cast<unsigned>(card);
    const std::uint64_t cost = true_size(bytes);
    if (slice->ledger().charge_memory(index, cost, slice->quota(index)) == xpu::Charge::kDenied) return kOutOfMemory;
    const rtError error = take();
    if (error != kNone) {
        slice->ledger().refund_memory(index, cost);
        return error;
    }
    const std::lock_guard<std::mutex> hold(held_lock);
    held()[*out] = {index, cost};
    return error;
}

// Taken off the list first: once it is free another thread may be given the same address.
template <typename Give>
rtError freed(void* address, Give give) noexcept {
    Held was{0, 0};
    {
        const std::lock_guard<std::mutex> hold(held_lock);
        if (const auto found = held().find(address); found != held().end()) {
            was = found->second;
            held().erase(found);
        }
    }
    const rtError error = give();
    if (was.bytes == 0) return error;
    if (error == kNone) {
        if (Slice* const slice = Slice::get()) slice->ledger().refund_memory(was.card, was.bytes);
        return error;
    }
    const std::lock_guard<std::mutex> hold(held_lock);
    held()[address] = was;
    return error;
}

// The slice's own figures in place of the card's.
rtError shown(rtError error, std::size_t* free_bytes, std::size_t* total) noexcept {
    Slice* const slice = Slice::get();
    const int card = slice == nullptr || error != kNone ? -1 : slice->current_card();
    const std::uint64_t quota = card < 0 ? 0 : slice->quota(static_cast<unsigned>(card));
    if (quota == 0 || free_bytes == nullptr || total == nullptr) return error;
    const std::uint64_t used = std::min(quota, slice->ledger().memory(static_cast<unsigned>(card)));
    *total = std::min<std::uint64_t>(*total, quota);
    *free_bytes = std::min<std::uint64_t>(*free_bytes, quota - used);
    return error;
}

} // namespace

#define LAUNCH(name, parameters, arguments)                                                        \
    XPU_HOOK rtError name parameters {                                                             \
        const auto own = XPU_REAL(#name, rtError(*) parameters);                                   \
        if (own == nullptr) return kNoSuchFunction;                                                \
        return started(stream, [&]() noexcept { return own arguments; });                          \
    }
#include "xpu_ascend/launches.def"
#undef LAUNCH

#define ALLOCATE(name, parameters, arguments)                                                      \
    XPU_HOOK rtError name parameters {                                                             \
        const auto own = XPU_REAL(#name, rtError(*) parameters);                                   \
        if (own == nullptr) return kNoSuchFunction;                                                \
        return allocated(out, size, [&]() noexcept { return own arguments; });                     \
    }
ALLOCATE(rtMalloc, (void** out, uint64_t size, uint32_t kind, uint16_t module), (out, size, kind, module))
ALLOCATE(rtMallocCached, (void** out, uint64_t size, uint32_t kind, uint16_t module), (out, size, kind, module))
ALLOCATE(rtMallocManaged, (void** out, uint64_t size, uint32_t kind, uint16_t module), (out, size, kind, module))
ALLOCATE(rtDvppMalloc, (void** out, uint64_t size, uint16_t module), (out, size, module))
ALLOCATE(rtDvppMallocWithFlag, (void** out, uint64_t size, uint32_t flag, uint16_t module), (out, size, flag, module))
ALLOCATE(rtMallocPhysical, (void** out, size_t size, void* properties, uint64_t flags), (out, size, properties, flags))
#undef ALLOCATE

#define FREE(name)                                                                                 \
    XPU_HOOK rtError name(void* address) {                                                         \
        const auto own = XPU_REAL(#name, rtError (*)(void*));                                      \
        if (own == nullptr) return kNoSuchFunction;                                                \
        return freed(address, [&]() noexcept { return own(address); });                            \
    }
FREE(rtFree)
FREE(rtDvppFree)
FREE(rtFreePhysical)
#undef FREE

XPU_HOOK rtError rtMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
    const auto own = XPU_REAL("rtMemGetInfo", rtError (*)(std::size_t*, std::size_t*));
    return own == nullptr ? kNoSuchFunction : shown(own(free_bytes, total), free_bytes, total);
}

XPU_HOOK rtError rtMemGetInfoEx(std::uint32_t kind, std::size_t* free_bytes, std::size_t* total) {
    const auto own = XPU_REAL("rtMemGetInfoEx", rtError (*)(std::uint32_t, std::size_t*, std::size_t*));
    return own == nullptr ? kNoSuchFunction : shown(own(kind, free_bytes, total), free_bytes, total);
}

XPU_HOOK rtError rtStreamDestroy(void* stream) {
    const auto own = XPU_REAL("rtStreamDestroy", rtError (*)(void*));
    if (own == nullptr) return kNoSuchFunction;
    if (Gate* const gate = current_gate()) gate->forget_stream(stream);
    return own(stream);
}

XPU_HOOK rtError rtCtxDestroy(void* context) {
    const auto own = XPU_REAL("rtCtxDestroy", rtError (*)(void*));
    if (own == nullptr) return kNoSuchFunction;
    if (Gate* const gate = current_gate()) gate->forget_context(context);
    return own(context);
}
