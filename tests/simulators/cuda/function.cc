// SPDX-License-Identifier: GPL-3.0-or-later
//
// What a kernel can be asked, and how many of its blocks fit. Its code is unknown here: 32 registers a thread,
// no shared memory of its own.
#include <algorithm>

#include "driver.h"

using namespace simcuda;

namespace {

constexpr long kRegistersPerThread = 32;

CUresult parameter_of(const Function* function, std::size_t index, std::size_t* offset, std::size_t* size) {
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const auto& parameters = function->kernel.parameters;
  if (offset == nullptr || index >= parameters.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = parameters[index].offset;
  if (size != nullptr) *size = parameters[index].size;
  return CUDA_SUCCESS;
}

// Blocks of one multiprocessor, by threads, registers, shared memory and the most there may be.
long blocks_that_fit(const Device& device, long threads, long shared_bytes) {
  const long rounded_threads = (threads + 31) / 32 * 32;
  const long by_threads = device.number("threads_per_multiprocessor", 2048) / rounded_threads;
  const long by_registers = 65536 / (kRegistersPerThread * rounded_threads);
  const long reserved = device.number("reserved_shared_kib", 0) * 1024;
  const long shared = device.number("shared_kib_per_multiprocessor", 64) * 1024;
  const long per_block = shared_bytes + reserved;
  const long by_shared = per_block > 0 ? shared / per_block : by_threads;
  const long most = device.number("blocks_per_multiprocessor", 16);
  return std::min({by_threads, by_registers, by_shared, most});
}

CUresult occupied(CUfunction handle, Context*& context) {
  if (alive<Function>(handle) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return current(context);
}

CUresult active_blocks(int* count, CUfunction function, int threads, std::size_t shared) {
  Context* context = nullptr;
  if (count == nullptr || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = occupied(function, context)) return error;
  *count = threads > 1024 ? 0 : static_cast<int>(blocks_that_fit(*context->device, threads, static_cast<long>(shared)));
  return CUDA_SUCCESS;
}

CUresult best_block(int* grid, int* block, CUfunction function, CUoccupancyB2DSize shared_for, std::size_t shared,
                    int limit) {
  Context* context = nullptr;
  if (grid == nullptr || block == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = occupied(function, context)) return error;
  const Device& device = *context->device;
  long best = 0;
  for (int threads = limit > 0 ? std::min(limit, 1024) : 1024; threads >= 32; threads -= 32) {
    const std::size_t bytes = shared_for != nullptr ? shared_for(threads) : shared;
    const long blocks = blocks_that_fit(device, threads, static_cast<long>(bytes));
    if (blocks * threads <= best) continue;
    best = blocks * threads;
    *block = threads;
    *grid = static_cast<int>(blocks * device.number("multiprocessors", 1));
  }
  return best != 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

SIM_EXPORT CUresult cuFuncGetName(const char** name, CUfunction handle) {
  const Function* function = alive<Function>(handle);
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *name = function->kernel.name.c_str();
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncGetParamInfo(CUfunction function, std::size_t index, std::size_t* offset,
                                       std::size_t* size) {
  return parameter_of(alive<Function>(function), index, offset, size);
}

SIM_EXPORT CUresult cuKernelGetParamInfo(CUkernel kernel, std::size_t index, std::size_t* offset,
                                         std::size_t* size) {
  return parameter_of(alive<Function>(kernel), index, offset, size);
}

SIM_EXPORT CUresult cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction function) {
  if (state == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (alive<Function>(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *state = CU_FUNCTION_LOADING_STATE_LOADED;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncLoad(CUfunction function) {
  return alive<Function>(function) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuFuncSetSharedMemConfig(CUfunction function, CUsharedconfig) {
  return alive<Function>(function) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache, CUdevice) {
  return alive<Function>(kernel) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuModuleGetFunctionCount(unsigned* count, CUmodule handle) {
  const Module* module = alive<Module>(handle);
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  *count = static_cast<unsigned>(module->functions.size());
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleEnumerateFunctions(CUfunction* functions, unsigned count, CUmodule handle) {
  const Module* module = alive<Module>(handle);
  if (functions == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (unsigned i = 0; i < std::min<std::size_t>(count, module->functions.size()); ++i) {
    functions[i] = reinterpret_cast<CUfunction>(module->functions[i].get());
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLibraryGetManaged(CUdeviceptr*, std::size_t*, CUlibrary library, const char*) {
  return alive<Library>(library) != nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuLibraryGetUnifiedFunction(void**, CUlibrary library, const char*) {
  return alive<Library>(library) != nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, CUfunction function, int threads,
                                                                std::size_t shared) {
  return active_blocks(count, function, threads, shared);
}

SIM_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, CUfunction function,
                                                                         int threads, std::size_t shared, unsigned) {
  return active_blocks(count, function, threads, shared);
}

SIM_EXPORT CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction function,
                                                     CUoccupancyB2DSize shared_for, std::size_t shared, int limit) {
  return best_block(grid, block, function, shared_for, shared, limit);
}

SIM_EXPORT CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, CUfunction function,
                                                              CUoccupancyB2DSize shared_for, std::size_t shared,
                                                              int limit, unsigned) {
  return best_block(grid, block, function, shared_for, shared, limit);
}

SIM_EXPORT CUresult cuOccupancyAvailableDynamicSMemPerBlock(std::size_t* bytes, CUfunction function, int blocks,
                                                            int threads) {
  Context* context = nullptr;
  if (bytes == nullptr || blocks <= 0 || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = occupied(function, context)) return error;
  const Device& device = *context->device;
  const long each = device.number("shared_kib_per_multiprocessor", 64) * 1024 / blocks;
  const long left = each - device.number("reserved_shared_kib", 0) * 1024;
  *bytes = static_cast<std::size_t>(std::max(0L, std::min(left, 49152L)));
  return CUDA_SUCCESS;
}
