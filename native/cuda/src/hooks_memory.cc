// SPDX-License-Identifier: Apache-2.0
//
// Memory that is allocated and freed at the call. What it costs is charged before the driver is asked
// and settled when its place is known.
#include <algorithm>

#include "allocations.h"
#include "call.h"
#include "charges.h"
#include "leaving.h"
#include "pools.h"
#include "xpu/log.h"

namespace xpu {
namespace {

bool oversubscribed(int card) noexcept {
    return (guard.grants(card).flags.load(std::memory_order_relaxed) & XPU_CARD_OVERSUBSCRIBE) != 0;
}

// Memory of the host that the card reads over the bus: it never takes the card's own, so it is not
// charged. Advice is best effort; without it the driver would move pages to the card and back.
void stay_on_host(CUdeviceptr pointer, std::size_t bytes) noexcept {
    if (real.cuMemAdvise == nullptr) return;
    (void)real.cuMemAdvise(pointer, bytes, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, CU_DEVICE_CPU);
    (void)real.cuMemAdvise(pointer, bytes, CU_MEM_ADVISE_SET_ACCESSED_BY, current_device());
}

CUresult allocate_on_host(CUdeviceptr* pointer, std::size_t bytes, unsigned flags) noexcept {
    const CUresult result = call(real.cuMemAllocManaged, pointer, bytes, flags);
    if (result == CUDA_SUCCESS) stay_on_host(*pointer, bytes);
    return result;
}

// Charge `most`, allocate by `allocate`, remember the pointer that it stored and settle what
// `size()`, asked afterwards, really takes. `give_back` frees it again where that fails.
template <typename Pointer, typename Allocate, typename Size, typename GiveBack>
CUresult allocate_charged(int card, Pointer* pointer, std::uint64_t most, Allocate allocate, Size size,
                          GiveBack give_back) noexcept {
    const CUresult result = allocate();
    if (result != CUDA_SUCCESS) {
        refund(card, most);
        return result;
    }
    if (keep_allocation(*pointer, size(), card, most)) return result;
    (void)give_back(*pointer);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

template <typename Pointer, typename Allocate, typename GiveBack>
CUresult allocate_plain(Pointer* pointer, std::uint64_t bytes, Allocate allocate,
                        GiveBack give_back) noexcept {
    const int card = guard.active() && pointer != nullptr ? current_charged_card() : kNoCard;
    if (card == kNoCard) return allocate();
    if (!charge(card, most_of(bytes))) return CUDA_ERROR_OUT_OF_MEMORY;
    return allocate_charged(
        card, pointer, most_of(bytes), allocate, [=] { return bytes; }, give_back);
}

CUresult free_unpooled(CUdeviceptr pointer) noexcept { return call(real.cuMemFree_v2, pointer); }

// Managed memory is on the card in whole granules, and on the host where the quota is used up and may
// be exceeded.
CUresult allocate_managed(CUdeviceptr* pointer, std::size_t bytes, unsigned flags) noexcept {
    const int card = guard.active() && pointer != nullptr ? current_charged_card() : kNoCard;
    const auto allocate = [=] { return call(real.cuMemAllocManaged, pointer, bytes, flags); };
    if (card == kNoCard) return allocate();
    const std::uint64_t most = most_of(bytes);
    if (!charge(card, most))
        return oversubscribed(card) ? allocate_on_host(pointer, bytes, flags)
                                    : static_cast<CUresult>(CUDA_ERROR_OUT_OF_MEMORY);
    return allocate_charged(card, pointer, most, allocate, [=] { return most; }, free_unpooled);
}

// A pitched allocation is charged for the widest pitch first and for the pitch that the driver chose
// afterwards, so that it never exceeds the quota in between.
constexpr std::uint64_t kWidestPitchStep = 1024;
constexpr std::uint64_t kUsualPitchStep = 512;

template <typename Pointer, typename Size, typename Allocate, typename GiveBack>
CUresult allocate_pitched(Pointer* pointer, Size* pitch, std::uint64_t width, std::uint64_t height,
                          Allocate allocate, GiveBack give_back) noexcept {
    std::uint64_t most = 0;
    const bool odd = pitch == nullptr ||
                     __builtin_mul_overflow(width + kWidestPitchStep - 1, height, &most);
    // What is odd the driver refuses by itself.
    const int card = !odd && guard.active() && pointer != nullptr ? current_charged_card() : kNoCard;
    if (card == kNoCard) return allocate();
    most = most_of(most);
    if (!charge_if_free(card, most)) {
        // Near the quota the true pitch may fit where the widest does not.
        most = most_of(rounded_up(width, kUsualPitchStep) * height);
        if (!charge(card, most)) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return allocate_charged(
        card, pointer, most, allocate, [=] { return std::uint64_t{*pitch} * height; }, give_back);
}

// `gone` is called with what was freed and ours to count. Any other address may be a pool's.
template <typename Free, typename Gone>
CUresult free_charged(CUdeviceptr pointer, Free free, Gone gone) noexcept {
    if (!guard.active()) return free();
    bool known = false;
    const CUresult result = free_kept(allocations, pointer, gone, free, &known);
    if (!known) pools_changed();
    return result;
}

template <typename Function>
CUresult free_in_stream(Function function, CUdeviceptr pointer, CUstream stream,
                        CUstream meant) noexcept {
    return free_charged(
        pointer, [=] { return call(function, pointer, stream); },
        [=](const Allocation& held) { leave_in_stream(held, meant); });
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuMemAlloc(CUdeviceptr_v1* pointer, unsigned int bytes) {
    return allocate_plain(
        pointer, bytes, [=] { return call(real.cuMemAlloc, pointer, bytes); },
        [](CUdeviceptr_v1 p) { return call(real.cuMemFree, p); });
}

CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    const CUresult result = allocate_plain(
        pointer, bytes, [=] { return call(real.cuMemAlloc_v2, pointer, bytes); }, free_unpooled);
    if (result != CUDA_ERROR_OUT_OF_MEMORY || !guard.active()) return result;
    const int card = current_charged_card();
    return card != kNoCard && oversubscribed(card)
               ? allocate_on_host(pointer, bytes, CU_MEM_ATTACH_GLOBAL)
               : result;
}

CUresult cuMemAllocManaged(CUdeviceptr* pointer, size_t bytes, unsigned int flags) {
    return allocate_managed(pointer, bytes, flags);
}

CUresult cuMemAllocPitch(CUdeviceptr_v1* pointer, unsigned int* pitch, unsigned int width,
                         unsigned int height, unsigned int element) {
    return allocate_pitched(
        pointer, pitch, width, height,
        [=] { return call(real.cuMemAllocPitch, pointer, pitch, width, height, element); },
        [](CUdeviceptr_v1 p) { return call(real.cuMemFree, p); });
}

CUresult cuMemAllocPitch_v2(CUdeviceptr* pointer, size_t* pitch, size_t width, size_t height,
                            unsigned int element) {
    return allocate_pitched(
        pointer, pitch, width, height,
        [=] { return call(real.cuMemAllocPitch_v2, pointer, pitch, width, height, element); },
        free_unpooled);
}

CUresult cuMemFree(CUdeviceptr_v1 pointer) {
    return free_charged(
        pointer, [=] { return call(real.cuMemFree, pointer); }, refund_allocation);
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    return free_charged(
        pointer, [=] { return call(real.cuMemFree_v2, pointer); }, refund_allocation);
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    return free_in_stream(real.cuMemFreeAsync, pointer, stream, stream);
}

CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream) {
    return free_in_stream(real.cuMemFreeAsync_ptsz, pointer, stream,
                          stream == nullptr ? XPU_STREAM_PER_THREAD : stream);
}
