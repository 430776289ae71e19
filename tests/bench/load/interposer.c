// SPDX-License-Identifier: GPL-3.0-or-later
//
// An interposer in the style of most others: preloaded, exports dlsym, and hands out its own
// cuLaunchKernel. It counts launches and limits nothing. It proves that foreign interposers run in
// our benchmarks (BASELINE=) and on the simulated card; the count goes to the file $BENCH_INTERPOSED.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             void*, void**, void**);

static launch_kernel real_launch;
static atomic_ulong launches;

static int counted_launch(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x,
                          unsigned y, unsigned z, unsigned shared, void* stream, void** parameters,
                          void** extra) {
    atomic_fetch_add_explicit(&launches, 1, memory_order_relaxed);
    return real_launch(function, grid_x, grid_y, grid_z, x, y, z, shared, stream, parameters, extra);
}

__attribute__((visibility("default"))) void* dlsym(void* handle, const char* name) {
    static void* (*real_dlsym)(void*, const char*);
    if (real_dlsym == NULL) {
        // dlsym is what we are, so the real one is only to be had under its version.
        real_dlsym = (void* (*)(void*, const char*))dlvsym(RTLD_NEXT, "dlsym", DLSYM_VERSION);
        if (real_dlsym == NULL) abort();
    }
    void* found = real_dlsym(handle, name);
    if (found == NULL || strcmp(name, "cuLaunchKernel") != 0) return found;
    real_launch = (launch_kernel)found;
    return (void*)counted_launch;
}

__attribute__((destructor)) static void report(void) {
    const char* path = getenv("BENCH_INTERPOSED");
    FILE* file = path != NULL ? fopen(path, "w") : NULL;
    if (file == NULL) return;
    fprintf(file, "%lu\n", atomic_load(&launches));
    fclose(file);
}
