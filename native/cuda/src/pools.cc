// SPDX-License-Identifier: Apache-2.0
#include "pools.h"

#include <algorithm>
#include <new>

#include "call.h"
#include "charges.h"
#include "table.h"

namespace xpu {

// Known pools are never freed, only reused: there are few, and readers need no lock.
struct Pool {
    SpinLock lock;
    std::atomic<std::uint64_t> handle{0}; // 0: free; of graphs: 1 + the device
    bool of_graphs = false;
    CUdevice device = -1;
    int card = kNoCard;
    bool ending = false;
    std::atomic<std::uint64_t> charged{0};
    // Of calls under way; a thread that ends inside the driver leaves its share here for good.
    std::uint64_t prepaid = 0; // part of charged
    std::uint64_t asked = 0;   // bytes that they allocate
    std::uint32_t calls = 0;
    std::uint64_t step = 0; // by which it was seen to grow at least
    Pool* next = nullptr;
};

std::atomic<bool> pools_may_have_shrunk{false};
std::atomic<std::uint32_t> graphs_with_memory{0};

namespace {

// What a driver reserves at a time; should one take more, that is learnt.
constexpr std::uint64_t kUsualStep = 32u << 20;

std::atomic<Pool*> pools{nullptr};
SpinLock making;

std::uint64_t key_of(CUmemoryPool handle) noexcept {
    return reinterpret_cast<std::uintptr_t>(handle);
}
std::uint64_t key_of_graphs(CUdevice device) noexcept {
    return static_cast<std::uint64_t>(device) + 1; // no pointer is that small
}
CUmemoryPool handle_of(const Pool& pool) noexcept {
    return reinterpret_cast<CUmemoryPool>(pool.handle.load(std::memory_order_relaxed));
}

Pool* find(std::uint64_t key) noexcept {
    for (Pool* at = pools.load(std::memory_order_acquire); at != nullptr; at = at->next)
        if (at->handle.load(std::memory_order_acquire) == key) return at;
    return nullptr;
}

Pool* free_place() noexcept {
    if (Pool* unused = find(0)) return unused;
    void* place = std::malloc(sizeof(Pool));
    if (place == nullptr) return nullptr;
    Pool* fresh = new (place) Pool;
    fresh->next = pools.load(std::memory_order_relaxed);
    pools.store(fresh, std::memory_order_release);
    return fresh;
}

Pool* known(std::uint64_t key, bool of_graphs, CUdevice device, int card) noexcept {
    if (key == 0) return nullptr;
    if (Pool* found = find(key)) return found;
    Hold hold(making);
    if (Pool* found = find(key)) return found;
    Pool* fresh = free_place();
    if (fresh == nullptr) return nullptr;
    fresh->of_graphs = of_graphs;
    fresh->device = device;
    fresh->card = card;
    fresh->ending = false;
    fresh->charged.store(0, std::memory_order_relaxed);
    fresh->prepaid = fresh->asked = fresh->calls = 0;
    fresh->step = kUsualStep;
    fresh->handle.store(key, std::memory_order_release);
    return fresh;
}

bool ask(const Pool& pool, int pool_attribute, int graph_attribute, std::uint64_t& bytes) noexcept {
    const CUresult result =
        pool.of_graphs ? call(real.cuDeviceGetGraphMemAttribute, pool.device, graph_attribute, &bytes)
                       : call(real.cuMemPoolGetAttribute, handle_of(pool), pool_attribute, &bytes);
    return result == CUDA_SUCCESS;
}

bool reserved(const Pool& pool, std::uint64_t& bytes) noexcept {
    return ask(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT,
               bytes);
}

bool has_unused(const Pool& pool, std::uint64_t wanted) noexcept {
    std::uint64_t all = 0, used = 0;
    return reserved(pool, all) &&
           ask(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT, used) &&
           all > used && all - used >= wanted;
}

void trim(const Pool& pool) noexcept {
    if (pool.of_graphs) (void)call(real.cuDeviceGraphMemTrim, pool.device);
    else (void)call(real.cuMemPoolTrimTo, handle_of(pool), std::size_t{0});
}

// Under its lock: the charge becomes what is reserved and what calls under way may still add. False
// when more is reserved than may be.
bool settle_locked(Pool& pool) noexcept {
    std::uint64_t now = 0;
    if (pool.card == kNoCard || !reserved(pool, now)) return true;
    const std::uint64_t charged = pool.charged.load(std::memory_order_relaxed);
    if (now > charged) {
        if (!charge_if_free(pool.card, now - charged)) return false;
        pool.charged.store(now, std::memory_order_relaxed);
    } else if (now + pool.prepaid < charged) {
        refund(pool.card, charged - now - pool.prepaid);
        pool.charged.store(now + pool.prepaid, std::memory_order_relaxed);
    }
    return true;
}

// A pool that its owner destroyed goes when nothing of it is left.
void end_if_empty(Pool& pool) noexcept {
    trim(pool);
    if (!settle_locked(pool) || pool.charged.load(std::memory_order_relaxed) != 0) return;
    if (call(real.cuMemPoolDestroy, handle_of(pool)) != CUDA_SUCCESS) return;
    pool.handle.store(0, std::memory_order_release);
}

bool capturing(CUstream stream) noexcept {
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    return real.cuStreamIsCapturing != nullptr &&
           real.cuStreamIsCapturing(stream, &status) == CUDA_SUCCESS &&
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

// The device of a stream, whose context need not be current.
CUdevice device_of(CUstream stream) noexcept {
    CUdevice device = -1;
    if (stream == nullptr || stream == XPU_STREAM_LEGACY || stream == XPU_STREAM_PER_THREAD)
        return current_device();
    if (call(real.cuStreamGetDevice, stream, &device) == CUDA_SUCCESS) return device;
    CUcontext its = nullptr, before = nullptr;
    if (call(real.cuStreamGetCtx, stream, &its) != CUDA_SUCCESS ||
        call(real.cuCtxPushCurrent_v2, its) != CUDA_SUCCESS)
        return current_device();
    device = current_device();
    (void)call(real.cuCtxPopCurrent_v2, &before);
    return device;
}

// Calls visit(pool) with each known pool locked, but for those in use.
template <typename Visit>
void each_idle_pool(Visit visit) noexcept {
    for (Pool* at = pools.load(std::memory_order_acquire); at != nullptr; at = at->next) {
        if (at->handle.load(std::memory_order_relaxed) == 0 || !at->lock.try_lock()) continue;
        if (at->handle.load(std::memory_order_acquire) != 0) visit(*at);
        at->lock.unlock();
    }
}

struct Exec {
    std::uint64_t key = 0;
    GraphMemory memory;
};
Table<Exec> execs;

std::uint64_t key_of(CUgraphExec exec) noexcept { return reinterpret_cast<std::uintptr_t>(exec); }

// The nodes of a graph, to be freed; null when there are none.
CUgraphNode* nodes_of(CUgraph graph, std::size_t& count) noexcept {
    count = 0;
    if (call(real.cuGraphGetNodes, graph, static_cast<CUgraphNode*>(nullptr), &count) !=
            CUDA_SUCCESS ||
        count == 0)
        return nullptr;
    auto* nodes = static_cast<CUgraphNode*>(std::calloc(count, sizeof(CUgraphNode)));
    if (nodes != nullptr && call(real.cuGraphGetNodes, graph, nodes, &count) != CUDA_SUCCESS)
        count = 0;
    return nodes;
}

void add_memory_of(CUgraph graph, GraphMemory& sum, unsigned depth) noexcept;

void add_memory_of(CUgraphNode node, GraphMemory& sum, unsigned depth) noexcept {
    int kind = -1;
    if (call(real.cuGraphNodeGetType, node, &kind) != CUDA_SUCCESS) return;
    CUgraph child = nullptr;
    CUDA_MEM_ALLOC_NODE_PARAMS taken = {};
    if (kind == CU_GRAPH_NODE_TYPE_GRAPH) {
        if (call(real.cuGraphChildGraphNodeGetGraph, node, &child) == CUDA_SUCCESS)
            add_memory_of(child, sum, depth + 1);
    } else if (kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        if (call(real.cuGraphMemAllocNodeGetParams, node, &taken) != CUDA_SUCCESS) return;
        if (taken.poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE) return;
        sum.device = taken.poolProps.location.id;
        if (__builtin_add_overflow(sum.bytes, rounded_up(taken.bytesize, kGranule), &sum.bytes))
            sum.bytes = ~std::uint64_t{0} >> 1;
    }
}

constexpr unsigned kDeepest = 64; // graphs in graphs

void add_memory_of(CUgraph graph, GraphMemory& sum, unsigned depth) noexcept {
    std::size_t count = 0;
    CUgraphNode* nodes = depth < kDeepest ? nodes_of(graph, count) : nullptr;
    for (std::size_t at = 0; nodes != nullptr && at < count; ++at)
        add_memory_of(nodes[at], sum, depth);
    std::free(nodes);
}

} // namespace

Pool* pool_on_device(CUmemoryPool handle, CUdevice device) noexcept {
    return known(key_of(handle), false, device, charged_card(device));
}

Pool* pool_off_cards(CUmemoryPool handle) noexcept {
    return known(key_of(handle), false, -1, kNoCard);
}

Pool* pool_of(CUmemoryPool handle) noexcept {
    Pool* found = find(key_of(handle));
    return found != nullptr ? found : pool_on_device(handle, current_device());
}

Pool* pool_of_stream(CUstream stream) noexcept {
    const CUdevice device = device_of(stream);
    CUmemoryPool current = nullptr;
    return call(real.cuDeviceGetMemPool, &current, device) == CUDA_SUCCESS
               ? pool_on_device(current, device)
               : nullptr;
}

Pool* pool_of_graphs(CUdevice device) noexcept {
    return device < 0 ? nullptr : known(key_of_graphs(device), true, device, charged_card(device));
}

// Under the pool's lock.
bool Growth::prepay(std::uint64_t most, bool (*charge)(int, std::uint64_t) noexcept) noexcept {
    if (!charge(pool_->card, most)) return false;
    pool_->charged.fetch_add(most, std::memory_order_relaxed);
    pool_->prepaid += most;
    prepaid_ = most;
    return true;
}

// What others have prepaid, most of it for a growth that will not come, may be what is missing. Called
// with the pool's lock and returns with it.
bool Growth::await_others(std::uint64_t most) noexcept {
    constexpr unsigned kTries = 256;
    for (unsigned tries = 0; tries < kTries && pool_->calls != 0; ++tries) {
        pool_->lock.unlock();
        sched_yield();
        pool_->lock.lock();
        if (prepay(most, charge_if_free)) return true;
    }
    return false;
}

Growth::Growth(Pool* pool, std::uint64_t bytes, CUstream stream) noexcept
    : pool_(pool != nullptr && pool->card != kNoCard ? pool : nullptr), bytes_(bytes) {
    admitted_ = pool_ == nullptr;
    if (admitted_) return;
    Hold hold(pool_->lock);
    const std::uint64_t most = rounded_up(bytes, pool_->step);
    admitted_ = prepay(most, charge_if_free) || has_unused(*pool_, bytes + pool_->asked) ||
                capturing(stream) || await_others(most);
    if (!admitted_) {
        give_up_unused(pool_->card); // all but ours, which is locked
        trim(*pool_);
        (void)settle_locked(*pool_);
        admitted_ = prepay(most, charge);
    }
    if (!admitted_) return;
    under_way_ = true;
    pool_->asked += bytes_;
    ++pool_->calls;
}

Growth::~Growth() {
    if (under_way_) (void)settled();
}

bool Growth::settled() noexcept {
    if (!under_way_) return true;
    under_way_ = false;
    Hold hold(pool_->lock);
    const std::uint64_t charged = pool_->charged.load(std::memory_order_relaxed);
    std::uint64_t now = 0;
    if (reserved(*pool_, now) && now > charged) // never seen before: expect it from now on
        pool_->step += rounded_up(now - charged, kGranule);
    pool_->prepaid -= prepaid_;
    pool_->asked -= bytes_;
    --pool_->calls;
    return settle_locked(*pool_);
}

void Growth::gone_back() noexcept {
    Hold hold(pool_->lock);
    trim(*pool_);
    (void)settle_locked(*pool_);
}

void settle(Pool* pool) noexcept {
    if (pool == nullptr) return;
    Hold hold(pool->lock);
    (void)settle_locked(*pool);
}

CUresult destroy_pool(CUmemoryPool handle) noexcept {
    Pool* pool = find(key_of(handle));
    if (pool == nullptr) return call(real.cuMemPoolDestroy, handle);
    Hold hold(pool->lock);
    if (pool->ending) return CUDA_ERROR_INVALID_VALUE;
    CUmemoryPool current = nullptr, usual = nullptr;
    if (pool->device >= 0 &&
        call(real.cuDeviceGetMemPool, &current, pool->device) == CUDA_SUCCESS && current == handle &&
        call(real.cuDeviceGetDefaultMemPool, &usual, pool->device) == CUDA_SUCCESS) {
        if (usual == handle) return call(real.cuMemPoolDestroy, handle); // which refuses it
        (void)call(real.cuDeviceSetMemPool, pool->device, usual);
    }
    pool->ending = true;
    end_if_empty(*pool);
    return CUDA_SUCCESS;
}

bool pool_is_ending(CUmemoryPool handle) noexcept {
    const Pool* pool = find(key_of(handle));
    return pool != nullptr && pool->ending;
}

void settle_pools() noexcept {
    pools_may_have_shrunk.store(false, std::memory_order_relaxed);
    bool ending = false;
    each_idle_pool([&](Pool& pool) {
        if (pool.ending) end_if_empty(pool);
        else (void)settle_locked(pool);
        ending = ending || (pool.ending && pool.handle.load(std::memory_order_relaxed) != 0);
    });
    if (ending) pools_changed();
}

bool pools_hold_memory() noexcept {
    for (Pool* at = pools.load(std::memory_order_acquire); at != nullptr; at = at->next)
        if (at->charged.load(std::memory_order_relaxed) != 0) return true;
    return false;
}

void give_up_unused(int card) noexcept {
    each_idle_pool([=](Pool& pool) {
        if (pool.card != card) return;
        if (has_unused(pool, 1)) trim(pool);
        (void)settle_locked(pool);
    });
}

GraphMemory memory_of(CUgraph graph) noexcept {
    GraphMemory sum;
    add_memory_of(graph, sum, 0);
    return sum;
}

void graph_made(CUgraphExec exec, const GraphMemory& memory) noexcept {
    bool fresh = false;
    (void)execs.with_new(key_of(exec), [&](Exec& entry) {
        fresh = entry.memory.bytes == 0;
        entry.memory = memory;
        return true;
    });
    if (fresh) graphs_with_memory.fetch_add(1, std::memory_order_relaxed);
}

GraphMemory memory_of(CUgraphExec exec) noexcept {
    GraphMemory found;
    execs.with(key_of(exec), [&](Exec& entry) {
        found = entry.memory;
        return true;
    });
    return found;
}

void graph_destroyed(CUgraphExec exec) noexcept {
    if (execs.take(key_of(exec)).key != 0)
        graphs_with_memory.fetch_sub(1, std::memory_order_relaxed);
}

// The child has no pools: the driver does not survive a fork.
void forget_all_pools() noexcept {
    pools.store(nullptr);
    making.unlock();
    execs.forget_all();
    graphs_with_memory.store(0);
    pools_may_have_shrunk.store(false);
}

} // namespace xpu
