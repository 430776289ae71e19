// SPDX-License-Identifier: Apache-2.0
//
// A tenant where there is no Python: allocates, launches, asks NVML, and
// prints `name value` lines. Both drivers are opened by name, as applications do.
#include <dlfcn.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#include "xpu_cuda/driver.h"
#include "xpu_cuda/nvml.h"

namespace {

void* library;

void* find(const char* name) {
    void* found = dlsym(library, name);
    if (found == nullptr) std::fprintf(stderr, "%s is not there\n", name);
    if (found == nullptr) std::exit(2);
    return found;
}
#define CALL(name) (reinterpret_cast<decltype(&name)>(find(#name)))

void open_library(const char* name) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) std::fprintf(stderr, "%s\n", dlerror());
    if (library == nullptr) std::exit(2);
}

void show(const char* name, unsigned long long value) { std::printf("%s %llu\n", name, value); }

using CreateContext = CUresult (*)(CUcontext*, unsigned, CUdevice);

void use_cuda() {
    CUcontext context;
    CUdeviceptr pointer;
    size_t free_bytes, total;
    std::uint64_t length = 5000000;
    void* parameters[] = {&length};
    void* looked_up = nullptr;
    int status = -1;
    open_library("libcuda.so.1");
    show("init", CALL(cuInit)(0));
    show("context", reinterpret_cast<CreateContext>(find("cuCtxCreate_v2"))(&context, 0, 0));
    show("over", CALL(cuMemAlloc_v2)(&pointer, (size_t)4 << 30));
    show("held", CALL(cuMemAlloc_v2)(&pointer, (size_t)1 << 30));
    CALL(cuMemGetInfo_v2)(&free_bytes, &total);
    show("free", free_bytes);
    show("total", total);
    CALL(cuGetProcAddress_v2)("cuMemAlloc", &looked_up, 12080, 0, &status);
    show("looked up is ours", looked_up == find("cuMemAlloc_v2"));
    for (int count = 0; count < 30; ++count) {
        CALL(cuLaunchKernel)(reinterpret_cast<CUfunction>(0x1000), 1, 1, 1, 1, 1, 1, 0, nullptr, parameters, nullptr);
        CALL(cuStreamSynchronize)(nullptr);
    }
    show("future", reinterpret_cast<int (*)(int)>(find("cuSomethingOfTheFuture"))(41));
}

void use_nvml() {
    nvmlDevice_t device;
    nvmlMemory_t memory;
    nvmlProcessInfo_t process[4];
    nvmlUtilization_t rates;
    unsigned count = 4;
    open_library("libnvidia-ml.so.1");
    show("nvml", CALL(nvmlInit_v2)());
    show("device", CALL(nvmlDeviceGetHandleByIndex_v2)(0, &device));
    CALL(nvmlDeviceGetMemoryInfo)(device, &memory);
    show("nvml total", memory.total);
    show("nvml used", memory.used);
    CALL(nvmlDeviceGetComputeRunningProcesses_v3)(device, &count, process);
    show("processes", count);
    show("itself", process[0].pid == (unsigned)getpid());
    CALL(nvmlDeviceGetUtilizationRates)(device, &rates);
    show("utilisation", rates.gpu);
}

} // namespace

int main() {
    use_cuda();
    use_nvml();
    return 0;
}
