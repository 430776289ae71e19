// SPDX-License-Identifier: Apache-2.0
#ifndef XPU_CUDA_CALL_H
#define XPU_CUDA_CALL_H

#include "guard.h"

namespace xpu {

// We export every name in symbols.def, an old driver need not: then the answer is the one an
// application gets for a symbol that cannot be found, never a jump to zero.
template <typename Function, typename... Arguments>
CUresult call(Function function, Arguments... arguments) noexcept {
    return function == nullptr ? static_cast<CUresult>(CUDA_ERROR_NOT_FOUND)
                               : function(arguments...);
}

} // namespace xpu
#endif
