// SPDX-License-Identifier: GPL-3.0-or-later
#include "capture.h"

#include <algorithm>

#include <sys/syscall.h>
#include <unistd.h>

namespace simcuda {
namespace {

std::atomic<int> in_progress{0};
thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

// Recursive: a capture's own functions call each other.
std::recursive_mutex& lock() {
  static std::recursive_mutex* const only = new std::recursive_mutex;
  return *only;
}
using Held = std::lock_guard<std::recursive_mutex>;

std::vector<std::shared_ptr<Capture>>& captures() {
  static auto* const all = new std::vector<std::shared_ptr<Capture>>;
  return *all;
}

int this_thread() { return static_cast<int>(syscall(SYS_gettid)); }

bool legacy(const Stream& stream) { return &stream == &stream.context->null_stream; }

CUresult invalidate(Capture& capture, CUresult because) {
  capture.invalid = true;
  return because;
}

// Work in the legacy stream waits for all blocking streams, which a captured one can't be waited for.
bool implied_by_legacy(const Capture& capture, const Context& context) {
  return std::any_of(capture.streams.begin(), capture.streams.end(), [&](const Stream* stream) {
    return stream->context == &context && (stream->flags & CU_STREAM_NON_BLOCKING) == 0;
  });
}

CUresult legacy_conflict(const Stream& stream) {
  if (!legacy(stream)) return CUDA_SUCCESS;
  CUresult result = CUDA_SUCCESS;
  for (const auto& capture : captures()) {
    if (!implied_by_legacy(*capture, *stream.context)) continue;
    result = invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  }
  return result;
}

bool forbids(const Capture& capture) {
  if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
  if (capture.mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
  const bool everywhere = capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                          thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
  return everywhere || capture.thread == this_thread();
}

void add_tips(Stream& stream, const std::vector<Node*>& tips) {
  for (Node* tip : tips) {
    if (std::find(stream.tips.begin(), stream.tips.end(), tip) == stream.tips.end()) {
      stream.tips.push_back(tip);
    }
  }
}

void join(const std::shared_ptr<Capture>& capture, Stream& stream) {
  stream.capture = capture;
  capture->streams.insert(&stream);
}

// All work of the capture must have come back to the stream where it began.
bool joined(const Capture& capture) {
  std::set<const Node*> followed(capture.origin->tips.begin(), capture.origin->tips.end());
  for (const Node* node : capture.recorded) followed.insert(node->after.begin(), node->after.end());
  return std::all_of(capture.recorded.begin(), capture.recorded.end(),
                     [&](Node* node) { return followed.count(node) != 0; });
}

void finish(const std::shared_ptr<Capture>& capture) {
  capture->ended = true;
  for (Stream* stream : capture->streams) {
    stream->capture = nullptr;
    stream->tips.clear();
  }
  capture->streams.clear();
  auto& all = captures();
  all.erase(std::remove(all.begin(), all.end(), capture), all.end());
  --in_progress;
}

CUresult begin(CUstream handle, NullStream null, CUstreamCaptureMode mode, Graph* into,
               const std::vector<Node*>& after) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const Held held(lock());
  if (legacy(*stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  auto capture = std::make_shared<Capture>();
  if (into == nullptr) capture->own = std::make_unique<Graph>();
  capture->graph = into != nullptr ? into : capture->own.get();
  capture->origin = stream;
  capture->mode = mode;
  capture->thread = this_thread();
  capture->id = Driver::get().next_id();
  join(capture, *stream);
  stream->tips = after;
  captures().push_back(capture);
  ++in_progress;
  return CUDA_SUCCESS;
}

CUresult end(CUstream handle, NullStream null, CUgraph* graph) {
  Stream* stream = nullptr;
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  const Held held(lock());
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->origin != stream) return invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != this_thread()) {
    return invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  }
  *graph = nullptr;
  const bool whole = joined(*capture);
  finish(capture);
  if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (!whole) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  *graph = reinterpret_cast<CUgraph>(capture->graph);
  (void)capture->own.release();
  return CUDA_SUCCESS;
}

CUresult info(CUstream handle, NullStream null, CUstreamCaptureStatus* status, cuuint64_t* id,
              CUgraph* graph, const CUgraphNode** tips, std::size_t* count) {
  Stream* stream = nullptr;
  if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  const Held held(lock());
  if (const CUresult error = legacy_conflict(*stream)) return error;
  *status = stream->capture == nullptr  ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_SUCCESS;
  if (id != nullptr) *id = stream->capture->id;
  if (graph != nullptr) *graph = reinterpret_cast<CUgraph>(stream->capture->graph);
  if (tips != nullptr) *tips = reinterpret_cast<const CUgraphNode*>(stream->tips.data());
  if (count != nullptr) *count = stream->tips.size();
  return CUDA_SUCCESS;
}

CUresult nodes_of(const CUgraphNode* handles, std::size_t count, std::vector<Node*>& nodes) {
  for (std::size_t i = 0; i < count; ++i) {
    nodes.push_back(alive<Node>(handles[i]));
    if (nodes.back() == nullptr) return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult update(CUstream handle, NullStream null, CUgraphNode* nodes, std::size_t count, unsigned flags) {
  Stream* stream = nullptr;
  std::vector<Node*> tips;
  if (const CUresult error = stream_of(handle, null, stream)) return error;
  if (const CUresult error = nodes_of(nodes, count, tips)) return error;
  const Held held(lock());
  if (stream->capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES) stream->tips.clear();
  add_tips(*stream, tips);
  return CUDA_SUCCESS;
}

}  // namespace

bool capturing() { return in_progress.load(std::memory_order_acquire) != 0; }

CUresult unsafe_while_capturing() {
  if (!capturing()) return CUDA_SUCCESS;
  const Held held(lock());
  CUresult result = CUDA_SUCCESS;
  for (const auto& capture : captures()) {
    if (forbids(*capture)) result = invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  return result;
}

CUresult legal_to_wait(Stream& stream) {
  if (!capturing()) return CUDA_SUCCESS;
  const Held held(lock());
  if (stream.capture != nullptr) {
    return invalidate(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  return legacy_conflict(stream);
}

void forget_capture(Event& event) {
  if (!event.captured.load(std::memory_order_acquire)) return;
  const Held held(lock());
  event.capture = nullptr;
  event.captured = false;
}

CUresult legal_to_wait(Event& event) {
  if (!capturing() && !event.captured.load(std::memory_order_acquire)) return CUDA_SUCCESS;
  const Held held(lock());
  if (event.capture != nullptr) {
    return invalidate(*event.capture, CUDA_ERROR_CAPTURED_EVENT);
  }
  return unsafe_while_capturing();
}

CUresult legal_to_wait(Context& context) {
  if (!capturing()) return CUDA_SUCCESS;
  const Held held(lock());
  CUresult result = CUDA_SUCCESS;
  for (const auto& capture : captures()) {
    if (capture->origin->context != &context) continue;
    result = invalidate(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  return result;
}

CUresult capture_operation(Operation& operation, Stream& stream, Node** added, bool& handled) {
  const Held held(lock());
  handled = true;
  if (stream.capture == nullptr) {
    const CUresult conflict = legacy_conflict(stream);
    handled = conflict != CUDA_SUCCESS;
    return conflict;
  }
  if (stream.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  Node* node = stream.capture->graph->add(std::move(operation), stream.tips);
  stream.capture->recorded.insert(node);
  stream.tips = {node};
  if (added != nullptr) *added = node;
  return CUDA_SUCCESS;
}

CUresult capture_record(Event& event, Stream& stream, bool external, bool& handled) {
  Operation operation = Record{&event};
  if (external) return capture_operation(operation, stream, nullptr, handled);
  const Held held(lock());
  handled = true;
  if (stream.capture == nullptr) {
    const CUresult conflict = legacy_conflict(stream);
    handled = conflict != CUDA_SUCCESS;
    if (!handled) forget_capture(event);
    return conflict;
  }
  if (stream.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  event.capture = stream.capture;
  event.captured = true;
  event.tips = stream.tips;
  return CUDA_SUCCESS;
}

CUresult capture_await(Event& event, Stream& stream, bool external, bool& handled) {
  const Held held(lock());
  handled = true;
  if (stream.capture != nullptr && stream.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (external && stream.capture != nullptr) {
    Operation operation = Await{&event};
    return capture_operation(operation, stream, nullptr, handled);
  }
  if (event.capture == nullptr) {
    if (stream.capture != nullptr) return invalidate(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    const CUresult conflict = legacy_conflict(stream);
    handled = conflict != CUDA_SUCCESS;
    return conflict;
  }
  if (event.capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
  if (event.capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (legacy(stream)) return invalidate(*event.capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  if (stream.capture != nullptr && stream.capture != event.capture) {
    invalidate(*event.capture, CUDA_SUCCESS);
    return invalidate(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
  }
  join(event.capture, stream);
  add_tips(stream, event.tips);
  return CUDA_SUCCESS;
}

void leave_capture(Stream& stream) {
  if (!capturing()) return;
  const Held held(lock());
  const std::shared_ptr<Capture> capture = stream.capture;
  if (capture == nullptr) return;
  if (capture->origin == &stream) {
    finish(capture);
    return;
  }
  capture->streams.erase(&stream);
}

}  // namespace simcuda

using namespace simcuda;

SIM_EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  if (const CUresult error = Driver::get().usable()) return error;
  if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}

// Both readings of the null stream.
#define CAPTURE(suffix, null)                                                                        \
  SIM_EXPORT CUresult cuStreamBeginCapture_v2##suffix(CUstream on, CUstreamCaptureMode mode) {       \
    return begin(on, null, mode, nullptr, {});                                                       \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamBeginCaptureToGraph##suffix(                                           \
      CUstream on, CUgraph handle, const CUgraphNode* nodes, const CUgraphEdgeData*,                 \
      std::size_t count, CUstreamCaptureMode mode) {                                                 \
    Graph* graph = alive<Graph>(handle);                                                             \
    std::vector<Node*> after;                                                                        \
    if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;                                           \
    if (const CUresult error = nodes_of(nodes, count, after)) return error;                          \
    return begin(on, null, mode, graph, after);                                                      \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamEndCapture##suffix(CUstream on, CUgraph* graph) {                      \
    return end(on, null, graph);                                                                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamIsCapturing##suffix(CUstream on, CUstreamCaptureStatus* status) {      \
    return info(on, null, status, nullptr, nullptr, nullptr, nullptr);                               \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2##suffix(                                             \
      CUstream on, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,                    \
      const CUgraphNode** tips, std::size_t* count) {                                                \
    return info(on, null, status, id, graph, tips, count);                                           \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetCaptureInfo_v3##suffix(                                             \
      CUstream on, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,                    \
      const CUgraphNode** tips, const CUgraphEdgeData** edges, std::size_t* count) {                 \
    if (edges != nullptr) *edges = nullptr;                                                          \
    return info(on, null, status, id, graph, tips, count);                                           \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamUpdateCaptureDependencies##suffix(CUstream on, CUgraphNode* nodes,     \
                                                               std::size_t count, unsigned flags) { \
    return update(on, null, nodes, count, flags);                                                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamUpdateCaptureDependencies_v2##suffix(                                  \
      CUstream on, CUgraphNode* nodes, const CUgraphEdgeData*, std::size_t count, unsigned flags) {  \
    return update(on, null, nodes, count, flags);                                                    \
  }
CAPTURE(, NullStream::kLegacy)
CAPTURE(_ptsz, NullStream::kPerThread)

// The first versions: without a mode, and telling less.
#undef cuStreamBeginCapture
#undef cuStreamGetCaptureInfo
#define FIRST_CAPTURE(suffix, null)                                                                  \
  SIM_EXPORT CUresult cuStreamBeginCapture##suffix(CUstream on) {                                    \
    return begin(on, null, CU_STREAM_CAPTURE_MODE_GLOBAL, nullptr, {});                              \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamGetCaptureInfo##suffix(CUstream on, CUstreamCaptureStatus* status,     \
                                                    cuuint64_t* id) {                               \
    return info(on, null, status, id, nullptr, nullptr, nullptr);                                    \
  }
FIRST_CAPTURE(, NullStream::kLegacy)
FIRST_CAPTURE(_ptsz, NullStream::kPerThread)
