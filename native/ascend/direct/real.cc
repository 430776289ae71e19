// SPDX-License-Identifier: Apache-2.0
#include "real.h"

#include <dlfcn.h>

namespace ascend {

void* find_real(const char* name) noexcept {
    if (void* const next = dlsym(RTLD_NEXT, name)) return next;
    // Loaded by dlopen without RTLD_GLOBAL: RTLD_NEXT doesn't see it.
    void* const runtime = dlopen("libruntime.so", RTLD_LAZY | RTLD_NOLOAD);
    return runtime == nullptr ? nullptr : dlsym(runtime, name);
}

} // namespace ascend
