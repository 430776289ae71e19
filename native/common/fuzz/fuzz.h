// SPDX-License-Identifier: Apache-2.0
//
// A fuzz target is one file that defines the function below; what must hold of any input is HOLDS.
#ifndef XPU_FUZZ_H
#define XPU_FUZZ_H

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

#define HOLDS(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) __builtin_trap();                                                        \
    } while (0)

#endif
