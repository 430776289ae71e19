// SPDX-License-Identifier: Apache-2.0
//
// Physical memory, charged when it is made for a device, whatever is then mapped where. Addresses cost
// nothing, nor does what another process made and was charged for.
#include "call.h"
#include "charges.h"
#include "physical.h"

namespace xpu {
namespace {

std::uint64_t true_size(std::uint64_t bytes, const CUmemAllocationProp* how) noexcept {
    std::size_t unit = 0;
    const bool told = real.cuMemGetAllocationGranularity != nullptr &&
                      real.cuMemGetAllocationGranularity(
                          &unit, how, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS;
    return rounded_up(bytes, told && unit != 0 ? unit : kGranule);
}

int card_of(const CUmemAllocationProp* how) noexcept {
    return how != nullptr && how->location.type == CU_MEM_LOCATION_TYPE_DEVICE
               ? charged_card(how->location.id)
               : kNoCard;
}

// What `held` stands for is held by `resource` now, or, where that can't be noted, for good: too much
// is charged then, never too little.
void pin_or_keep(std::uint64_t resource, Physical* held) noexcept {
    if (held != nullptr) (void)pin(resource, held);
}

// A bound object keeps memory as long as it lives itself.
template <typename Function, typename... Arguments>
CUresult bind(Physical* multicast, Physical* memory, Function function,
              Arguments... arguments) noexcept {
    const CUresult result = call(function, arguments...);
    if (result == CUDA_SUCCESS && multicast != nullptr)
        pin_or_keep(resource_of(multicast), memory);
    else if (result != CUDA_SUCCESS)
        let_go(memory);
    let_go(multicast);
    return result;
}

// Logical endpoints are numbered; numbers of theirs and addresses must not be mixed up.
std::uint64_t resource_of_endpoint(CUlogicalEndpointId endpoint) noexcept {
    return std::uint64_t{1} << 63 | endpoint;
}

template <typename Function, typename... Arguments>
CUresult bind_endpoint(CUlogicalEndpointId endpoint, Physical* memory, Function function,
                       Arguments... arguments) noexcept {
    const CUresult result = call(function, endpoint, arguments...);
    if (result == CUDA_SUCCESS) pin_or_keep(resource_of_endpoint(endpoint), memory);
    else let_go(memory);
    return result;
}

template <typename Function>
CUresult map_tiles(Function function, CUarrayMapInfo* list, unsigned count,
                   CUstream stream) noexcept {
    const CUresult result = call(function, list, count, stream);
    if (!guard.active() || result != CUDA_SUCCESS || list == nullptr) return result;
    for (unsigned at = 0; at < count; ++at) {
        if (list[at].memOperationType != CU_MEM_OPERATION_TYPE_MAP) continue;
        pin_or_keep(reinterpret_cast<std::uintptr_t>(list[at].resource),
                    hold_handle(list[at].memHandle));
    }
    return result;
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                     const CUmemAllocationProp* how, unsigned long long flags) {
    const int card = guard.active() && handle != nullptr ? card_of(how) : kNoCard;
    if (card == kNoCard) return call(real.cuMemCreate, handle, bytes, how, flags);
    const std::uint64_t size = true_size(bytes, how);
    if (!charge(card, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = call(real.cuMemCreate, handle, bytes, how, flags);
    if (result == CUDA_SUCCESS && physical_made(*handle, size, card)) return result;
    if (result == CUDA_SUCCESS) (void)call(real.cuMemRelease, *handle);
    refund(card, size);
    return result == CUDA_SUCCESS ? static_cast<CUresult>(CUDA_ERROR_OUT_OF_MEMORY) : result;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    if (!guard.active()) return call(real.cuMemRelease, handle);
    Physical* held = handle_released(handle);
    const CUresult result = call(real.cuMemRelease, handle);
    if (result == CUDA_SUCCESS) let_go(held);
    else release_failed(handle, held);
    return result;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* address) {
    const CUresult result = call(real.cuMemRetainAllocationHandle, handle, address);
    if (!guard.active() || result != CUDA_SUCCESS) return result;
    Physical* held = hold_address(reinterpret_cast<std::uintptr_t>(address));
    // Where the handle can't be noted, the memory stays charged until the process ends.
    if (held != nullptr) (void)handle_retained(*handle, held);
    return result;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
    Physical* held = guard.active() ? hold_handle(handle) : nullptr;
    const CUresult result = call(real.cuMemMap, address, bytes, offset, handle, flags);
    if (result != CUDA_SUCCESS) let_go(held);
    // Where the mapping can't be noted, the memory stays charged until the process ends.
    else if (held != nullptr) (void)mapped(address, bytes, held);
    return result;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    if (!guard.active()) return call(real.cuMemUnmap, address, bytes);
    MappedRange* taken = take_mappings(address, bytes);
    const CUresult result = call(real.cuMemUnmap, address, bytes);
    if (result == CUDA_SUCCESS) drop_mappings(taken);
    else put_mappings_back(taken);
    return result;
}

CUresult cuMemMapArrayAsync(CUarrayMapInfo* list, unsigned int count, CUstream stream) {
    return map_tiles(real.cuMemMapArrayAsync, list, count, stream);
}

CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo* list, unsigned int count, CUstream stream) {
    return map_tiles(real.cuMemMapArrayAsync_ptsz, list, count, stream);
}

// A multicast object takes no memory itself, but its handles and mappings keep what is bound to it.
CUresult cuMulticastCreate(CUmemGenericAllocationHandle* handle, const void* how) {
    const CUresult result = call(real.cuMulticastCreate, handle, how);
    if (guard.active() && result == CUDA_SUCCESS) (void)physical_made(*handle, 0, kNoCard);
    return result;
}

CUresult cuMulticastBindMem(CUmemGenericAllocationHandle multicast, size_t offset,
                            CUmemGenericAllocationHandle memory, size_t memory_offset, size_t bytes,
                            unsigned long long flags) {
    const bool active = guard.active();
    return bind(active ? hold_handle(multicast) : nullptr, active ? hold_handle(memory) : nullptr,
                real.cuMulticastBindMem, multicast, offset, memory, memory_offset, bytes, flags);
}

CUresult cuMulticastBindMem_v2(CUmemGenericAllocationHandle multicast, CUdevice device,
                               size_t offset, CUmemGenericAllocationHandle memory,
                               size_t memory_offset, size_t bytes, unsigned long long flags) {
    const bool active = guard.active();
    return bind(active ? hold_handle(multicast) : nullptr, active ? hold_handle(memory) : nullptr,
                real.cuMulticastBindMem_v2, multicast, device, offset, memory, memory_offset, bytes,
                flags);
}

CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle multicast, size_t offset,
                             CUdeviceptr memory, size_t bytes, unsigned long long flags) {
    const bool active = guard.active();
    return bind(active ? hold_handle(multicast) : nullptr, active ? hold_address(memory) : nullptr,
                real.cuMulticastBindAddr, multicast, offset, memory, bytes, flags);
}

CUresult cuMulticastBindAddr_v2(CUmemGenericAllocationHandle multicast, CUdevice device,
                                size_t offset, CUdeviceptr memory, size_t bytes,
                                unsigned long long flags) {
    const bool active = guard.active();
    return bind(active ? hold_handle(multicast) : nullptr, active ? hold_address(memory) : nullptr,
                real.cuMulticastBindAddr_v2, multicast, device, offset, memory, bytes, flags);
}

CUresult cuLogicalEndpointBindMem(CUlogicalEndpointId endpoint, CUdevice device, uint64_t offset,
                                  CUmemGenericAllocationHandle memory, uint64_t memory_offset,
                                  uint64_t bytes, unsigned long long flags) {
    return bind_endpoint(endpoint, guard.active() ? hold_handle(memory) : nullptr,
                         real.cuLogicalEndpointBindMem, device, offset, memory, memory_offset,
                         bytes, flags);
}

CUresult cuLogicalEndpointBindAddr(CUlogicalEndpointId endpoint, CUdevice device, uint64_t offset,
                                   void* memory, uint64_t bytes, unsigned long long flags) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    return bind_endpoint(endpoint, guard.active() ? hold_address(address) : nullptr,
                         real.cuLogicalEndpointBindAddr, device, offset, memory, bytes, flags);
}

CUresult cuLogicalEndpointDestroy(CUlogicalEndpointId endpoint) {
    if (!guard.active()) return call(real.cuLogicalEndpointDestroy, endpoint);
    const Pins pinned = take_pins(resource_of_endpoint(endpoint));
    const CUresult result = call(real.cuLogicalEndpointDestroy, endpoint);
    if (result == CUDA_SUCCESS) drop_pins(pinned);
    else put_pins_back(pinned);
    return result;
}
