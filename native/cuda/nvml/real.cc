// SPDX-License-Identifier: Apache-2.0
#include "real.h"

#include <atomic>
#include <dlfcn.h>

#include "xpu/log.h"

namespace xpu::nvml {
namespace {

constexpr const char* kRealNvml = "libnvidia-ml-original.so";

RealNvml found;
std::atomic<bool> resolved{false};

struct Route {
    const char* name;
    void** real;
};

const Route routes[] = {
#define HOOK(name) {#name, reinterpret_cast<void**>(&found.name)},
#define USE(name) {#name, reinterpret_cast<void**>(&found.name)},
#define PASS(name, why)
#define FAMILY(prefix, why)
#include "symbols.def"
#undef HOOK
#undef USE
#undef PASS
#undef FAMILY
};

} // namespace

// As in src/real.cc: asked for by the name under which our own NEEDED entry loaded it. Concurrent
// first calls store the same values.
const RealNvml& real() noexcept {
    if (resolved.load(std::memory_order_acquire)) return found;
    void* handle = dlopen(kRealNvml, RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr) handle = RTLD_NEXT;
    for (const Route& route : routes) {
        void* function = dlsym(handle, route.name);
        __atomic_store_n(route.real, function, __ATOMIC_RELAXED);
    }
    if (found.nvmlInit_v2 == nullptr) XPU_LOG_ONCE("%s has no nvmlInit_v2: not NVML", kRealNvml);
    resolved.store(true, std::memory_order_release);
    return found;
}

} // namespace xpu::nvml
