// SPDX-License-Identifier: Apache-2.0
//
// CANN's own functions, found behind us. We are loaded before the runtime (LD_PRELOAD), or it comes later by
// dlopen; either way nothing of it is replaced.
#ifndef XPU_ASCEND_REAL_H
#define XPU_ASCEND_REAL_H

#include <atomic>
#include <cstdint>

namespace ascend {

using rtError = std::int32_t;
constexpr rtError kNone = 0;
constexpr rtError kNoSuchFunction = 207000; // ACL_ERROR_RT_FEATURE_NOT_SUPPORT
constexpr rtError kOutOfMemory = 207001;    // ACL_ERROR_RT_MEMORY_ALLOCATION: what frameworks take for it

// Null where the runtime has none.
void* find_real(const char* name) noexcept;

} // namespace ascend

// The runtime's function of that name and type, looked up once it exists.
#define XPU_REAL(name, type)                                                                       \
    ([]() noexcept -> type {                                                                       \
        static std::atomic<void*> kept{nullptr};                                                   \
        void* found = kept.load(std::memory_order_acquire);                                        \
        if (found == nullptr) {                                                                    \
            found = ::ascend::find_real(name);                                                     \
            kept.store(found, std::memory_order_release);                                          \
        }                                                                                          \
        return reinterpret_cast<type>(found);                                                      \
    }())

#endif
