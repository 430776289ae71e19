// SPDX-License-Identifier: GPL-3.0-or-later
//
// Streams and events.
#include "book.h"
#include "capture.h"
#include "operation.h"
#include "shared_event.h"

using namespace simcuda;

namespace {

constexpr unsigned kEventFlags =
    CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;

CUresult create_stream(CUstream* handle, unsigned flags, int priority) {
  Context* context = nullptr;
  if (handle == nullptr || (flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING)) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (const CUresult error = current(context)) return error;
  auto* stream = new Stream;
  stream->context = context;
  stream->flags = flags;
  stream->priority = std::min(0, std::max(-5, priority));
  const std::lock_guard<std::mutex> held(context->lock);
  stream->number = context->next_stream++;
  *handle = reinterpret_cast<CUstream>(stream);
  return CUDA_SUCCESS;
}

CUresult synchronize(CUstream handle, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  if (const CUresult error = legal_to_wait(*stream)) return error;
  stream->context->device->wait(bound_of(*stream));
  trim_pools(*stream->context->device);
  return CUDA_SUCCESS;
}

CUresult query(CUstream handle, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  if (const CUresult error = legal_to_wait(*stream)) return error;
  return stream->context->device->completed(bound_of(*stream)) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

// While something captures, recording and waiting may be notes in a graph instead.
CUresult wait_event(CUstream handle, CUevent on, unsigned flags, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  Event* event = alive<Event>(on);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (capturing()) {
    bool handled = false;
    const bool external = (flags & CU_EVENT_WAIT_EXTERNAL) != 0;
    const CUresult result = capture_await(*event, *stream, external, handled);
    if (handled) return result;
  }
  return perform(Await{event}, *stream);
}

CUresult record(CUevent handle, CUstream on, unsigned flags, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  Event* event = alive<Event>(handle);
  if (event == nullptr || !same_context(*event->context, *stream->context)) return CUDA_ERROR_INVALID_HANDLE;
  if (capturing()) {
    bool handled = false;
    const bool external = (flags & CU_EVENT_RECORD_EXTERNAL) != 0;
    const CUresult result = capture_record(*event, *stream, external, handled);
    if (handled) return result;
  }
  forget_capture(*event);
  event->context->device->record(*event, *stream);
  return CUDA_SUCCESS;
}

// A host function, or (with a status, and none for a stream in error) an old callback.
struct OldCallback {
  CUstreamCallback function;
  CUstream stream;
  void* data;

  static void run(void* own) {
    const std::unique_ptr<OldCallback> call(static_cast<OldCallback*>(own));
    call->function(call->stream, CUDA_SUCCESS, call->data);
  }
};

CUresult call_host(CUstream on, CUhostFn function, void* data, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(HostCall{function, data}, *stream);
}

CUresult call_back(CUstream on, CUstreamCallback function, void* data, unsigned flags, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (function == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = legal_to_wait(*stream)) return error;
  queue_host_call({OldCallback::run, new OldCallback{function, on, data}}, *stream);
  return CUDA_SUCCESS;
}

CUresult elapsed(float* milliseconds, CUevent from, CUevent to) {
  const Event* first = alive<Event>(from);
  const Event* last = alive<Event>(to);
  if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  if (first == nullptr || last == nullptr || !first->recorded || !last->recorded ||
      first->context->device != last->context->device ||
      ((first->flags | last->flags) & CU_EVENT_DISABLE_TIMING) != 0) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  if (first->captured || last->captured) return CUDA_ERROR_CAPTURED_EVENT;
  Device& device = *first->context->device;
  if (!device.completed(std::max(first->item, last->item) + 1)) return CUDA_ERROR_NOT_READY;
  sim::Nanos span = device.end_of(*last) - device.end_of(*first);
  if (const sim::Nanos most = Driver::get().event_jitter_ns()) {
    const sim::Nanos off = sim::jitter_ns(last->item, most) - sim::jitter_ns(first->item, most);
    span = span >= 0 ? std::max<sim::Nanos>(span + off, 0) : std::min<sim::Nanos>(span + off, 0);
  }
  *milliseconds = static_cast<float>(static_cast<double>(span) / 1e6);
  return CUDA_SUCCESS;
}

CUresult stream_property(CUstream handle, NullStream null, void* out, Stream*& stream) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return stream_of(handle, null, stream);
}

}  // namespace

SIM_EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return create_stream(stream, flags, 0);
}

SIM_EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  return create_stream(stream, flags, priority);
}

SIM_EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Stream* stream = alive<Stream>(handle);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  leave_capture(*stream);
  stream->magic = 0;
  delete stream;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuStreamSynchronize(CUstream stream) {
  return synchronize(stream, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream) {
  return synchronize(stream, NullStream::kPerThread);
}

SIM_EXPORT CUresult cuStreamQuery(CUstream stream) { return query(stream, NullStream::kLegacy); }

SIM_EXPORT CUresult cuStreamQuery_ptsz(CUstream stream) {
  return query(stream, NullStream::kPerThread);
}

SIM_EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  return wait_event(stream, event, flags, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuStreamWaitEvent_ptsz(CUstream stream, CUevent event, unsigned flags) {
  return wait_event(stream, event, flags, NullStream::kPerThread);
}

// What a stream is, for both readings of the null stream.
#define STREAM_PROPERTIES(suffix, null)                                                              \
  SIM_EXPORT CUresult cuStreamGetPriority##suffix(CUstream handle, int* priority) {                  \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_property(handle, null, priority, stream)) return error;        \
    *priority = stream->priority;                                                                    \
    return CUDA_SUCCESS;                                                                             \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetFlags##suffix(CUstream handle, unsigned* flags) {                   \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_property(handle, null, flags, stream)) return error;           \
    *flags = stream->flags;                                                                          \
    return CUDA_SUCCESS;                                                                             \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetCtx##suffix(CUstream handle, CUcontext* context) {                  \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_property(handle, null, context, stream)) return error;         \
    *context = reinterpret_cast<CUcontext>(stream->context);                                         \
    return CUDA_SUCCESS;                                                                             \
  }                                                                                                  \
  SIM_EXPORT CUresult cuLaunchHostFunc##suffix(CUstream on, CUhostFn function, void* data) {         \
    return call_host(on, function, data, null);                                                      \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamAddCallback##suffix(CUstream on, CUstreamCallback function,            \
                                                 void* data, unsigned flags) {                      \
    return call_back(on, function, data, flags, null);                                               \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetId##suffix(CUstream handle, unsigned long long* id) {               \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_property(handle, null, id, stream)) return error;              \
    *id = stream->number;                                                                            \
    return CUDA_SUCCESS;                                                                             \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetDevice##suffix(CUstream handle, CUdevice* device) {                 \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_property(handle, null, device, stream)) return error;          \
    *device = stream->context->ordinal;                                                              \
    return CUDA_SUCCESS;                                                                             \
  }
STREAM_PROPERTIES(, NullStream::kLegacy)
STREAM_PROPERTIES(_ptsz, NullStream::kPerThread)

SIM_EXPORT CUresult cuEventCreate(CUevent* handle, unsigned flags) {
  Context* context = nullptr;
  if (handle == nullptr || (flags & ~kEventFlags) != 0) return CUDA_ERROR_INVALID_VALUE;
  const bool shared = (flags & CU_EVENT_INTERPROCESS) != 0;
  if (shared && (flags & CU_EVENT_DISABLE_TIMING) == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = current(context)) return error;
  SharedEvent* place = shared ? make_shared_event() : nullptr;
  if (shared && place == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  auto* event = new Event;
  event->shared = place;
  event->context = context;
  event->flags = flags;
  *handle = reinterpret_cast<CUevent>(event);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuEventDestroy_v2(CUevent handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Event* event = alive<Event>(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  event->context->device->forget(*event);
  if (event->shared != nullptr) drop_shared_event(event->shared);
  event->magic = 0;
  delete event;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
  return record(event, stream, 0, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuEventRecord_ptsz(CUevent event, CUstream stream) {
  return record(event, stream, 0, NullStream::kPerThread);
}

SIM_EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  return record(event, stream, flags, NullStream::kLegacy);
}

SIM_EXPORT CUresult cuEventRecordWithFlags_ptsz(CUevent event, CUstream stream, unsigned flags) {
  return record(event, stream, flags, NullStream::kPerThread);
}

SIM_EXPORT CUresult cuEventQuery(CUevent handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Event* event = alive<Event>(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult error = legal_to_wait(*event)) return error;
  if (event->shared != nullptr) return query_shared(*event->shared);
  if (!event->recorded || event->context->device->completed(event->item + 1)) return CUDA_SUCCESS;
  return CUDA_ERROR_NOT_READY;
}

SIM_EXPORT CUresult cuEventSynchronize(CUevent handle) {
  if (const CUresult error = Driver::get().usable()) return error;
  Event* event = alive<Event>(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult error = legal_to_wait(*event)) return error;
  if (event->shared != nullptr) wait_shared(*event->shared);
  else if (event->recorded) event->context->device->wait(event->item + 1);
  trim_pools(*event->context->device);
  return CUDA_SUCCESS;
}

#undef cuEventElapsedTime
SIM_EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) {
  return elapsed(milliseconds, from, to);
}

SIM_EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) {
  return elapsed(milliseconds, from, to);
}
