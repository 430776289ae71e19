// SPDX-License-Identifier: GPL-3.0-or-later
//
// Contexts: the primary one of a device, and the thread's stack.
#include "book.h"
#include "capture.h"

using namespace simcuda;

namespace {

CUresult push(Context* context) {
  if (contexts.depth == contexts.at.size()) return CUDA_ERROR_UNKNOWN;
  contexts.at[contexts.depth++] = context;
  return CUDA_SUCCESS;
}

CUresult usable_device(CUdevice ordinal, Device*& device) {
  if (const CUresult error = Driver::get().usable()) return error;
  device = Driver::get().device(ordinal);
  return device != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

void drop_primary(Device& device) {
  if (device.primary != nullptr) destroy_context(device.primary);
  device.primary = nullptr;
  device.primary_uses = 0;
}

CUresult create(CUcontext* context, unsigned flags, CUdevice ordinal) {
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  Context* made = nullptr;
  if (const CUresult error = make_context(ordinal, flags, false, made)) return error;
  *context = reinterpret_cast<CUcontext>(made);
  return push(made);
}

}  // namespace

SIM_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice ordinal) {
  Device* device = nullptr;
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = usable_device(ordinal, device)) return error;
  const std::lock_guard<std::mutex> held(device->primary_lock);
  if (device->primary == nullptr) {
    const CUresult error = make_context(ordinal, device->primary_flags, true, device->primary);
    if (error != CUDA_SUCCESS) return error;
  }
  ++device->primary_uses;
  *context = reinterpret_cast<CUcontext>(device->primary);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
  Device* device = nullptr;
  if (const CUresult error = usable_device(ordinal, device)) return error;
  const std::lock_guard<std::mutex> held(device->primary_lock);
  if (device->primary_uses == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--device->primary_uses == 0) drop_primary(*device);
  return CUDA_SUCCESS;
}

#undef cuDevicePrimaryCtxRelease
SIM_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice ordinal) {
  return cuDevicePrimaryCtxRelease_v2(ordinal);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
  Device* device = nullptr;
  if (const CUresult error = usable_device(ordinal, device)) return error;
  const std::lock_guard<std::mutex> held(device->primary_lock);
  drop_primary(*device);
  return CUDA_SUCCESS;
}

#undef cuDevicePrimaryCtxReset
SIM_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice ordinal) {
  return cuDevicePrimaryCtxReset_v2(ordinal);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned flags) {
  Device* device = nullptr;
  if (const CUresult error = usable_device(ordinal, device)) return error;
  const std::lock_guard<std::mutex> held(device->primary_lock);
  device->primary_flags = flags;
  if (device->primary != nullptr) device->primary->flags = flags;
  return CUDA_SUCCESS;
}

#undef cuDevicePrimaryCtxSetFlags
SIM_EXPORT CUresult cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned flags) {
  return cuDevicePrimaryCtxSetFlags_v2(ordinal, flags);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned* flags, int* active) {
  Device* device = nullptr;
  if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = usable_device(ordinal, device)) return error;
  const std::lock_guard<std::mutex> held(device->primary_lock);
  *flags = device->primary_flags;
  *active = device->primary != nullptr ? 1 : 0;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxCreate_v2(CUcontext* context, unsigned flags, CUdevice ordinal) {
  return create(context, flags, ordinal);
}

SIM_EXPORT CUresult cuCtxCreate_v3(CUcontext* context, CUexecAffinityParam* affinity, int count,
                                   unsigned flags, CUdevice ordinal) {
  if (affinity != nullptr || count != 0) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  return create(context, flags, ordinal);
}

SIM_EXPORT CUresult cuCtxCreate_v4(CUcontext* context, CUctxCreateParams* parameters, unsigned flags,
                                   CUdevice ordinal) {
  if (parameters != nullptr && parameters->cigParams != nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  if (parameters != nullptr && parameters->numExecAffinityParams != 0) return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
  return create(context, flags, ordinal);
}

SIM_EXPORT CUresult cuCtxDestroy_v2(CUcontext handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Context* context = alive<Context>(handle);
  if (context == nullptr || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
  if (contexts.depth > 0 && contexts.at[contexts.depth - 1] == context) --contexts.depth;
  destroy_context(context);
  return CUDA_SUCCESS;
}

// Counted uses, from before primary contexts; the last one ends the context.
SIM_EXPORT CUresult cuCtxAttach(CUcontext* handle, unsigned flags) {
  Context* context = nullptr;
  if (handle == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  const std::lock_guard<std::mutex> held(context->lock);
  ++context->uses;
  *handle = reinterpret_cast<CUcontext>(context);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxDetach(CUcontext handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Context* context = alive<Context>(handle);
  if (context == nullptr || context->primary || context->green != nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  {
    const std::lock_guard<std::mutex> held(context->lock);
    if (--context->uses != 0) return CUDA_SUCCESS;
  }
  return cuCtxDestroy_v2(handle);
}

SIM_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Context* context = alive<Context>(handle);
  return context != nullptr ? push(context) : CUDA_ERROR_INVALID_CONTEXT;
}

SIM_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (contexts.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  Context* popped = contexts.at[--contexts.depth];
  if (context != nullptr) *context = reinterpret_cast<CUcontext>(popped);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetCurrent(CUcontext handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (handle == nullptr) {
    if (contexts.depth > 0) --contexts.depth;
    return CUDA_SUCCESS;
  }
  Context* context = alive<Context>(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (contexts.depth == 0) return push(context);
  contexts.at[contexts.depth - 1] = context;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  *context = contexts.depth == 0
                 ? nullptr
                 : reinterpret_cast<CUcontext>(contexts.at[contexts.depth - 1]);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetDevice(CUdevice* ordinal) {
  Context* context = nullptr;
  if (ordinal == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  *ordinal = context->ordinal;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetFlags(unsigned* flags) {
  Context* context = nullptr;
  if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  *flags = context->flags;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetId(CUcontext handle, unsigned long long* id) {
  Context* context = alive<Context>(handle);
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (handle == nullptr) {
    if (const CUresult error = current(context)) return error;
  }
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *id = context->id;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetApiVersion(CUcontext handle, unsigned* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (handle != nullptr && alive<Context>(handle) == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *version = 3020;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSynchronize(void) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  if (const CUresult error = legal_to_wait(*context)) return error;
  context->device->wait(context->device->submitted());
  trim_pools(*context->device);
  return CUDA_SUCCESS;
}

// Of CUDA 13, which no header that this is built with declares: a context may be named, null is the current one.
SIM_EXPORT CUresult cuCtxGetDevice_v2(CUdevice* ordinal, CUcontext handle) {
  if (handle == nullptr) return cuCtxGetDevice(ordinal);
  const Context* context = alive<Context>(handle);
  if (ordinal == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *ordinal = context->ordinal;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSynchronize_v2(CUcontext handle) {
  if (handle == nullptr) return cuCtxSynchronize();
  Context* context = alive<Context>(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (const CUresult error = legal_to_wait(*context)) return error;
  context->device->wait(context->device->submitted());
  trim_pools(*context->device);
  return CUDA_SUCCESS;
}
