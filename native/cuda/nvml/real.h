// SPDX-License-Identifier: Apache-2.0
//
// The driver's own NVML behind us.
#ifndef XPU_NVML_REAL_H
#define XPU_NVML_REAL_H

#include "xpu_cuda/nvml.h"

namespace xpu::nvml {

struct RealNvml {
#define HOOK(name) decltype(&::name) name = nullptr;
#define USE(name) decltype(&::name) name = nullptr;
#define PASS(name, why)
#define FAMILY(prefix, why)
#include "symbols.def"
#undef HOOK
#undef USE
#undef PASS
#undef FAMILY
};

// Looked up at the first call.
const RealNvml& real() noexcept;

// We export every name in symbols.def, an old driver need not: then the answer is NVML's own for
// that, never a jump to zero.
template <typename Function, typename... Arguments>
nvmlReturn_t call(Function function, Arguments... arguments) noexcept {
    return function == nullptr ? static_cast<nvmlReturn_t>(NVML_ERROR_FUNCTION_NOT_FOUND)
                               : function(arguments...);
}

} // namespace xpu::nvml
#endif
