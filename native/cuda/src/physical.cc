// SPDX-License-Identifier: Apache-2.0
#include "physical.h"

#include <atomic>
#include <new>

#include "charges.h"
#include "table.h"

namespace xpu {

struct Physical {
    std::atomic<std::uint32_t> holders{1};
    std::uint64_t bytes = 0; // charged
    int card = kNoCard;
};

struct MappedRange {
    CUdeviceptr address;
    std::uint64_t bytes;
    Physical* held;
    MappedRange* next;
};

struct Pin {
    std::uint64_t resource;
    Physical* held;
    Pin* next;
};

namespace {

struct Handle {
    std::uint64_t key = 0;
    Physical* physical = nullptr;
    std::uint32_t count = 0; // each is a holder
};
Table<Handle> handles;

struct Mapped {
    std::uint64_t key = 0; // first address
    MappedRange* mapping = nullptr;
};
Table<Mapped> mappings;

SpinLock pins_lock;
Pin* pins = nullptr;

template <typename Object>
Object* make() noexcept {
    void* place = std::malloc(sizeof(Object));
    return place == nullptr ? nullptr : new (place) Object{};
}

Physical* one_more(Physical* physical) noexcept {
    physical->holders.fetch_add(1, std::memory_order_relaxed);
    return physical;
}

void put_handle(CUmemGenericAllocationHandle handle, Physical* physical, bool& noted) noexcept {
    noted = handles.with_new(handle, [=](Handle& entry) {
        entry.physical = physical;
        ++entry.count;
        return true;
    });
}

} // namespace

bool physical_made(CUmemGenericAllocationHandle handle, std::uint64_t bytes, int card) noexcept {
    auto* physical = make<Physical>();
    if (physical == nullptr) return false;
    physical->bytes = bytes;
    physical->card = card;
    bool noted = false;
    put_handle(handle, physical, noted);
    if (!noted) std::free(physical);
    return noted;
}

Physical* hold_handle(CUmemGenericAllocationHandle handle) noexcept {
    Physical* found = nullptr;
    handles.with(handle, [&](Handle& entry) {
        found = one_more(entry.physical);
        return true;
    });
    return found;
}

Physical* hold_address(CUdeviceptr address) noexcept {
    Physical* found = nullptr;
    mappings.any([&](const Mapped& entry) {
        if (address < entry.key || address - entry.key >= entry.mapping->bytes) return false;
        found = one_more(entry.mapping->held);
        return true;
    });
    return found;
}

void let_go(Physical* physical) noexcept {
    if (physical == nullptr) return;
    if (physical->holders.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    drop_pins(take_pins(resource_of(physical)));
    if (physical->card != kNoCard) refund(physical->card, physical->bytes);
    std::free(physical);
}

bool handle_retained(CUmemGenericAllocationHandle handle, Physical* held) noexcept {
    bool noted = false;
    put_handle(handle, held, noted);
    return noted;
}

Physical* handle_released(CUmemGenericAllocationHandle handle) noexcept {
    Physical* found = nullptr;
    handles.with(handle, [&](Handle& entry) {
        found = entry.physical;
        return --entry.count != 0;
    });
    return found;
}

void release_failed(CUmemGenericAllocationHandle handle, Physical* held) noexcept {
    bool noted = false; // just taken out, so there is room
    if (held != nullptr) put_handle(handle, held, noted);
}

bool mapped(CUdeviceptr address, std::uint64_t bytes, Physical* held) noexcept {
    auto* mapping = make<MappedRange>();
    if (mapping == nullptr) return false;
    *mapping = {address, bytes, held, nullptr};
    if (mappings.add({address, mapping})) return true;
    std::free(mapping);
    return false;
}

// Usually the ranges lie one after another; where one is not ours, all are looked through.
MappedRange* take_mappings(CUdeviceptr address, std::uint64_t bytes) noexcept {
    MappedRange* taken = nullptr;
    CUdeviceptr at = address;
    const CUdeviceptr end = address + bytes;
    while (at < end) {
        const Mapped found = mappings.take(at);
        if (found.key == 0) break;
        at += found.mapping->bytes;
        found.mapping->next = taken;
        taken = found.mapping;
    }
    if (at >= end) return taken;
    mappings.take_if([=](const Mapped& entry) { return entry.key >= at && entry.key < end; },
                     [&](const Mapped& entry) {
                         entry.mapping->next = taken;
                         taken = entry.mapping;
                     });
    return taken;
}

void drop_mappings(MappedRange* taken) noexcept {
    while (taken != nullptr) {
        MappedRange* next = taken->next;
        let_go(taken->held);
        std::free(taken);
        taken = next;
    }
}

void put_mappings_back(MappedRange* taken) noexcept {
    for (; taken != nullptr; taken = taken->next)
        (void)mappings.add({taken->address, taken}); // just taken out, so there is room
}

// Pins come from tiles by the thousand, of few resources and few handles: one is kept of each pair.
bool pin(std::uint64_t resource, Physical* held) noexcept {
    Hold hold(pins_lock);
    for (const Pin* at = pins; at != nullptr; at = at->next) {
        if (at->resource != resource || at->held != held) continue;
        held->holders.fetch_sub(1, std::memory_order_relaxed); // the pin that is there holds it too
        return true;
    }
    auto* fresh = make<Pin>();
    if (fresh == nullptr) return false;
    *fresh = {resource, held, pins};
    pins = fresh;
    return true;
}

Pins take_pins(std::uint64_t resource) noexcept {
    Hold hold(pins_lock);
    Pins taken = nullptr;
    for (Pin** at = &pins; *at != nullptr;) {
        Pin* here = *at;
        if (here->resource != resource) {
            at = &here->next;
            continue;
        }
        *at = here->next;
        here->next = taken;
        taken = here;
    }
    return taken;
}

void drop_pins(Pins taken) noexcept {
    while (taken != nullptr) {
        Pin* next = taken->next;
        let_go(taken->held);
        std::free(taken);
        taken = next;
    }
}

void put_pins_back(Pins taken) noexcept {
    Hold hold(pins_lock);
    while (taken != nullptr) {
        Pin* next = taken->next;
        taken->next = pins;
        pins = taken;
        taken = next;
    }
}

std::uint64_t resource_of(const Physical* multicast) noexcept {
    return reinterpret_cast<std::uintptr_t>(multicast);
}

void forget_all_physical() noexcept {
    handles.forget_all();
    mappings.forget_all();
    pins_lock.unlock();
    pins = nullptr;
}

} // namespace xpu
