// SPDX-License-Identifier: GPL-3.0-or-later
//
// The driver as a program meets it: opened by its SONAME, looked up by dlsym, so that whatever stands
// in its place or is preloaded before it (an interposer that exports dlsym) is what gets measured.
#ifndef BENCH_LOAD_API_H
#define BENCH_LOAD_API_H

#include <cuda.h>

#include <cstdint>

// Must exist in every driver.
#define BENCH_REQUIRED(X)                                                                          \
    X(cuInit)                                                                                      \
    X(cuDeviceGet)                                                                                 \
    X(cuDevicePrimaryCtxRetain)                                                                    \
    X(cuCtxSetCurrent)                                                                             \
    X(cuCtxSynchronize)                                                                            \
    X(cuModuleLoadData)                                                                            \
    X(cuModuleGetFunction)                                                                         \
    X(cuLaunchKernel)                                                                              \
    X(cuStreamCreate)                                                                              \
    X(cuStreamSynchronize)                                                                         \
    X(cuEventCreate)                                                                               \
    X(cuEventRecord)                                                                               \
    X(cuEventSynchronize)                                                                          \
    X(cuEventQuery)                                                                                \
    X(cuMemAlloc_v2)                                                                               \
    X(cuMemFree_v2)

// A driver may lack these; what needs one says so and is left out of the report.
#define BENCH_OPTIONAL(X)                                                                          \
    X(cuMemAllocPitch_v2)                                                                          \
    X(cuMemAllocManaged)                                                                           \
    X(cuMemAllocAsync)                                                                             \
    X(cuMemAllocFromPoolAsync)                                                                     \
    X(cuDeviceGetDefaultMemPool)                                                                   \
    X(cuMemPoolCreate)                                                                             \
    X(cuMemCreate)                                                                                 \
    X(cuArrayCreate_v2)                                                                            \
    X(cuArray3DCreate_v2)                                                                          \
    X(cuMipmappedArrayCreate)                                                                      \
    X(cuCtxCreate_v2)                                                                              \
    X(cuStreamBeginCapture_v2)                                                                     \
    X(cuStreamEndCapture)                                                                          \
    X(cuGraphCreate)                                                                               \
    X(cuGraphAddMemAllocNode)                                                                      \
    X(cuGraphInstantiateWithFlags)                                                                 \
    X(cuGraphLaunch)

namespace bench {

struct Api {
#define BENCH_FIELD(name) decltype(&::name) name = nullptr;
    BENCH_REQUIRED(BENCH_FIELD)
    BENCH_OPTIONAL(BENCH_FIELD)
#undef BENCH_FIELD
};

extern Api api;

using Nanos = std::int64_t;
Nanos monotonic_now();

[[noreturn]] void fail(const char* what, const char* detail);
void must(CUresult code, const char* what);

// Open the driver and look everything up. No CUDA call is made.
void open_driver();

// Driver initialised, the primary context of device `ordinal` current in this thread.
void enter_device(int ordinal);
void use_device_in_this_thread();

// The kernel spin_ns of the PTX text in `path`.
CUfunction load_kernel(const char* path);

// One kernel of `length` on `stream`.
void launch(CUfunction kernel, Nanos length, CUstream stream, unsigned grid);

} // namespace bench
#endif
