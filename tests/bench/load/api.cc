// SPDX-License-Identifier: GPL-3.0-or-later
#include "api.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>

namespace bench {

Api api;

namespace {
CUcontext context = nullptr;
constexpr unsigned kThreadsPerBlock = 32;
} // namespace

Nanos monotonic_now() {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<Nanos>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

void fail(const char* what, const char* detail) {
    std::fprintf(stderr, "bench-load: %s: %s\n", what, detail);
    std::exit(1);
}

void must(CUresult code, const char* what) {
    if (code != CUDA_SUCCESS) fail(what, ("CUDA error " + std::to_string(code)).c_str());
}

void open_driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) fail("libcuda.so.1 can't be opened", dlerror());
#define BENCH_LOOK_UP(name) api.name = reinterpret_cast<decltype(api.name)>(dlsym(library, #name));
    BENCH_REQUIRED(BENCH_LOOK_UP)
    BENCH_OPTIONAL(BENCH_LOOK_UP)
#undef BENCH_LOOK_UP
#define BENCH_DEMAND(name)                                                                         \
    if (api.name == nullptr) fail("the driver lacks", #name);
    BENCH_REQUIRED(BENCH_DEMAND)
#undef BENCH_DEMAND
}

void enter_device(int ordinal) {
    must(api.cuInit(0), "cuInit");
    CUdevice device = 0;
    must(api.cuDeviceGet(&device, ordinal), "cuDeviceGet");
    must(api.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    use_device_in_this_thread();
}

void use_device_in_this_thread() { must(api.cuCtxSetCurrent(context), "cuCtxSetCurrent"); }

CUfunction load_kernel(const char* path) {
    std::ifstream file(path);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    if (text.empty()) fail(path, "no PTX text there");
    CUmodule module = nullptr;
    CUfunction kernel = nullptr;
    must(api.cuModuleLoadData(&module, text.c_str()), "cuModuleLoadData");
    must(api.cuModuleGetFunction(&kernel, module, "spin_ns"), "cuModuleGetFunction(spin_ns)");
    return kernel;
}

void launch(CUfunction kernel, Nanos length, CUstream stream, unsigned grid) {
    auto nanoseconds = static_cast<std::uint64_t>(length);
    void* parameters[] = {&nanoseconds};
    must(api.cuLaunchKernel(kernel, grid, 1, 1, kThreadsPerBlock, 1, 1, 0, stream, parameters,
                            nullptr),
         "cuLaunchKernel");
}

} // namespace bench
