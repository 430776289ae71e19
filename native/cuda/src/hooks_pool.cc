// SPDX-License-Identifier: Apache-2.0
//
// Stream-ordered memory: allocations that may grow a pool, and the life of pools.
#include "call.h"
#include "charges.h"
#include "pools.h"

namespace xpu {
namespace {

CUstream per_thread(CUstream stream) noexcept {
    return stream == nullptr ? XPU_STREAM_PER_THREAD : stream;
}

// `on` is the stream that is meant, by a name that every entry point knows.
template <typename Function, typename... Arguments>
CUresult allocate(Pool* pool, CUstream on, Function function, CUdeviceptr* pointer,
                  std::size_t bytes, Arguments... arguments) noexcept {
    Growth growth(pool, bytes, on);
    if (!growth.admitted()) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = call(function, pointer, bytes, arguments...);
    if (growth.settled()) return result;
    if (result == CUDA_SUCCESS) (void)call(real.cuMemFreeAsync, *pointer, on);
    growth.gone_back();
    return CUDA_ERROR_OUT_OF_MEMORY;
}

template <typename Function>
CUresult allocate_async(Function function, CUdeviceptr* pointer, std::size_t bytes, CUstream stream,
                        CUstream on) noexcept {
    if (!guard.active() || pointer == nullptr) return call(function, pointer, bytes, stream);
    return allocate(pool_of_stream(on), on, function, pointer, bytes, stream);
}

template <typename Function>
CUresult allocate_from(Function function, CUdeviceptr* pointer, std::size_t bytes,
                       CUmemoryPool pool, CUstream stream, CUstream on) noexcept {
    if (!guard.active() || pointer == nullptr) return call(function, pointer, bytes, pool, stream);
    if (pool_is_ending(pool)) return CUDA_ERROR_INVALID_VALUE;
    return allocate(pool_of(pool), on, function, pointer, bytes, pool, stream);
}

// Every way to come by a pool's handle says where its memory is.
CUresult noted(CUresult result, const CUmemoryPool* pool, CUdevice device) noexcept {
    if (result == CUDA_SUCCESS && guard.active()) (void)pool_on_device(*pool, device);
    return result;
}

CUresult noted(CUresult result, const CUmemoryPool* pool, const CUmemLocation& where) noexcept {
    if (result != CUDA_SUCCESS || !guard.active()) return result;
    if (where.type == CU_MEM_LOCATION_TYPE_DEVICE) (void)pool_on_device(*pool, where.id);
    else (void)pool_off_cards(*pool);
    return result;
}

} // namespace
} // namespace xpu

using namespace xpu;

CUresult cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, CUstream stream) {
    return allocate_async(real.cuMemAllocAsync, pointer, bytes, stream, stream);
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr* pointer, size_t bytes, CUstream stream) {
    return allocate_async(real.cuMemAllocAsync_ptsz, pointer, bytes, stream, per_thread(stream));
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t bytes, CUmemoryPool pool,
                                 CUstream stream) {
    return allocate_from(real.cuMemAllocFromPoolAsync, pointer, bytes, pool, stream, stream);
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr* pointer, size_t bytes, CUmemoryPool pool,
                                      CUstream stream) {
    return allocate_from(real.cuMemAllocFromPoolAsync_ptsz, pointer, bytes, pool, stream,
                         per_thread(stream));
}

CUresult cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* how) {
    const CUresult result = call(real.cuMemPoolCreate, pool, how);
    return how == nullptr ? result : noted(result, pool, how->location);
}

// Its owner was charged for what it reserves.
CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool* pool, void* shared, int type,
                                            unsigned long long flags) {
    const CUresult result =
        call(real.cuMemPoolImportFromShareableHandle, pool, shared, type, flags);
    if (result == CUDA_SUCCESS && guard.active()) (void)pool_off_cards(*pool);
    return result;
}

CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    return guard.active() ? destroy_pool(pool) : call(real.cuMemPoolDestroy, pool);
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    const CUresult result = call(real.cuMemPoolTrimTo, pool, keep);
    if (guard.active() && result == CUDA_SUCCESS) settle(pool_of(pool));
    return result;
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
    return noted(call(real.cuDeviceGetDefaultMemPool, pool, device), pool, device);
}

CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) {
    return noted(call(real.cuDeviceGetMemPool, pool, device), pool, device);
}

CUresult cuMemGetDefaultMemPool(CUmemoryPool* pool, CUmemLocation* where, int type) {
    const CUresult result = call(real.cuMemGetDefaultMemPool, pool, where, type);
    return where == nullptr ? result : noted(result, pool, *where);
}

CUresult cuMemGetMemPool(CUmemoryPool* pool, CUmemLocation* where, int type) {
    const CUresult result = call(real.cuMemGetMemPool, pool, where, type);
    return where == nullptr ? result : noted(result, pool, *where);
}
