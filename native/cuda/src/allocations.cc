// SPDX-License-Identifier: Apache-2.0
#include "allocations.h"

#include <algorithm>

#include "charges.h"

namespace xpu {
namespace {

constexpr std::uint64_t kSmallUnit = 512;

// A granule out of which small allocations were cut.
struct Granule {
    std::uint64_t key = 0; // its number: address / kGranule
    std::uint32_t pieces = 0;
};
Table<Granule> granules;

// Small arrays of each card together; their granules are not known one by one.
struct SmallArrays {
    SpinLock lock;
    std::uint64_t bytes = 0;
};
SmallArrays small_arrays[XPU_MAX_CARDS];

struct Reach {
    std::uint64_t first, last; // granules that an allocation touches
};

Reach reach(std::uint64_t pointer, std::uint64_t bytes) noexcept {
    return {pointer / kGranule, (pointer + std::max<std::uint64_t>(bytes, 1) - 1) / kGranule};
}

// Takes the pieces of granules [first, end) back; returns how many granules became empty.
std::uint64_t leave(std::uint64_t first, std::uint64_t end) noexcept {
    std::uint64_t emptied = 0;
    for (std::uint64_t number = first; number < end; ++number) {
        granules.with(number, [&](Granule& granule) {
            if (--granule.pieces != 0) return true;
            ++emptied;
            return false;
        });
    }
    return emptied;
}

// Joins the granules of a small allocation; false when there was no memory to remember one.
bool enter(const Reach& touched, std::uint64_t& fresh) noexcept {
    for (std::uint64_t number = touched.first; number <= touched.last; ++number) {
        const bool noted = granules.with_new(number, [&](Granule& granule) {
            if (granule.pieces++ == 0) ++fresh;
            return true;
        });
        if (noted) continue;
        fresh -= leave(touched.first, number);
        return false;
    }
    return true;
}

bool settle(int card, std::uint64_t cost, std::uint64_t prepaid) noexcept {
    if (cost > prepaid && !charge(card, cost - prepaid)) return false;
    if (cost < prepaid) refund(card, prepaid - cost);
    return true;
}

CUcontext current_context() noexcept {
    CUcontext context = nullptr;
    (void)real.cuCtxGetCurrent(&context);
    return context;
}

bool keep_small(const Allocation& held, std::uint64_t prepaid) noexcept {
    const Reach touched = reach(held.key, held.bytes);
    std::uint64_t fresh = 0;
    if (!enter(touched, fresh)) {
        refund(held.card, prepaid);
        return false;
    }
    if (settle(held.card, fresh * kGranule, prepaid)) {
        if (allocations.add(held)) return true;
        prepaid = fresh * kGranule;
    }
    const std::uint64_t emptied = leave(touched.first, touched.last + 1);
    // Where another thread moved into our granule meanwhile, it has not been charged for it.
    refund(held.card, prepaid > (fresh - emptied) * kGranule ? prepaid - (fresh - emptied) * kGranule
                                                             : 0);
    return false;
}

bool keep_whole(Table<Allocation>& table, const Allocation& held, std::uint64_t prepaid) noexcept {
    if (!settle(held.card, held.bytes, prepaid)) {
        refund(held.card, prepaid);
        return false;
    }
    if (table.add(held)) return true;
    refund(held.card, held.bytes);
    return false;
}

// How many bytes of granules the small arrays of a card take more (or, negative, less).
std::uint64_t granules_of_arrays(SmallArrays& together, std::uint64_t bytes, bool more) noexcept {
    const std::uint64_t before = rounded_up(together.bytes, kGranule);
    together.bytes = more ? together.bytes + bytes : together.bytes - bytes;
    const std::uint64_t after = rounded_up(together.bytes, kGranule);
    return more ? after - before : before - after;
}

} // namespace

Table<Allocation> allocations;
Table<Allocation> arrays;

std::uint64_t most_of(std::uint64_t bytes) noexcept { return rounded_up(bytes, kGranule); }

bool keep_allocation(CUdeviceptr pointer, std::uint64_t bytes, int card,
                     std::uint64_t prepaid) noexcept {
    Allocation held = {pointer, bytes, current_context(), card};
    if (bytes < kSmall) return keep_small(held, prepaid);
    held.bytes = rounded_up(bytes, kGranule);
    return keep_whole(allocations, held, prepaid);
}

bool keep_array(std::uint64_t handle, std::uint64_t bytes, int card, std::uint64_t prepaid) noexcept {
    Allocation held = {handle, bytes, current_context(), card};
    if (bytes >= kSmall) {
        held.bytes = rounded_up(bytes, kGranule);
        return keep_whole(arrays, held, prepaid);
    }
    held.bytes = rounded_up(bytes, kSmallUnit);
    if (!arrays.add(held)) {
        refund(card, prepaid);
        return false;
    }
    SmallArrays& together = small_arrays[card];
    Hold hold(together.lock);
    // Less than a granule was added, so at most one is new, and one is prepaid.
    refund(card, prepaid - granules_of_arrays(together, held.bytes, true));
    return true;
}

void refund_allocation(const Allocation& gone) noexcept {
    if (gone.bytes >= kSmall) {
        refund(gone.card, gone.bytes);
        return;
    }
    const Reach touched = reach(gone.key, gone.bytes);
    refund(gone.card, leave(touched.first, touched.last + 1) * kGranule);
}

void refund_array(const Allocation& gone) noexcept {
    if (gone.bytes >= kSmall) {
        refund(gone.card, gone.bytes);
        return;
    }
    SmallArrays& together = small_arrays[gone.card];
    Hold hold(together.lock);
    refund(gone.card, granules_of_arrays(together, gone.bytes, false));
}

void end_allocations(CUcontext context) noexcept {
    const auto its = [=](const Allocation& held) { return held.context == context; };
    allocations.take_if(its, refund_allocation);
    arrays.take_if(its, refund_array);
}

void forget_all_allocations() noexcept {
    allocations.forget_all();
    arrays.forget_all();
    granules.forget_all();
    for (SmallArrays& together : small_arrays) {
        together.lock.unlock();
        together.bytes = 0;
    }
}

} // namespace xpu
