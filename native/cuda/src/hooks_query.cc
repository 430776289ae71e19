// SPDX-License-Identifier: Apache-2.0
//
// Start-up, function lookup, and what the application is told about the card's memory.
#include <algorithm>
#include <limits>

#include "call.h"
#include "pools.h"

namespace xpu {
namespace {

std::uint64_t quota_of(int card) noexcept {
    return card == kNoCard || guard.denies_memory()
               ? 0
               : guard.grants(card).memory_quota.load(std::memory_order_relaxed);
}

// The slice's memory in place of the card's. Free memory is the lesser of what the slice has left,
// less what only NVML sees of it (overhead_bytes), and what the card has.
template <typename Size>
void show_slice(Size* free, Size* total) noexcept {
    guard.refresh();
    const int card = guard.current_card();
    const std::uint64_t quota = quota_of(card);
    if (quota == 0 || free == nullptr || total == nullptr) return;
    after_synchronisation(); // what pools gave back since
    const std::uint64_t limit = guard.grants(card).memory_limit.load(std::memory_order_relaxed);
    const std::uint64_t used = guard.ledger().memory(static_cast<unsigned>(card));
    const std::uint64_t left = limit > used ? limit - used : 0;
    *free = static_cast<Size>(std::min<std::uint64_t>(*free, left));
    *total = static_cast<Size>(std::min<std::uint64_t>(*total, quota));
}

template <typename Function, typename Size>
CUresult memory_info(Function function, Size* free, Size* total) noexcept {
    const bool active = guard.active();
    const CUresult result = call(function, free, total);
    if (active && result == CUDA_SUCCESS) show_slice(free, total);
    return result;
}

template <typename Function, typename Size>
CUresult total_memory(Function function, Size* bytes, CUdevice device) noexcept {
    const bool active = guard.active();
    const CUresult result = call(function, bytes, device);
    if (!active || result != CUDA_SUCCESS || bytes == nullptr) return result;
    guard.refresh();
    if (const std::uint64_t quota = quota_of(guard.card_of(device)))
        *bytes = static_cast<Size>(std::min<std::uint64_t>(*bytes, quota));
    return result;
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuInit(unsigned int flags) {
    (void)guard.active();
    return call(real.cuInit, flags);
}

// The real driver chooses by name, version and flags; its answer is then translated. So every
// version and per-thread variant it knows finds the hook that belongs to it.
CUresult cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
    (void)guard.active();
    const CUresult result = call(real.cuGetProcAddress, symbol, function, version, flags);
    if (result == CUDA_SUCCESS && function != nullptr) *function = hook_for(*function);
    return result;
}

CUresult cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t flags,
                             int* status) {
    (void)guard.active();
    const CUresult result =
        call(real.cuGetProcAddress_v2, symbol, function, version, flags, status);
    if (result == CUDA_SUCCESS && function != nullptr) *function = hook_for(*function);
    return result;
}

CUresult cuMemGetInfo(unsigned int* free, unsigned int* total) {
    return memory_info(real.cuMemGetInfo, free, total);
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    return memory_info(real.cuMemGetInfo_v2, free, total);
}

CUresult cuDeviceTotalMem(unsigned int* bytes, CUdevice device) {
    return total_memory(real.cuDeviceTotalMem, bytes, device);
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    return total_memory(real.cuDeviceTotalMem_v2, bytes, device);
}
