// SPDX-License-Identifier: Apache-2.0
//
// Memory of the card: charged before the driver is asked, refunded when it says no or takes it
// back. The order matters: free first, refund after, so that the sum never shows less than is held.
#include <atomic>
#include <limits>

#include "allocations.h"
#include "call.h"
#include "meter.h"
#include "xpu/log.h"

namespace xpu {
namespace {

// The driver hands out large allocations in granules and cuts small ones out of shared granules.
constexpr std::uint64_t kGranule = 2u << 20;
constexpr std::uint64_t kSmall = 1u << 20;
constexpr std::uint64_t kSmallUnit = 512;

std::uint64_t true_size(std::uint64_t bytes) noexcept {
    const std::uint64_t unit = bytes < kSmall ? kSmallUnit : kGranule;
    const std::uint64_t rounded = (bytes + unit - 1) / unit * unit;
    return rounded < bytes ? std::numeric_limits<std::uint64_t>::max() : rounded;
}

int card_with_quota() noexcept {
    guard.refresh();
    const int card = guard.current_card();
    return card == kNoCard || !guard.grants(card).present.load(std::memory_order_relaxed) ? kNoCard
                                                                                          : card;
}

bool charge(int card, std::uint64_t bytes) noexcept {
    guard.join();
    const std::uint64_t quota = guard.grants(card).memory_quota.load(std::memory_order_relaxed);
    return guard.ledger().charge_memory(static_cast<unsigned>(card), bytes, quota) ==
           Charge::kGranted;
}

void refund(int card, std::uint64_t bytes) noexcept {
    if (bytes != 0) guard.ledger().refund_memory(static_cast<unsigned>(card), bytes);
}

void refund_entry(const Allocation& gone) noexcept { refund(gone.card, gone.bytes); }

CUcontext current_context() noexcept {
    CUcontext context = nullptr;
    (void)real.cuCtxGetCurrent(&context);
    return context;
}

// Charge `bytes`, allocate by `allocate`, remember the pointer it stored. `give_back` frees it
// again in the one case where we cannot remember it.
template <typename Pointer, typename Allocate, typename GiveBack>
CUresult allocate_charged(Pointer* pointer, std::uint64_t bytes, Allocate allocate,
                          GiveBack give_back) noexcept {
    const int card = guard.active() && pointer != nullptr ? card_with_quota() : kNoCard;
    if (card == kNoCard) return allocate();
    const std::uint64_t size = true_size(bytes);
    if (!charge(card, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = allocate();
    if (result != CUDA_SUCCESS) {
        refund(card, size);
        return result;
    }
    if (allocations.add({*pointer, size, current_context(), card})) return result;
    (void)give_back(*pointer);
    refund(card, size);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

// A pitched allocation is charged for the widest pitch first and for the pitch the driver chose
// afterwards, so that it never exceeds the quota in between.
constexpr std::uint64_t kWidestPitchStep = 1024;

template <typename Pointer, typename Size, typename Allocate, typename GiveBack>
CUresult allocate_pitched(Pointer* pointer, Size* pitch, std::uint64_t width, std::uint64_t height,
                          Allocate allocate, GiveBack give_back) noexcept {
    std::uint64_t most = 0;
    if (pitch == nullptr ||
        __builtin_mul_overflow(width + kWidestPitchStep - 1, height, &most))
        return allocate(); // the driver refuses both by itself
    const int card = guard.active() && pointer != nullptr ? card_with_quota() : kNoCard;
    if (card == kNoCard) return allocate();
    most = true_size(most);
    if (!charge(card, most)) {
        // Near the quota the true pitch may fit where the widest does not.
        most = true_size((width + kSmallUnit - 1) / kSmallUnit * kSmallUnit * height);
        if (!charge(card, most)) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const CUresult result = allocate();
    const std::uint64_t size =
        result == CUDA_SUCCESS ? true_size(std::uint64_t{*pitch} * height) : 0;
    if (size > most && !charge(card, size - most)) {
        (void)give_back(*pointer);
        refund(card, most);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (size < most) refund(card, most - size);
    if (result != CUDA_SUCCESS) return result;
    if (allocations.add({*pointer, size, current_context(), card})) return result;
    (void)give_back(*pointer);
    refund(card, size);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

// The entry is taken out before the driver frees: afterwards the same address may already be
// another thread's new allocation. A refused free puts it back.
template <typename Free>
CUresult free_charged(CUdeviceptr pointer, Free free) noexcept {
    if (!guard.active()) return free();
    const Allocation held = allocations.take(pointer);
    const CUresult result = free();
    if (held.pointer == 0) return result;
    if (result == CUDA_SUCCESS) refund_entry(held);
    else (void)allocations.add(held); // just taken out, so there is room
    return result;
}

// Primary contexts by device, so that a reset knows whose memory is gone.
std::atomic<CUcontext> primary[kMaxDevices] = {};

void context_ended(CUcontext context) noexcept {
    if (context == nullptr) return;
    allocations.take_context(context, refund_entry);
    forget_meter(context);
}

template <typename Function>
CUresult destroy(Function function, CUcontext context) noexcept {
    const bool active = guard.active();
    if (active) settle_meter(context);
    const CUresult result = call(function, context);
    if (active && result == CUDA_SUCCESS) context_ended(context);
    return result;
}

template <typename Function>
CUresult end_primary(Function function, CUdevice device) noexcept {
    const bool active = guard.active();
    if (active && device >= 0 && device < kMaxDevices) settle_meter(primary[device].load());
    const CUresult result = call(function, device);
    if (!active || result != CUDA_SUCCESS || device < 0 || device >= kMaxDevices) return result;
    unsigned flags = 0;
    int still_active = 0;
    if (real.cuDevicePrimaryCtxGetState != nullptr)
        (void)real.cuDevicePrimaryCtxGetState(device, &flags, &still_active);
    if (still_active == 0) context_ended(primary[device].exchange(nullptr));
    return result;
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuMemAlloc(CUdeviceptr_v1* pointer, unsigned int bytes) {
    return allocate_charged(
        pointer, bytes, [&] { return call(real.cuMemAlloc, pointer, bytes); },
        [](CUdeviceptr_v1 p) { return call(real.cuMemFree, p); });
}

CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    return allocate_charged(
        pointer, bytes, [&] { return call(real.cuMemAlloc_v2, pointer, bytes); },
        [](CUdeviceptr p) { return call(real.cuMemFree_v2, p); });
}

CUresult cuMemAllocManaged(CUdeviceptr* pointer, size_t bytes, unsigned int flags) {
    return allocate_charged(
        pointer, bytes, [&] { return call(real.cuMemAllocManaged, pointer, bytes, flags); },
        [](CUdeviceptr p) { return call(real.cuMemFree_v2, p); });
}

CUresult cuMemAllocPitch(CUdeviceptr_v1* pointer, unsigned int* pitch, unsigned int width,
                         unsigned int height, unsigned int element) {
    return allocate_pitched(
        pointer, pitch, width, height,
        [&] { return call(real.cuMemAllocPitch, pointer, pitch, width, height, element); },
        [](CUdeviceptr_v1 p) { return call(real.cuMemFree, p); });
}

CUresult cuMemAllocPitch_v2(CUdeviceptr* pointer, size_t* pitch, size_t width, size_t height,
                            unsigned int element) {
    return allocate_pitched(
        pointer, pitch, width, height,
        [&] { return call(real.cuMemAllocPitch_v2, pointer, pitch, width, height, element); },
        [](CUdeviceptr p) { return call(real.cuMemFree_v2, p); });
}

CUresult cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, CUstream stream) {
    return allocate_charged(
        pointer, bytes, [&] { return call(real.cuMemAllocAsync, pointer, bytes, stream); },
        [&](CUdeviceptr p) { return call(real.cuMemFreeAsync, p, stream); });
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr* pointer, size_t bytes, CUstream stream) {
    return allocate_charged(
        pointer, bytes, [&] { return call(real.cuMemAllocAsync_ptsz, pointer, bytes, stream); },
        [&](CUdeviceptr p) { return call(real.cuMemFreeAsync_ptsz, p, stream); });
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t bytes, CUmemoryPool pool,
                                 CUstream stream) {
    return allocate_charged(
        pointer, bytes,
        [&] { return call(real.cuMemAllocFromPoolAsync, pointer, bytes, pool, stream); },
        [&](CUdeviceptr p) { return call(real.cuMemFreeAsync, p, stream); });
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr* pointer, size_t bytes, CUmemoryPool pool,
                                      CUstream stream) {
    return allocate_charged(
        pointer, bytes,
        [&] { return call(real.cuMemAllocFromPoolAsync_ptsz, pointer, bytes, pool, stream); },
        [&](CUdeviceptr p) { return call(real.cuMemFreeAsync_ptsz, p, stream); });
}

CUresult cuMemFree(CUdeviceptr_v1 pointer) {
    return free_charged(pointer, [&] { return call(real.cuMemFree, pointer); });
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    return free_charged(pointer, [&] { return call(real.cuMemFree_v2, pointer); });
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    return free_charged(pointer, [&] { return call(real.cuMemFreeAsync, pointer, stream); });
}

CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream) {
    return free_charged(pointer, [&] { return call(real.cuMemFreeAsync_ptsz, pointer, stream); });
}

CUresult cuCtxDestroy(CUcontext context) { return destroy(real.cuCtxDestroy, context); }

CUresult cuCtxDestroy_v2(CUcontext context) { return destroy(real.cuCtxDestroy_v2, context); }

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    const bool active = guard.active();
    const CUresult result = call(real.cuDevicePrimaryCtxRetain, context, device);
    if (active && result == CUDA_SUCCESS && device >= 0 && device < kMaxDevices)
        primary[device].store(*context);
    return result;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    return end_primary(real.cuDevicePrimaryCtxRelease, device);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return end_primary(real.cuDevicePrimaryCtxRelease_v2, device);
}

CUresult cuDevicePrimaryCtxReset(CUdevice device) {
    return end_primary(real.cuDevicePrimaryCtxReset, device);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
    return end_primary(real.cuDevicePrimaryCtxReset_v2, device);
}
