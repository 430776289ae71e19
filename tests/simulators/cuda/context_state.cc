// SPDX-License-Identifier: GPL-3.0-or-later
//
// What a context can be told and asked that changes nothing here: limits, preferences; and events of all its work.
#include "capture.h"
#include "operation.h"

using namespace simcuda;

namespace {

constexpr std::size_t kNoLimit = ~std::size_t{0};

// What the real driver answers before anyone sets it; kNoLimit: no such limit.
std::size_t usual_limit(CUlimit which) {
  switch (which) {
    case CU_LIMIT_STACK_SIZE: return 1024;
    case CU_LIMIT_PRINTF_FIFO_SIZE: return 1 << 20;
    case CU_LIMIT_MALLOC_HEAP_SIZE: return 8 << 20;
    case CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH: return 2;
    case CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT: return 2048;
    case CU_LIMIT_MAX_L2_FETCH_GRANULARITY: return 64;
    case CU_LIMIT_PERSISTING_L2_CACHE_SIZE: return 0;
    default: return kNoLimit;
  }
}

template <class Kind>
CUresult told(Kind* out, Kind value) {
  Context* context = nullptr;
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  *out = value;
  return CUDA_SUCCESS;
}

CUresult accepted() {
  Context* context = nullptr;
  return current(context);
}

}  // namespace

SIM_EXPORT CUresult cuCtxGetLimit(std::size_t* value, CUlimit which) {
  Context* context = nullptr;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  const std::size_t usual = usual_limit(which);
  if (usual == kNoLimit) return CUDA_ERROR_UNSUPPORTED_LIMIT;
  const std::lock_guard<std::mutex> held(context->lock);
  const auto set = context->limits.find(which);
  *value = set != context->limits.end() ? set->second : usual;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetLimit(CUlimit which, std::size_t value) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  if (usual_limit(which) == kNoLimit) return CUDA_ERROR_UNSUPPORTED_LIMIT;
  const std::lock_guard<std::mutex> held(context->lock);
  context->limits[which] = value;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetCacheConfig(CUfunc_cache* config) { return told(config, CU_FUNC_CACHE_PREFER_NONE); }
SIM_EXPORT CUresult cuCtxSetCacheConfig(CUfunc_cache) { return accepted(); }
SIM_EXPORT CUresult cuCtxGetSharedMemConfig(CUsharedconfig* config) {
  return told(config, CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE);
}
SIM_EXPORT CUresult cuCtxSetSharedMemConfig(CUsharedconfig) { return accepted(); }
SIM_EXPORT CUresult cuCtxResetPersistingL2Cache(void) { return accepted(); }

SIM_EXPORT CUresult cuCtxSetFlags(unsigned flags) {
  Context* context = nullptr;
  if (const CUresult error = current(context)) return error;
  context->flags = flags;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetExecAffinity(CUexecAffinityParam*, CUexecAffinityType) {
  return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
}

// All work of a context is all work of its process on that card.
SIM_EXPORT CUresult cuCtxRecordEvent(CUcontext handle, CUevent event_handle) {
  Context* context = alive<Context>(handle);
  Event* event = alive<Event>(event_handle);
  if (context == nullptr || event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult error = legal_to_wait(*context)) return error;
  forget_capture(*event);
  context->device->record(*event, context->null_stream);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxWaitEvent(CUcontext handle, CUevent event_handle) {
  Context* context = alive<Context>(handle);
  Event* event = alive<Event>(event_handle);
  if (context == nullptr || event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult error = legal_to_wait(*context)) return error;
  return perform(Await{event}, context->null_stream);
}

// The profiler's switches, of a profiler that isn't there.
SIM_EXPORT CUresult cuProfilerStart(void) { return accepted(); }
SIM_EXPORT CUresult cuProfilerStop(void) { return accepted(); }

// --- attributes of streams ---------------------------------------------------------------------

#define ATTRIBUTES(suffix, null)                                                                     \
  SIM_EXPORT CUresult cuStreamSetAttribute##suffix(CUstream on, CUstreamAttrID which,                \
                                                  const CUstreamAttrValue* value) {                 \
    Stream* stream = nullptr;                                                                        \
    if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;                                           \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    if (which == CU_LAUNCH_ATTRIBUTE_PRIORITY) stream->priority = value->priority;                   \
    stream->attributes[which] = *value;                                                              \
    return CUDA_SUCCESS;                                                                             \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetAttribute##suffix(CUstream on, CUstreamAttrID which,                \
                                                  CUstreamAttrValue* value) {                       \
    Stream* stream = nullptr;                                                                        \
    if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;                                           \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    const auto kept = stream->attributes.find(which);                                                \
    *value = kept != stream->attributes.end() ? kept->second : CUstreamAttrValue{};                  \
    if (which == CU_LAUNCH_ATTRIBUTE_PRIORITY) value->priority = stream->priority;                   \
    return CUDA_SUCCESS;                                                                             \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamCopyAttributes##suffix(CUstream to_handle, CUstream from_handle) {     \
    Stream* to = nullptr;                                                                            \
    Stream* from = nullptr;                                                                          \
    if (const CUresult error = stream_of(to_handle, null, to)) return error;                         \
    if (const CUresult error = stream_of(from_handle, null, from)) return error;                     \
    to->attributes = from->attributes;                                                               \
    to->priority = from->priority;                                                                   \
    return CUDA_SUCCESS;                                                                             \
  }
ATTRIBUTES(, NullStream::kLegacy)
ATTRIBUTES(_ptsz, NullStream::kPerThread)
