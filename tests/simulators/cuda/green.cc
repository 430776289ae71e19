// SPDX-License-Identifier: GPL-3.0-or-later
//
// Green contexts: a part of a card's multiprocessors by name. Streams of one are streams of the card, so their
// kernels run no slower and no faster than others.
#include <algorithm>
#include <cstring>

#include "capture.h"

using namespace simcuda;

namespace {

struct Resources {
  static constexpr std::uint32_t kAlive = 0x44455343;
  std::uint32_t magic = kAlive;
  CUdevResource sm{};
};

struct Green {
  static constexpr std::uint32_t kAlive = 0x4752454e;
  std::uint32_t magic = kAlive;
  Context context;  // what stands for it where a context is asked for
  CUdevResource sm{};
};

unsigned step_of(const Device& device) { return device.number("multicast", 0) != 0 ? 8 : 2; }

CUresult whole_card(Device* device, CUdevResource* resource, CUdevResourceType type) {
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  *resource = {};
  resource->type = type;
  resource->sm.smCount = static_cast<unsigned>(device->number("multiprocessors", 0));
  // Splitting has no device at hand, so the step lies in what the caller may not read.
  const unsigned step = step_of(*device);
  std::memcpy(resource->_internal_padding, &step, sizeof(step));
  return CUDA_SUCCESS;
}

}  // namespace

SIM_EXPORT CUresult cuDeviceGetDevResource(CUdevice ordinal, CUdevResource* resource, CUdevResourceType type) {
  if (const CUresult error = Driver::get().usable()) return error;
  return whole_card(Driver::get().device(ordinal), resource, type);
}

SIM_EXPORT CUresult cuGreenCtxGetDevResource(CUgreenCtx handle, CUdevResource* resource, CUdevResourceType type) {
  const Green* green = alive<Green>(handle);
  if (green == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  *resource = green->sm;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetDevResource(CUcontext handle, CUdevResource* resource, CUdevResourceType type) {
  const Context* context = alive<Context>(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (context->green != nullptr) return cuGreenCtxGetDevResource(context->green, resource, type);
  return whole_card(context->device, resource, type);
}

SIM_EXPORT CUresult cuDevSmResourceSplitByCount(CUdevResource* result, unsigned* groups, const CUdevResource* input,
                                                CUdevResource* remaining, unsigned, unsigned least) {
  if (groups == nullptr || input == nullptr || input->type != CU_DEV_RESOURCE_TYPE_SM) {
    return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  }
  unsigned step = 0;
  std::memcpy(&step, input->_internal_padding, sizeof(step));
  if (step == 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  const unsigned size = std::max(least + step - 1, step) / step * step;
  const unsigned most = input->sm.smCount / size;
  if (most == 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  const unsigned made = result != nullptr ? std::min(*groups, most) : most;
  *groups = made;
  for (unsigned i = 0; result != nullptr && i < made; ++i) {
    result[i] = *input;
    result[i].sm.smCount = size;
  }
  if (remaining != nullptr) {
    *remaining = *input;
    remaining->sm.smCount = input->sm.smCount - made * size;
  }
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDevResourceGenerateDesc(CUdevResourceDesc* handle, CUdevResource* resources, unsigned count) {
  if (handle == nullptr || resources == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  auto* all = new Resources;
  all->sm = resources[0];
  for (unsigned i = 1; i < count; ++i) all->sm.sm.smCount += resources[i].sm.smCount;
  *handle = reinterpret_cast<CUdevResourceDesc>(all);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGreenCtxCreate(CUgreenCtx* handle, CUdevResourceDesc from, CUdevice ordinal, unsigned flags) {
  const Resources* resources = alive<Resources>(from);
  if (handle == nullptr || resources == nullptr || flags != CU_GREEN_CTX_DEFAULT_STREAM) return CUDA_ERROR_INVALID_VALUE;
  // Its memory is the primary context's.
  CUcontext primary = nullptr;
  if (const CUresult error = cuDevicePrimaryCtxRetain(&primary, ordinal)) return error;
  auto* green = new Green;
  green->sm = resources->sm;
  green->context.device = Driver::get().device(ordinal);
  green->context.ordinal = ordinal;
  green->context.id = Driver::get().next_id();
  green->context.null_stream.context = &green->context;
  green->context.green = reinterpret_cast<CUgreenCtx>(green);
  *handle = green->context.green;
  return CUDA_SUCCESS;
}

// The object stays, marked, as a context's does.
SIM_EXPORT CUresult cuGreenCtxDestroy(CUgreenCtx handle) {
  Green* green = alive<Green>(handle);
  if (green == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  green->context.device->wait(green->context.device->submitted());
  green->magic = 0;
  green->context.magic = 0;
  green->context.null_stream.magic = 0;
  return cuDevicePrimaryCtxRelease_v2(green->context.ordinal);
}

SIM_EXPORT CUresult cuCtxFromGreenCtx(CUcontext* context, CUgreenCtx handle) {
  Green* green = alive<Green>(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (green == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *context = reinterpret_cast<CUcontext>(&green->context);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGreenCtxStreamCreate(CUstream* handle, CUgreenCtx from, unsigned flags, int priority) {
  Green* green = alive<Green>(from);
  if (green == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (handle == nullptr || flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  auto* stream = new Stream;
  stream->context = &green->context;
  stream->flags = flags;
  stream->priority = std::min(0, std::max(-5, priority));
  const std::lock_guard<std::mutex> held(green->context.lock);
  stream->number = green->context.next_stream++;
  *handle = reinterpret_cast<CUstream>(stream);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuStreamGetGreenCtx(CUstream on, CUgreenCtx* green) {
  Stream* stream = nullptr;
  if (green == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = stream_of(on, NullStream::kLegacy, stream)) return error;
  *green = stream->context->green;
  return CUDA_SUCCESS;
}

#define STREAM_CONTEXT(suffix, null)                                                                 \
  SIM_EXPORT CUresult cuStreamGetCtx_v2##suffix(CUstream on, CUcontext* context, CUgreenCtx* green) { \
    Stream* stream = nullptr;                                                                        \
    if (context == nullptr || green == nullptr) return CUDA_ERROR_INVALID_VALUE;                     \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    *green = stream->context->green;                                                                 \
    *context = *green == nullptr ? reinterpret_cast<CUcontext>(stream->context) : nullptr;           \
    return CUDA_SUCCESS;                                                                             \
  }
STREAM_CONTEXT(, NullStream::kLegacy)
STREAM_CONTEXT(_ptsz, NullStream::kPerThread)

SIM_EXPORT CUresult cuGreenCtxRecordEvent(CUgreenCtx handle, CUevent event) {
  Green* green = alive<Green>(handle);
  return green != nullptr ? cuCtxRecordEvent(reinterpret_cast<CUcontext>(&green->context), event)
                          : CUDA_ERROR_INVALID_CONTEXT;
}

SIM_EXPORT CUresult cuGreenCtxWaitEvent(CUgreenCtx handle, CUevent event) {
  Green* green = alive<Green>(handle);
  return green != nullptr ? cuCtxWaitEvent(reinterpret_cast<CUcontext>(&green->context), event)
                          : CUDA_ERROR_INVALID_CONTEXT;
}
