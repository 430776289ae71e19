// SPDX-License-Identifier: Apache-2.0
//
// Physical memory (cuMemCreate) lives until its last handle is released, its last mapping unmapped and
// nothing else holds it; so long it is charged. What was imported is not known here and costs nothing.
#ifndef XPU_CUDA_PHYSICAL_H
#define XPU_CUDA_PHYSICAL_H

#include <cstdint>

#include "xpu_cuda/driver.h"

namespace xpu {

struct Physical;

// Counts the holders of memory that was made and charged; false when it can't be remembered.
bool physical_made(CUmemGenericAllocationHandle handle, std::uint64_t bytes, int card) noexcept;

// One more holder; null when the memory isn't ours to count.
Physical* hold_handle(CUmemGenericAllocationHandle handle) noexcept;
Physical* hold_address(CUdeviceptr address) noexcept; // of what is mapped there
void let_go(Physical* physical) noexcept;             // the last one refunds

// A handle more, which stands for memory that hold_address() found (the count becomes the handle's).
bool handle_retained(CUmemGenericAllocationHandle handle, Physical* held) noexcept;
// A handle less. Taken before the driver is asked, because afterwards the same handle may already be
// somebody else's; release_failed() undoes it.
Physical* handle_released(CUmemGenericAllocationHandle handle) noexcept;
void release_failed(CUmemGenericAllocationHandle handle, Physical* held) noexcept;

struct MappedRange; // of one range of addresses
bool mapped(CUdeviceptr address, std::uint64_t bytes, Physical* held) noexcept;
MappedRange* take_mappings(CUdeviceptr address, std::uint64_t bytes) noexcept;
void drop_mappings(MappedRange* taken) noexcept;
void put_mappings_back(MappedRange* taken) noexcept;

// Memory that a resource (a sparse array, a multicast object) holds until it is gone itself. Tiles are
// mapped and unmapped in streams, so when one is really gone is not known before.
struct Pin;
using Pins = Pin*;
bool pin(std::uint64_t resource, Physical* held) noexcept;
Pins take_pins(std::uint64_t resource) noexcept;
void drop_pins(Pins taken) noexcept;
void put_pins_back(Pins taken) noexcept;
std::uint64_t resource_of(const Physical* multicast) noexcept;

void forget_all_physical() noexcept;

} // namespace xpu
#endif
