// SPDX-License-Identifier: Apache-2.0
//
// What a piece of work is expected to cost: per (function, power of two of its grid) and per graph,
// a moving average of measured GPU time. Lock-free and fixed in size; losing a race or an entry
// only costs accuracy until the next measurement.
#ifndef XPU_CUDA_COSTS_H
#define XPU_CUDA_COSTS_H

#include <atomic>
#include <cstdint>

#include "xpu/limiter.h"

namespace xpu {

// Charged for work that was never measured; the first measurement replaces it.
constexpr Nanos kFirstGuess = 100'000;

class Cost {
  public:
    bool known() const noexcept { return value_.load(std::memory_order_relaxed) != 0; }
    Nanos predicted() const noexcept {
        const Nanos value = value_.load(std::memory_order_relaxed);
        return value != 0 ? value : kFirstGuess;
    }
    void learn(Nanos measured, bool uncertain) noexcept {
        const Nanos old = value_.load(std::memory_order_relaxed);
        const Nanos next = old == 0 ? measured : old + (measured - old) / (uncertain ? 16 : 4);
        value_.store(next > 0 ? next : 1, std::memory_order_relaxed);
    }

  private:
    friend class CostTable;
    std::atomic<std::uint64_t> key_{0};
    std::atomic<Nanos> value_{0};
};

class CostTable {
  public:
    // Never fails: when the neighbourhood of a key is full, strangers share its last entry.
    Cost& of(const void* work, std::uint64_t blocks) noexcept {
        const std::uint64_t key = key_of(work, blocks);
        const std::uint64_t home = (key * 0x9E3779B97F4A7C15ull) >> 32;
        for (unsigned step = 0; step < kProbes; ++step) {
            Cost& cost = table_[(home + step) % kEntries];
            std::uint64_t seen = cost.key_.load(std::memory_order_relaxed);
            if (seen == 0) cost.key_.compare_exchange_strong(seen, key);
            if (seen == key || seen == 0) return cost;
        }
        return table_[(home + kProbes - 1) % kEntries];
    }

  private:
    static constexpr unsigned kEntries = 4096, kProbes = 16;

    // User-space addresses have 56 bits at most, so address and bucket make an exact key.
    static std::uint64_t key_of(const void* work, std::uint64_t blocks) noexcept {
        const auto bucket = static_cast<std::uint64_t>(64 - __builtin_clzll(blocks | 1));
        return (reinterpret_cast<std::uint64_t>(work) << 8) | bucket;
    }

    Cost table_[kEntries];
};

} // namespace xpu
#endif
