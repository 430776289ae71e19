// SPDX-License-Identifier: Apache-2.0
#include "allocations.h"

#include <cstdlib>

namespace xpu {
namespace {

constexpr std::uint32_t kFirstCapacity = 64;

std::uint64_t hash(CUdeviceptr pointer) noexcept {
    return (pointer >> 9) * 0x9E3779B97F4A7C15ull; // allocations are at least 512 bytes apart
}

} // namespace

Allocations allocations;

Allocations::Shard& Allocations::shard(CUdeviceptr pointer) noexcept {
    return shards_[hash(pointer) >> 58];
}

void Allocations::Shard::place(const Allocation& allocation) noexcept {
    std::uint32_t at = static_cast<std::uint32_t>(hash(allocation.pointer) >> 20) & (capacity - 1);
    while (entries[at].pointer != 0) at = (at + 1) & (capacity - 1);
    entries[at] = allocation;
}

bool Allocations::Shard::grow() noexcept {
    const std::uint32_t wanted = capacity == 0 ? kFirstCapacity : capacity * 2;
    auto* fresh = static_cast<Allocation*>(std::calloc(wanted, sizeof(Allocation)));
    if (fresh == nullptr) return false;
    Allocation* old = entries;
    const std::uint32_t old_capacity = capacity;
    entries = fresh;
    capacity = wanted;
    for (std::uint32_t at = 0; at < old_capacity; ++at) {
        if (old[at].pointer != 0) place(old[at]);
    }
    std::free(old);
    return true;
}

// Linear probing without tombstones: what follows the hole in its run is put in anew.
void Allocations::Shard::erase(std::uint32_t at) noexcept {
    entries[at] = {};
    --used;
    for (at = (at + 1) & (capacity - 1); entries[at].pointer != 0; at = (at + 1) & (capacity - 1)) {
        const Allocation moved = entries[at];
        entries[at] = {};
        place(moved);
    }
}

bool Allocations::add(const Allocation& allocation) noexcept {
    Shard& home = shard(allocation.pointer);
    Hold hold(home.lock);
    if ((home.used + 1) * 4 > home.capacity * 3 && !home.grow()) return false;
    home.place(allocation);
    ++home.used;
    return true;
}

Allocation Allocations::take(CUdeviceptr pointer) noexcept {
    Shard& home = shard(pointer);
    Hold hold(home.lock);
    if (pointer == 0 || home.used == 0) return {};
    std::uint32_t at = static_cast<std::uint32_t>(hash(pointer) >> 20) & (home.capacity - 1);
    while (home.entries[at].pointer != 0 && home.entries[at].pointer != pointer)
        at = (at + 1) & (home.capacity - 1);
    const Allocation found = home.entries[at];
    if (found.pointer != 0) home.erase(at);
    return found;
}

void Allocations::take_context(CUcontext context, void (*gone)(const Allocation&)) noexcept {
    for (Shard& home : shards_) {
        Hold hold(home.lock);
        for (std::uint32_t at = 0; at < home.capacity;) {
            if (home.entries[at].pointer == 0 || home.entries[at].context != context) {
                ++at;
                continue;
            }
            gone(home.entries[at]);
            home.erase(at); // may move another entry here, so look at this place again
        }
    }
}

void Allocations::forget_all() noexcept {
    for (Shard& home : shards_) {
        home.lock.unlock();
        home.entries = nullptr; // not freed: another thread may have held the lock half way
        home.capacity = home.used = 0;
    }
}

} // namespace xpu
