// SPDX-License-Identifier: Apache-2.0
//
// Stream-ordered memory and the memory of graphs. What the card gives is what a pool has *reserved*,
// not what is allocated out of it, so that is what is charged: before a call by what the pool may
// grow, afterwards settled to what the driver says is reserved. Calls of several threads overlap: what
// those under way have prepaid stays charged until each is settled, so that the charge is never less
// than what is reserved, whichever of them made the pool grow.
//
// A pool shrinks when the application synchronises, trims or destroys it. After a free of any kind
// the next synchronisation settles all pools; a refusal trims them first.
#ifndef XPU_CUDA_POOLS_H
#define XPU_CUDA_POOLS_H

#include <atomic>
#include <cstdint>

#include "leaving.h"
#include "lock.h"
#include "xpu_cuda/driver.h"

namespace xpu {

struct Pool;

// The pool that this handle names; made known if it was not. Null when no memory is left for it.
Pool* pool_on_device(CUmemoryPool handle, CUdevice device) noexcept;
Pool* pool_off_cards(CUmemoryPool handle) noexcept; // of the host or imported: never charged
Pool* pool_of(CUmemoryPool handle) noexcept;        // one that nobody told us of is the current card's
Pool* pool_of_stream(CUstream stream) noexcept;     // from which cuMemAllocAsync takes
Pool* pool_of_graphs(CUdevice device) noexcept;

// One call that may grow a pool by `bytes`, in three steps.
class Growth {
  public:
    Growth(Pool* pool, std::uint64_t bytes, CUstream stream) noexcept;
    ~Growth();
    Growth(const Growth&) = delete;
    Growth& operator=(const Growth&) = delete;

    bool admitted() const noexcept { return admitted_; }
    // After the call. False: it grew by more than the quota has left, so what it gave must go back,
    // and gone_back() called.
    bool settled() noexcept;
    void gone_back() noexcept;

  private:
    bool prepay(std::uint64_t most, bool (*charge)(int, std::uint64_t) noexcept) noexcept;
    bool await_others(std::uint64_t most) noexcept;

    Pool* pool_; // null: nothing to charge
    std::uint64_t bytes_;
    std::uint64_t prepaid_ = 0;
    bool admitted_ = false;
    bool under_way_ = false;
};

// Around a call that only gives back: charges never fall before the driver's reserve has.
void settle(Pool* pool) noexcept;
// Destroys the pool, at once or, while allocations of it live, when the last of them is gone.
CUresult destroy_pool(CUmemoryPool handle) noexcept;
bool pool_is_ending(CUmemoryPool handle) noexcept;

// A free whose effect shows at the next synchronisation.
extern std::atomic<bool> pools_may_have_shrunk;
inline void pools_changed() noexcept {
    if (!pools_may_have_shrunk.load(std::memory_order_relaxed))
        pools_may_have_shrunk.store(true, std::memory_order_relaxed);
}
void settle_pools() noexcept;
inline void after_synchronisation() noexcept {
    if (any_leaving()) settle_leaving();
    if (pools_may_have_shrunk.load(std::memory_order_relaxed)) settle_pools();
}

bool pools_hold_memory() noexcept;
void give_up_unused(int card) noexcept; // trims what this card's pools keep unused

// Graphs with memory nodes. Launching any other costs the one load in graphs_take_memory().
extern std::atomic<std::uint32_t> graphs_with_memory;
inline bool graphs_take_memory() noexcept {
    return graphs_with_memory.load(std::memory_order_relaxed) != 0;
}
struct GraphMemory {
    CUdevice device = -1;
    std::uint64_t bytes = 0;
};
GraphMemory memory_of(CUgraph graph) noexcept;
void graph_made(CUgraphExec exec, const GraphMemory& memory) noexcept;
GraphMemory memory_of(CUgraphExec exec) noexcept;
void graph_destroyed(CUgraphExec exec) noexcept;

void forget_all_pools() noexcept;

} // namespace xpu
#endif
