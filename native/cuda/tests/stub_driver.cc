// SPDX-License-Identifier: Apache-2.0
//
// A driver small enough to be seen through, for tests of the interposer alone: one device, streams
// that are queues on the monotonic clock (the device runs one kernel at a time), events, memory
// with a fixed size. A kernel runs as many nanoseconds as its first parameter says. Contention
// between processes and everything else is the business of tests/simulators.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <pthread.h>
#include <string>

#define STUB extern "C" __attribute__((visibility("default")))

namespace {

using Ptr = unsigned long long;
constexpr std::uint64_t kTotal = 8ull << 30;
constexpr int kNotReady = 600, kOutOfMemory = 2, kInvalid = 1, kNotFound = 500;

std::mutex mutex;
std::map<Ptr, std::uint64_t> memory;
Ptr next_pointer = 0x7f0000000000;
std::uint64_t used = 0, most_used = 0;
std::map<void*, long long> stream_end; // when the stream's last work ends
long long device_end = 0;
long long busy_ns = 0;
bool capturing = false;
unsigned events_while_capturing = 0;
char context_object;

long long now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}

void wait_until(long long when) {
    const timespec at = {when / 1'000'000'000, when % 1'000'000'000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
}

void use(std::uint64_t bytes) {
    used += bytes;
    most_used = std::max(most_used, used);
}

int allocate(Ptr* pointer, std::uint64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (bytes == 0) return kInvalid;
    if (used + bytes > kTotal) return kOutOfMemory;
    *pointer = next_pointer;
    next_pointer += (bytes + (2 << 20)) & ~((2ull << 20) - 1);
    memory[*pointer] = bytes;
    use(bytes);
    return 0;
}

int release(Ptr pointer) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = memory.find(pointer);
    if (found == memory.end()) return kInvalid;
    used -= found->second;
    memory.erase(found);
    return 0;
}

bool return_to_pool(Ptr pointer);

int release_any(Ptr pointer) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        if (return_to_pool(pointer)) return 0;
    }
    return release(pointer);
}

int run(void* stream, void** parameters) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (capturing) return 0;
    std::uint64_t length = 0;
    std::memcpy(&length, parameters[0], sizeof length);
    const long long start = std::max({now_ns(), stream_end[stream], device_end});
    stream_end[stream] = device_end = start + static_cast<long long>(length);
    busy_ns += static_cast<long long>(length);
    return 0;
}

struct Event {
    long long at = 0;
};

// One pool, which grows by `pool_step` and by `pool_surprise` more than anybody would expect.
std::uint64_t pool_used = 0, pool_reserved = 0, pool_surprise = 0;
constexpr std::uint64_t kPoolStep = 32 << 20;
std::map<Ptr, std::uint64_t> pooled;

int take_from_pool(Ptr* pointer, std::uint64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (pool_used + bytes > pool_reserved) {
        const std::uint64_t more =
            (pool_used + bytes - pool_reserved + kPoolStep - 1) / kPoolStep * kPoolStep +
            pool_surprise;
        if (used + more > kTotal) return kOutOfMemory;
        pool_reserved += more;
        use(more);
    }
    *pointer = next_pointer;
    next_pointer += (bytes + (2 << 20)) & ~((2ull << 20) - 1);
    pooled[*pointer] = bytes;
    pool_used += bytes;
    return 0;
}

bool return_to_pool(Ptr pointer) {
    const auto found = pooled.find(pointer);
    if (found == pooled.end()) return false;
    pool_used -= found->second;
    pooled.erase(found);
    return true;
}

void trim_pool() {
    used -= pool_reserved - pool_used;
    pool_reserved = pool_used;
}

// Arrays: a size in pages of 64 KiB that nobody could guess, told of a twin that is mapped later.
struct Shape {
    std::size_t width, height, depth;
    unsigned format, channels, flags;
};
constexpr unsigned kSparse = 0x40, kMappedLater = 0x80;
struct Array {
    std::uint64_t bytes;
    bool backed;
};

std::uint64_t size_of(const Shape& shape, unsigned levels) {
    const std::uint64_t texels = shape.width * (shape.height + 1) * (shape.depth + 1) * levels;
    return (texels * 16 + (64 << 10) - 1) / (64 << 10) * (64 << 10);
}

int make_array(Array** made, const Shape& shape, unsigned levels) {
    const std::lock_guard<std::mutex> lock(mutex);
    const bool backed = (shape.flags & (kSparse | kMappedLater)) == 0;
    const std::uint64_t bytes = size_of(shape, levels);
    if (backed && used + bytes > kTotal) return kOutOfMemory;
    if (backed) use(bytes);
    *made = new Array{bytes, backed};
    return 0;
}

int end_array(Array* array) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (array->backed) used -= array->bytes;
    delete array;
    return 0;
}

struct Requirements {
    std::size_t size, alignment;
    unsigned reserved[4];
};

// Physical memory whose handles and mappings are numbers; who holds what is the test's business.
std::uint64_t next_handle = 0x1000;
int answer_of_next = 0; // what the next call that could fail answers
int next_answer() {
    const int answer = answer_of_next;
    answer_of_next = 0;
    return answer;
}

std::size_t limits[3] = {1024, 1 << 20, 8 << 20};
int advised_host = 0;

} // namespace

// So that a child that was forked from one of several threads can use it.
STUB int cuInit(unsigned) {
    return pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
}
STUB int cuDriverGetVersion(int* version) { return *version = 12080, 0; }
STUB int cuDeviceGetCount(int* count) { return *count = 1, 0; }
STUB int cuDeviceGet(int* device, int) { return *device = 0, 0; }
STUB int cuDeviceGetUuid(char* uuid, int) {
    for (int index = 0; index < 16; ++index) uuid[index] = static_cast<char>(index + 0xa0);
    return 0;
}
STUB int cuDeviceTotalMem_v2(std::size_t* bytes, int) { return *bytes = kTotal, 0; }
STUB int cuCtxCreate_v2(void** context, unsigned, int) { return *context = &context_object, 0; }
STUB int cuCtxDestroy_v2(void*) {
    const std::lock_guard<std::mutex> lock(mutex);
    memory.clear();
    used = 0;
    return 0;
}
STUB int cuCtxGetCurrent(void** context) { return *context = &context_object, 0; }
STUB int cuCtxGetDevice(int* device) { return *device = 0, 0; }
STUB int cuMemAlloc_v2(Ptr* pointer, std::size_t bytes) { return allocate(pointer, bytes); }
STUB int cuMemAllocManaged(Ptr* p, std::size_t bytes, unsigned) { return allocate(p, bytes); }
STUB int cuMemAllocAsync(Ptr* p, std::size_t bytes, void*) { return take_from_pool(p, bytes); }
STUB int cuMemAllocAsync_ptsz(Ptr* p, std::size_t bytes, void*) { return take_from_pool(p, bytes); }
STUB int cuMemAllocPitch_v2(Ptr* pointer, std::size_t* pitch, std::size_t width,
                            std::size_t height, unsigned) {
    *pitch = (width + 511) / 512 * 512;
    return allocate(pointer, *pitch * height);
}
STUB int cuMemFree_v2(Ptr pointer) { return release_any(pointer); }
STUB int cuMemFreeAsync(Ptr pointer, void*) { return release_any(pointer); }
STUB int cuMemFreeAsync_ptsz(Ptr pointer, void*) { return release_any(pointer); }
STUB int cuDeviceGetMemPool(void** pool, int) { return *pool = &pool_used, 0; }
STUB int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &pool_used, 0; }
char foreign_pool; // of another process, which has reserved 64 MiB
STUB int cuMemPoolImportFromShareableHandle(void** pool, void*, int, std::uint64_t) {
    return *pool = &foreign_pool, 0;
}
STUB int cuMemPoolDestroy(void*) { return next_answer(); }
STUB int cuMemPoolTrimTo(void* pool, std::size_t) {
    if (pool == &foreign_pool) return kInvalid;
    const std::lock_guard<std::mutex> lock(mutex);
    return trim_pool(), 0;
}
STUB int cuMemPoolGetAttribute(void* pool, int which, void* value) {
    const std::lock_guard<std::mutex> lock(mutex);
    const std::uint64_t own = which == 5 ? pool_reserved : pool_used;
    *static_cast<std::uint64_t*>(value) = pool == &foreign_pool ? 64 << 20 : own;
    return 0;
}
STUB int cuArray3DCreate_v2(Array** made, const Shape* shape) { return make_array(made, *shape, 1); }
STUB int cuArrayDestroy(Array* array) { return end_array(array); }
STUB int cuMipmappedArrayCreate(Array** made, const Shape* shape, unsigned levels) {
    return make_array(made, *shape, levels);
}
STUB int cuMipmappedArrayDestroy(Array* array) { return end_array(array); }
STUB int cuArrayGetMemoryRequirements(Requirements* told, const Array* array, int) {
    if (array->backed) return kInvalid; // as the real one
    return told->size = array->bytes, 0;
}
STUB int cuMipmappedArrayGetMemoryRequirements(Requirements* told, const Array* array, int) {
    return cuArrayGetMemoryRequirements(told, array, 0);
}
STUB int cuMemCreate(std::uint64_t* handle, std::size_t, const void*, std::uint64_t) {
    if (const int answer = next_answer()) return answer;
    return *handle = next_handle++, 0;
}
STUB int cuMemRelease(std::uint64_t) { return next_answer(); }
STUB int cuMemMap(Ptr, std::size_t, std::size_t, std::uint64_t, std::uint64_t) {
    return next_answer();
}
STUB int cuMemUnmap(Ptr, std::size_t) { return next_answer(); }
STUB int cuMemMapArrayAsync(void*, unsigned, void*) { return next_answer(); }
STUB int cuMulticastCreate(std::uint64_t* handle, const void*) {
    return *handle = next_handle++, next_answer();
}
STUB int cuMulticastBindMem(std::uint64_t, std::size_t, std::uint64_t, std::size_t, std::size_t,
                            std::uint64_t) {
    return next_answer();
}
STUB int cuMulticastBindAddr(std::uint64_t, std::size_t, Ptr, std::size_t, std::uint64_t) {
    return next_answer();
}
STUB int cuLogicalEndpointBindMem(unsigned, int, std::uint64_t, std::uint64_t, std::uint64_t,
                                  std::uint64_t, std::uint64_t) {
    return next_answer();
}
STUB int cuLogicalEndpointDestroy(unsigned) { return next_answer(); }
STUB int cuDeviceGetAttribute(int* value, int which, int) {
    return *value = which == 16 ? 10 : 1024, 0; // processors, threads of each
}
STUB int cuCtxGetLimit(std::size_t* value, int limit) { return *value = limits[limit], 0; }
STUB int cuCtxSetLimit(int limit, std::size_t value) {
    if (const int answer = next_answer()) return answer;
    return limits[limit] = (value + 1023) / 1024 * 1024, 0; // rounds, as the real one
}
STUB int cuCtxAttach(void** context, unsigned) {
    return *context = &context_object, 0;
}
STUB int cuCtxDetach(void*) { return 0; }
STUB int cuMemAdvise(Ptr, std::size_t, int advice, int where) {
    if (advice == 3 && where == -1) ++advised_host;
    return 0;
}
STUB int stubAdvisedHost() { return advised_host; }
STUB void stubFailNext(int answer) { answer_of_next = answer; }
STUB void stubPoolSurprise(std::uint64_t bytes) { pool_surprise = bytes; }
STUB std::uint64_t stubMostUsed() { return most_used; }
STUB std::uint64_t stubPoolReserved() { return pool_reserved; }
STUB int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    *free = kTotal - used;
    return *total = kTotal, 0;
}
STUB int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        void* stream, void** parameters, void**) {
    return run(stream, parameters);
}
STUB int cuLaunchKernel_ptsz(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, void* stream, void** parameters, void**) {
    return run(stream, parameters);
}
// Kernels of the oldest kind have no parameters here: they run as many nanoseconds as their address.
STUB int cuLaunchGridAsync(void* function, int, int, void* stream) {
    void* parameters[] = {&function};
    return run(stream, parameters);
}
STUB int cuLaunchGrid(void* function, int width, int height) {
    return cuLaunchGridAsync(function, width, height, nullptr);
}
STUB int cuLaunch(void* function) { return cuLaunchGrid(function, 1, 1); }

struct LaunchParameters {
    void* function;
    unsigned shape[6], shared_bytes;
    void* stream;
    void** parameters;
};
STUB int cuLaunchCooperativeKernelMultiDevice(LaunchParameters* parts, unsigned count, unsigned) {
    for (unsigned index = 0; index < count; ++index) run(parts[index].stream, parts[index].parameters);
    return 0;
}
STUB int cuStreamGetCtx(void*, void** context) { return *context = &context_object, 0; }
STUB int cuCtxPushCurrent_v2(void*) { return 0; }
STUB int cuCtxPopCurrent_v2(void** context) { return *context = &context_object, 0; }
STUB int cuStreamSynchronize(void* stream) {
    mutex.lock();
    const long long end = stream_end[stream];
    mutex.unlock();
    wait_until(end);
    return 0;
}
STUB int cuCtxSynchronize() {
    wait_until(device_end);
    return 0;
}
STUB int cuStreamIsCapturing(void*, int* status) { return *status = capturing ? 1 : 0, 0; }
STUB int cuStreamBeginCapture_v2(void*, int) { return capturing = true, 0; }
STUB int cuStreamEndCapture(void*, void** graph) {
    *graph = &context_object;
    return capturing = false, 0;
}
STUB int cuEventCreate(Event** event, unsigned) { return *event = new Event, 0; }
STUB int cuEventRecord(Event* event, void* stream) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (capturing) ++events_while_capturing;
    event->at = std::max(now_ns(), stream_end[stream]);
    return 0;
}
STUB int cuEventDestroy_v2(Event* event) { return delete event, 0; }
STUB int cuEventQuery(Event* event) {
    if (capturing) ++events_while_capturing;
    return event->at <= now_ns() ? 0 : kNotReady;
}
STUB int cuEventSynchronize(Event* event) {
    wait_until(event->at);
    return 0;
}
STUB int cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    *milliseconds = static_cast<float>(static_cast<double>(end->at - start->at) / 1e6);
    return 0;
}
STUB int cuSomethingOfTheFuture(int value) { return value + 1; }
STUB long long stubBusyNs() { return busy_ns; }
STUB unsigned stubEventsWhileCapturing() { return events_while_capturing; }

// Chooses as the driver does: the newest version of a name, the per-thread form by flag 2.
STUB int cuGetProcAddress_v2(const char* symbol, void** function, int version, std::uint64_t flags,
                             int* status);

namespace {
struct Named {
    const char* name;
    void* plain;
    void* per_thread;
};
#define NAMED(base, symbol) {base, reinterpret_cast<void*>(symbol), nullptr}
const Named table[] = {
    NAMED("cuInit", cuInit),
    NAMED("cuMemAlloc", cuMemAlloc_v2),
    NAMED("cuMemFree", cuMemFree_v2),
    NAMED("cuMemGetInfo", cuMemGetInfo_v2),
    {"cuLaunchKernel", reinterpret_cast<void*>(cuLaunchKernel),
     reinterpret_cast<void*>(cuLaunchKernel_ptsz)},
    {"cuMemAllocAsync", reinterpret_cast<void*>(cuMemAllocAsync),
     reinterpret_cast<void*>(cuMemAllocAsync_ptsz)},
    NAMED("cuGetProcAddress", cuGetProcAddress_v2),
    NAMED("cuSomethingOfTheFuture", cuSomethingOfTheFuture),
};
} // namespace

STUB int cuGetProcAddress_v2(const char* symbol, void** function, int, std::uint64_t flags,
                             int* status) {
    for (const Named& named : table) {
        if (std::strcmp(named.name, symbol) != 0) continue;
        *function = flags == 2 && named.per_thread != nullptr ? named.per_thread : named.plain;
        if (status != nullptr) *status = 0;
        return 0;
    }
    *function = nullptr;
    if (status != nullptr) *status = 1;
    return kNotFound;
}
STUB int cuGetProcAddress(const char* symbol, void** function, int version, std::uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}
