// SPDX-License-Identifier: GPL-3.0-or-later
//
// bench-load: the program whose calls the CUDA benchmarks time and whose kernels they count.
//
//   bench-load launch DEVICE PTX KERNEL_NS THREADS   "N" → N batches of 64 launches: ns per launch of each
//   bench-load shape DEVICE PTX NAME SEED            "count" → what is done; "items" → begin and end of each
//   bench-load allocate DEVICE BYTES                 "N" → N batches of 64: ns per allocation, per free
//   bench-load refuse DEVICE HELD BYTES PATH         "N" → holding HELD bytes, ns of N allocations of BYTES
//                                                    by PATH that must all be refused
//   bench-load fill DEVICE PATH BYTES                "" → allocates until refused: bytes granted
//   bench-load functions DEVICE                      "" → which of the optional functions the driver has
//   bench-load init DEVICE                           "" → CPU and wall time from dlopen to a first allocation
//
// Each first says {"ready": true}, then answers each line of stdin with one line of JSON, and ends at
// the end of stdin: the benchmark decides whose turn it is, so that what it compares alternates.
#include <pthread.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "api.h"
#include "shapes.h"

namespace {

using bench::api;
using bench::fail;
using bench::monotonic_now;
using bench::must;
using bench::Nanos;

constexpr int kBatch = 64;

void say(const std::string& json) {
    std::printf("%s\n", json.c_str());
    std::fflush(stdout);
}

std::string array(const std::vector<double>& values) {
    std::string text = "[";
    for (const double value : values) {
        char number[32];
        std::snprintf(number, sizeof number, "%s%.1f", text.size() > 1 ? "," : "", value);
        text += number;
    }
    return text + "]";
}

// -- launch ---------------------------------------------------------------------------------------

std::vector<double> time_batches(CUfunction kernel, Nanos length, int batches) {
    CUstream stream = nullptr;
    must(api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    std::vector<double> each;
    for (int batch = 0; batch < batches; ++batch) {
        const Nanos before = monotonic_now();
        for (int i = 0; i < kBatch; ++i) bench::launch(kernel, length, stream, 1);
        each.push_back(static_cast<double>(monotonic_now() - before) / kBatch);
        must(api.cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
    return each;
}

class LaunchTimer {
  public:
    LaunchTimer(const char* ptx, Nanos length, int threads)
        : kernel_(bench::load_kernel(ptx)), length_(length), threads_(threads) {}

    std::string run(int batches) const {
        std::vector<std::vector<double>> found(static_cast<std::size_t>(threads_));
        std::vector<std::thread> others;
        pthread_barrier_t start;
        pthread_barrier_init(&start, nullptr, static_cast<unsigned>(threads_));
        for (auto& mine : found) {
            others.emplace_back([&] {
                bench::use_device_in_this_thread();
                pthread_barrier_wait(&start);
                mine = time_batches(kernel_, length_, batches);
            });
        }
        for (std::thread& other : others) other.join();
        pthread_barrier_destroy(&start);
        std::vector<double> all;
        for (const auto& one : found) all.insert(all.end(), one.begin(), one.end());
        return array(all);
    }

  private:
    CUfunction kernel_;
    Nanos length_;
    int threads_;
};

// -- memory ---------------------------------------------------------------------------------------

std::string time_allocations(std::size_t bytes, int batches) {
    std::vector<double> allocations, frees;
    for (int batch = 0; batch < batches; ++batch) {
        CUdeviceptr pointers[kBatch] = {};
        const Nanos before = monotonic_now();
        for (CUdeviceptr& pointer : pointers) must(api.cuMemAlloc_v2(&pointer, bytes), "cuMemAlloc");
        const Nanos between = monotonic_now();
        for (const CUdeviceptr pointer : pointers) must(api.cuMemFree_v2(pointer), "cuMemFree");
        const Nanos after = monotonic_now();
        allocations.push_back(static_cast<double>(between - before) / kBatch);
        frees.push_back(static_cast<double>(after - between) / kBatch);
    }
    return "{\"allocate\":" + array(allocations) + ",\"free\":" + array(frees) + "}";
}

struct Granted {
    CUresult code;
    std::size_t bytes; // what the caller now owns at least
};

Granted plain(std::size_t bytes) {
    CUdeviceptr pointer = 0;
    return {api.cuMemAlloc_v2(&pointer, bytes), bytes};
}

Granted pitched(std::size_t bytes) {
    CUdeviceptr pointer = 0;
    std::size_t pitch = 0;
    const std::size_t rows = std::max<std::size_t>(1, bytes / 1000);
    const CUresult code = api.cuMemAllocPitch_v2(&pointer, &pitch, 1000, rows, 4);
    return {code, pitch * rows};
}

Granted managed(std::size_t bytes) {
    CUdeviceptr pointer = 0;
    return {api.cuMemAllocManaged(&pointer, bytes, CU_MEM_ATTACH_GLOBAL), bytes};
}

Granted stream_ordered(std::size_t bytes) {
    CUdeviceptr pointer = 0;
    return {api.cuMemAllocAsync(&pointer, bytes, nullptr), bytes};
}

Granted from_pool(std::size_t bytes) {
    CUmemoryPool pool = nullptr;
    must(api.cuDeviceGetDefaultMemPool(&pool, 0), "cuDeviceGetDefaultMemPool");
    CUdeviceptr pointer = 0;
    return {api.cuMemAllocFromPoolAsync(&pointer, bytes, pool, nullptr), bytes};
}

CUmemPoolProps on_the_card() {
    CUmemPoolProps properties = {};
    properties.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return properties;
}

Granted from_own_pool(std::size_t bytes) {
    static CUmemoryPool pool = nullptr;
    const CUmemPoolProps properties = on_the_card();
    if (pool == nullptr) must(api.cuMemPoolCreate(&pool, &properties), "cuMemPoolCreate");
    CUdeviceptr pointer = 0;
    return {api.cuMemAllocFromPoolAsync(&pointer, bytes, pool, nullptr), bytes};
}

// A graph with one memory node, which keeps what it gets.
Granted by_graph(std::size_t bytes) {
    CUgraph graph = nullptr;
    CUgraphNode node = nullptr;
    CUgraphExec executable = nullptr;
    CUDA_MEM_ALLOC_NODE_PARAMS wanted = {};
    wanted.poolProps = on_the_card();
    wanted.bytesize = bytes;
    must(api.cuGraphCreate(&graph, 0), "cuGraphCreate");
    must(api.cuGraphAddMemAllocNode(&node, graph, nullptr, 0, &wanted), "cuGraphAddMemAllocNode");
    const CUresult made = api.cuGraphInstantiateWithFlags(&executable, graph, 0);
    return {made != CUDA_SUCCESS ? made : api.cuGraphLaunch(executable, nullptr), bytes};
}

Granted another_context(std::size_t) {
    CUcontext context = nullptr;
    return {api.cuCtxCreate_v2(&context, 0, 0), 0}; // what it takes is the card's to say
}

Granted physical(std::size_t bytes) {
    constexpr std::size_t kGranule = 2 << 20;
    bytes = (bytes + kGranule - 1) / kGranule * kGranule;
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = 0;
    CUmemGenericAllocationHandle handle = 0;
    return {api.cuMemCreate(&handle, bytes, &properties, 0), bytes};
}

constexpr std::size_t kTexelBytes = 16;
constexpr std::size_t kArrayWidth = 1024;

Granted array_2d(std::size_t bytes) {
    const std::size_t height = std::max<std::size_t>(1, bytes / (kTexelBytes * kArrayWidth));
    CUDA_ARRAY_DESCRIPTOR shape = {kArrayWidth, height, CU_AD_FORMAT_FLOAT, 4};
    CUarray handle = nullptr;
    return {api.cuArrayCreate_v2(&handle, &shape), kTexelBytes * kArrayWidth * height};
}

CUDA_ARRAY3D_DESCRIPTOR volume(std::size_t bytes) {
    CUDA_ARRAY3D_DESCRIPTOR shape = {};
    shape.Width = kArrayWidth;
    shape.Height = std::max<std::size_t>(1, bytes / (kTexelBytes * kArrayWidth));
    shape.Format = CU_AD_FORMAT_FLOAT;
    shape.NumChannels = 4;
    return shape;
}

Granted array_3d(std::size_t bytes) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = volume(bytes);
    CUarray handle = nullptr;
    return {api.cuArray3DCreate_v2(&handle, &shape), kTexelBytes * shape.Width * shape.Height};
}

Granted mipmapped(std::size_t bytes) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = volume(bytes);
    CUmipmappedArray handle = nullptr;
    return {api.cuMipmappedArrayCreate(&handle, &shape, 1), kTexelBytes * shape.Width * shape.Height};
}

struct MemoryPath {
    const char* name;
    Granted (*allocate)(std::size_t);
    bool (*present)();
};
const MemoryPath kPaths[] = {
    {"cuMemAlloc", plain, [] { return true; }},
    {"cuMemAllocPitch", pitched, [] { return api.cuMemAllocPitch_v2 != nullptr; }},
    {"cuMemAllocManaged", managed, [] { return api.cuMemAllocManaged != nullptr; }},
    {"cuMemAllocAsync", stream_ordered, [] { return api.cuMemAllocAsync != nullptr; }},
    {"cuMemAllocFromPoolAsync", from_pool,
     [] { return api.cuMemAllocFromPoolAsync != nullptr && api.cuDeviceGetDefaultMemPool != nullptr; }},
    {"cuMemPoolCreate", from_own_pool,
     [] { return api.cuMemAllocFromPoolAsync != nullptr && api.cuMemPoolCreate != nullptr; }},
    {"cuGraphLaunch", by_graph,
     [] {
         return api.cuGraphCreate != nullptr && api.cuGraphAddMemAllocNode != nullptr &&
                api.cuGraphInstantiateWithFlags != nullptr && api.cuGraphLaunch != nullptr;
     }},
    {"cuCtxCreate", another_context, [] { return api.cuCtxCreate_v2 != nullptr; }},
    {"cuMemCreate", physical, [] { return api.cuMemCreate != nullptr; }},
    {"cuArrayCreate", array_2d, [] { return api.cuArrayCreate_v2 != nullptr; }},
    {"cuArray3DCreate", array_3d, [] { return api.cuArray3DCreate_v2 != nullptr; }},
    {"cuMipmappedArrayCreate", mipmapped, [] { return api.cuMipmappedArrayCreate != nullptr; }},
};

const MemoryPath& path_named(const char* name) {
    for (const MemoryPath& path : kPaths)
        if (std::strcmp(path.name, name) == 0) return path;
    fail(name, "no such way to allocate");
}

std::string time_refusals(const MemoryPath& path, std::size_t bytes, int count) {
    std::vector<double> each;
    for (int i = 0; i < count; ++i) {
        const Nanos before = monotonic_now();
        const CUresult code = path.allocate(bytes).code;
        each.push_back(static_cast<double>(monotonic_now() - before));
        if (code != CUDA_ERROR_OUT_OF_MEMORY)
            fail("an allocation that must be refused", ("got answer " + std::to_string(code)).c_str());
    }
    return array(each);
}

// Allocate pieces of `bytes`, then ever smaller ones, until nothing more is granted.
std::string fill(const MemoryPath& path, std::size_t bytes) {
    if (!path.present()) return "{\"missing\":true}";
    std::size_t sum = 0;
    int pieces = 0;
    for (std::size_t piece = bytes; piece >= 64 << 10;) {
        const Granted granted = path.allocate(piece);
        if (granted.code == CUDA_SUCCESS) {
            sum += granted.bytes;
            ++pieces;
        } else if (granted.code == CUDA_ERROR_NOT_SUPPORTED) {
            return "{\"missing\":true}";
        } else if (granted.code == CUDA_ERROR_OUT_OF_MEMORY) {
            piece /= 2;
        } else {
            must(granted.code, path.name);
        }
    }
    return "{\"granted\":" + std::to_string(sum) + ",\"pieces\":" + std::to_string(pieces) + "}";
}

// -- initialisation -------------------------------------------------------------------------------

Nanos cpu_now() {
    rusage used = {};
    getrusage(RUSAGE_SELF, &used);
    const auto nanos = [](timeval t) { return t.tv_sec * 1'000'000'000L + t.tv_usec * 1'000L; };
    return nanos(used.ru_utime) + nanos(used.ru_stime);
}

std::string initialise(int device) {
    const Nanos wall = monotonic_now(), cpu = cpu_now();
    bench::open_driver();
    bench::enter_device(device);
    CUdeviceptr pointer = 0;
    must(api.cuMemAlloc_v2(&pointer, 1 << 20), "the first allocation");
    return "{\"cpu_ns\":" + std::to_string(cpu_now() - cpu) +
           ",\"wall_ns\":" + std::to_string(monotonic_now() - wall) + "}";
}

// -- shape ----------------------------------------------------------------------------------------

std::string answer(const bench::Progress& progress, const std::string& question) {
    if (question == "items") {
        std::string text = "[";
        for (const auto& [since, done] : progress.items())
            text += (text.size() > 1 ? ",[" : "[") + std::to_string(since) + "," + std::to_string(done) + "]";
        return text + "]";
    }
    const bench::Progress::Count done = progress.count();
    return "{\"now_ns\":" + std::to_string(monotonic_now()) +
           ",\"items\":" + std::to_string(done.items) +
           ",\"kernel_ns\":" + std::to_string(done.kernel_ns) +
           ",\"last_item_ns\":" + std::to_string(done.last_item) + "}";
}

std::string functions() {
    std::string text = "{";
#define BENCH_PRESENCE(name)                                                                       \
    text += std::string(text.size() > 1 ? "," : "") + "\"" #name "\":" + (api.name ? "true" : "false");
    BENCH_OPTIONAL(BENCH_PRESENCE)
#undef BENCH_PRESENCE
    return text + "}";
}

// -- entry ----------------------------------------------------------------------------------------

template <typename Answer>
void serve(Answer answer_to) {
    say("{\"ready\":true}");
    for (std::string line; std::getline(std::cin, line);) say(answer_to(line));
}

void shape(const char* ptx, const char* name, unsigned seed) {
    CUfunction kernel = bench::load_kernel(ptx);
    bench::Progress progress;
    std::atomic<bool> stop{false};
    std::thread worker([&] {
        bench::use_device_in_this_thread();
        bench::run_shape(name, kernel, seed, progress, stop);
    });
    serve([&](const std::string& line) { return answer(progress, line); });
    // A tenant at the end of its share may wait long for its last item; nobody needs it.
    std::_Exit(0);
}

int usage() {
    std::fprintf(stderr, "usage: see the head of tests/bench/load/main.cc\n");
    return 2;
}

} // namespace

int main(int count, char** words) {
    const std::vector<std::string> given(words + 1, words + count);
    if (given.size() < 2) return usage();
    const std::string& verb = given[0];
    const int device = std::atoi(given[1].c_str());
    const auto number = [&](std::size_t at) { return std::strtoull(given[at].c_str(), nullptr, 10); };
    if (verb == "init" && given.size() == 2) {
        serve([&](const std::string&) { return initialise(device); });
        return 0;
    }
    bench::open_driver();
    if (verb == "functions" && given.size() == 2) {
        serve([&](const std::string&) { return functions(); });
        return 0;
    }
    bench::enter_device(device);
    if (verb == "launch" && given.size() == 5) {
        const LaunchTimer timer(words[3], static_cast<Nanos>(number(3)), static_cast<int>(number(4)));
        serve([&](const std::string& line) { return timer.run(std::atoi(line.c_str())); });
    } else if (verb == "shape" && given.size() == 5) {
        shape(words[3], words[4], static_cast<unsigned>(number(4)));
    } else if (verb == "allocate" && given.size() == 3) {
        serve([&](const std::string& line) {
            return time_allocations(number(2), std::atoi(line.c_str()));
        });
    } else if (verb == "refuse" && given.size() == 5) {
        const MemoryPath& path = path_named(words[5]);
        CUdeviceptr held = 0;
        if (number(2) > 0) must(api.cuMemAlloc_v2(&held, number(2)), "the memory to hold");
        serve([&](const std::string& line) { return time_refusals(path, number(3), std::atoi(line.c_str())); });
    } else if (verb == "fill" && given.size() == 4) {
        const MemoryPath& path = path_named(words[3]);
        serve([&](const std::string&) { return fill(path, number(3)); });
    } else {
        return usage();
    }
    return 0;
}
