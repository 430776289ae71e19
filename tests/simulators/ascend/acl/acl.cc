// SPDX-License-Identifier: GPL-3.0-or-later
//
// libascendcl.so: the ACL calls a program makes, each of which calls the runtime, as CANN's does. So whoever
// stands before the runtime sees what a program does through ACL.
#include <cstdint>
#include <cstring>

#include "runtime.h"

extern "C" rtError_t rtLaunchKernelByFuncHandleV3(void*, std::uint32_t, const void*, void*, const void*);
extern "C" rtError_t rtModelExecute(void*, void*, std::uint32_t);

#define SIM_EXPORT extern "C" __attribute__((visibility("default")))

using aclError = int;

namespace {
constexpr std::uint32_t kHbm = 2;
// A function of a loaded binary. One kernel exists: it runs for as many nanoseconds as its first argument says.
char spin_ns;
char binary;
}  // namespace

SIM_EXPORT aclError aclInit(const char*) { return rtInit(); }
SIM_EXPORT aclError aclFinalize(void) { return RT_ERROR_NONE; }
SIM_EXPORT aclError aclrtSetDevice(std::int32_t device) { return rtSetDevice(device); }
SIM_EXPORT aclError aclrtGetDevice(std::int32_t* device) { return rtGetDevice(device); }
SIM_EXPORT aclError aclrtResetDevice(std::int32_t device) { return rtDeviceReset(device); }
SIM_EXPORT aclError aclrtGetDeviceCount(std::uint32_t* count) {
  std::int32_t found = 0;
  const aclError error = rtGetDeviceCount(&found);
  if (count != nullptr) *count = static_cast<std::uint32_t>(found);
  return error;
}
SIM_EXPORT aclError aclrtCreateContext(void** context, std::int32_t device) { return rtCtxCreate(context, 0, device); }
SIM_EXPORT aclError aclrtDestroyContext(void* context) { return rtCtxDestroy(context); }
SIM_EXPORT aclError aclrtSetCurrentContext(void* context) { return rtCtxSetCurrent(context); }
SIM_EXPORT aclError aclrtGetCurrentContext(void** context) { return rtCtxGetCurrent(context); }
SIM_EXPORT aclError aclrtSynchronizeDevice(void) { return rtDeviceSynchronize(); }
SIM_EXPORT aclError aclrtCreateStream(void** stream) { return rtStreamCreate(stream, 0); }
SIM_EXPORT aclError aclrtDestroyStream(void* stream) { return rtStreamDestroy(stream); }
SIM_EXPORT aclError aclrtSynchronizeStream(void* stream) { return rtStreamSynchronize(stream); }
SIM_EXPORT aclError aclrtSynchronizeStreamWithTimeout(void* stream, std::int32_t milliseconds) {
  return rtStreamSynchronizeWithTimeout(stream, milliseconds);
}
SIM_EXPORT aclError aclrtStreamWaitEvent(void* stream, void* event) { return rtStreamWaitEvent(stream, event); }
SIM_EXPORT aclError aclrtCreateEvent(void** event) { return rtEventCreate(event); }
SIM_EXPORT aclError aclrtDestroyEvent(void* event) { return rtEventDestroy(event); }
SIM_EXPORT aclError aclrtRecordEvent(void* event, void* stream) { return rtEventRecord(event, stream); }
SIM_EXPORT aclError aclrtSynchronizeEvent(void* event) { return rtEventSynchronize(event); }
SIM_EXPORT aclError aclrtQueryEventStatus(void* event, std::int32_t* status) { return rtEventQueryStatus(event, status); }
SIM_EXPORT aclError aclrtEventElapsedTime(float* ms, void* start, void* end) { return rtEventElapsedTime(ms, start, end); }
SIM_EXPORT aclError aclrtMalloc(void** address, std::size_t size, int) { return rtMalloc(address, size, kHbm, 0); }
SIM_EXPORT aclError aclrtMallocCached(void** address, std::size_t size, int) { return rtMallocCached(address, size, kHbm, 0); }
SIM_EXPORT aclError aclrtFree(void* address) { return rtFree(address); }
SIM_EXPORT aclError acldvppMalloc(void** address, std::size_t size) { return rtDvppMalloc(address, size, 0); }
SIM_EXPORT aclError acldvppFree(void* address) { return rtDvppFree(address); }
SIM_EXPORT aclError aclrtMallocPhysical(void** handle, std::size_t size, const void* properties, std::uint64_t flags) {
  return rtMallocPhysical(handle, size, const_cast<void*>(properties), flags);
}
SIM_EXPORT aclError aclrtFreePhysical(void* handle) { return rtFreePhysical(handle); }
SIM_EXPORT aclError aclrtGetMemInfo(int kind, std::size_t* free_bytes, std::size_t* total) {
  return rtMemGetInfoEx(static_cast<std::uint32_t>(kind), free_bytes, total);
}
SIM_EXPORT aclError aclrtMemcpy(void* to, std::size_t most, const void* from, std::size_t size, int kind) {
  return rtMemcpy(to, most, from, size, static_cast<std::uint32_t>(kind));
}
SIM_EXPORT aclError aclrtMemset(void* to, std::size_t most, std::int32_t value, std::size_t size) {
  return rtMemset(to, most, static_cast<std::uint32_t>(value), size);
}
SIM_EXPORT aclError aclrtBinaryLoadFromFile(const char* path, void*, void** handle) {
  if (path == nullptr || handle == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  *handle = &binary;
  return RT_ERROR_NONE;
}
SIM_EXPORT aclError aclrtBinaryUnLoad(void*) { return RT_ERROR_NONE; }
SIM_EXPORT aclError aclrtBinaryGetFunction(void* handle, const char* name, void** function) {
  if (handle != &binary || function == nullptr || name == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  if (std::strcmp(name, "spin_ns") != 0) return ACL_ERROR_RT_INVALID_HANDLE;
  *function = &spin_ns;
  return RT_ERROR_NONE;
}
SIM_EXPORT aclError aclrtLaunchKernel(void* function, std::uint32_t blocks, const void* args, std::size_t size,
                                      void* stream) {
  if (function != &spin_ns || args == nullptr) return ACL_ERROR_RT_PARAM_INVALID;
  const rtArgsExHead_t block{const_cast<void*>(args), nullptr, static_cast<std::uint32_t>(size)};
  return rtLaunchKernelByFuncHandleV3(function, blocks, &block, stream, nullptr);
}
SIM_EXPORT aclError aclmdlExecuteAsync(std::uint32_t model, const void*, void*, void* stream) {
  return rtModelExecute(reinterpret_cast<void*>(static_cast<std::uintptr_t>(model)), stream, 0);
}
