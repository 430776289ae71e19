// SPDX-License-Identifier: Apache-2.0
//
// The untouched driver behind us, and the way from its functions to our hooks.
#ifndef XPU_CUDA_REAL_H
#define XPU_CUDA_REAL_H

#include "xpu_cuda/driver.h"

namespace xpu {

struct RealDriver {
#define HOOK(name, area, ...) decltype(&::name) name = nullptr;
#define USE(name) decltype(&::name) name = nullptr;
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

extern RealDriver real;

// Look up the driver's functions. Idempotent; concurrent calls store the same values.
bool resolve_real_driver() noexcept;

// The hook that stands for this function of the driver, or the function itself.
void* hook_for(void* function) noexcept;

} // namespace xpu
#endif
