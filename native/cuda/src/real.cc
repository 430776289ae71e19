// SPDX-License-Identifier: Apache-2.0
#include "real.h"

#include <dlfcn.h>

#include "xpu/log.h"

namespace xpu {
namespace {

constexpr const char* kRealDriver = "libcuda-original.so";

struct Route {
    const char* name;
    void* hook;
    void** real; // filled by resolve_real_driver()
};

const Route routes[] = {
#define HOOK(name, area, ...)                                                                      \
    {#name, reinterpret_cast<void*>(&::name), reinterpret_cast<void**>(&real.name)},
#define USE(name) {#name, nullptr, reinterpret_cast<void**>(&real.name)},
#define LATER(name, why)
#define PASS(name, why)
#define FAMILY(prefix, why)
#include "symbols.def"
#undef HOOK
#undef USE
#undef LATER
#undef PASS
#undef FAMILY
};

// RTLD_NEXT would miss it where the application opened us locally, so it is asked for by the name
// under which our own NEEDED entry loaded it.
void* real_handle() noexcept {
    void* handle = dlopen(kRealDriver, RTLD_NOW | RTLD_NOLOAD);
    return handle != nullptr ? handle : RTLD_NEXT;
}

} // namespace

RealDriver real;

bool resolve_real_driver() noexcept {
    void* handle = real_handle();
    for (const Route& route : routes) *route.real = dlsym(handle, route.name);
    if (real.cuInit == nullptr) XPU_LOG_ONCE("%s has no cuInit: not a CUDA driver", kRealDriver);
    return real.cuInit != nullptr;
}

void* hook_for(void* function) noexcept {
    if (function == nullptr) return nullptr;
    for (const Route& route : routes) {
        if (*route.real == function && route.hook != nullptr) return route.hook;
    }
    return function;
}

} // namespace xpu
