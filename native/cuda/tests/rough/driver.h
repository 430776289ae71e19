// SPDX-License-Identifier: Apache-2.0
//
// The driver as a native program meets it: opened by its SONAME, looked up by dlsym. Python costs
// 40 ms a start, which is too much where hundreds of processes are started and killed.
#ifndef XPU_TESTS_ROUGH_DRIVER_H
#define XPU_TESTS_ROUGH_DRIVER_H

#include <dlfcn.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <type_traits>

#include "xpu_cuda/driver.h"

namespace rough {

using Module = struct CUmod_st*;

#define ROUGH_FUNCTIONS(X)                                                                         \
    X(cuInit, CUresult (*)(unsigned))                                                              \
    X(cuCtxCreate_v2, CUresult (*)(CUcontext*, unsigned, CUdevice))                                \
    X(cuCtxDestroy_v2, CUresult (*)(CUcontext))                                                    \
    X(cuCtxSetCurrent, CUresult (*)(CUcontext))                                                    \
    X(cuCtxSynchronize, CUresult (*)())                                                            \
    X(cuMemAlloc_v2, CUresult (*)(CUdeviceptr*, size_t))                                           \
    X(cuMemFree_v2, CUresult (*)(CUdeviceptr))                                                     \
    X(cuMemGetInfo_v2, CUresult (*)(size_t*, size_t*))                                             \
    X(cuModuleLoadData, CUresult (*)(Module*, const void*))                                        \
    X(cuModuleGetFunction, CUresult (*)(CUfunction*, Module, const char*))                         \
    X(cuLaunchKernel, CUresult (*)(XPU_LAUNCH_PARAMETERS, void**))                                 \
    X(cuStreamSynchronize, CUresult (*)(CUstream))

struct Driver {
#define ROUGH_FIELD(name, type) std::common_type_t<type> name = nullptr;
    ROUGH_FUNCTIONS(ROUGH_FIELD)
#undef ROUGH_FIELD
    CUcontext context = nullptr;
    CUfunction spin = nullptr;
};

[[noreturn]] inline void fail(const char* what, int code) {
    std::fprintf(stderr, "rough: %s: %d\n", what, code);
    std::exit(70);
}

// A hang ends the test, not the machine: the program dies of SIGALRM, its children with it.
inline void end_hangs(unsigned seconds) { alarm(seconds); }
inline void die_with(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1); // it was faster
}

inline void must(CUresult code, const char* what) {
    if (code != CUDA_SUCCESS) fail(what, code);
}

// What the driver lacks stays null: the one-page driver loads no modules.
inline Driver load_driver() {
    Driver driver;
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
        std::fprintf(stderr, "rough: %s\n", dlerror());
        std::exit(70);
    }
#define ROUGH_LOOK_UP(name, type) driver.name = reinterpret_cast<type>(dlsym(library, #name));
    ROUGH_FUNCTIONS(ROUGH_LOOK_UP)
#undef ROUGH_LOOK_UP
    return driver;
}

// The kernel spin_ns of $ROUGH_PTX; on the one-page driver any function does.
inline CUfunction load_spin(const Driver& driver) {
    if (driver.cuModuleLoadData == nullptr) return reinterpret_cast<CUfunction>(0x1000);
    std::ifstream file(std::getenv("ROUGH_PTX"));
    const std::string text(std::istreambuf_iterator<char>(file), {});
    Module module = nullptr;
    CUfunction function = nullptr;
    must(driver.cuModuleLoadData(&module, text.c_str()), "cuModuleLoadData");
    must(driver.cuModuleGetFunction(&function, module, "spin_ns"), "cuModuleGetFunction");
    return function;
}

inline Driver open_driver() {
    Driver driver = load_driver();
    must(driver.cuInit(0), "cuInit");
    must(driver.cuCtxCreate_v2(&driver.context, 0, 0), "cuCtxCreate");
    driver.spin = load_spin(driver);
    return driver;
}

inline CUresult launch(const Driver& driver, std::uint64_t nanoseconds,
                       CUstream stream = nullptr) {
    void* parameters[] = {&nanoseconds};
    return driver.cuLaunchKernel(driver.spin, 1, 1, 1, 1, 1, 1, 0, stream, parameters, nullptr);
}

} // namespace rough
#endif
