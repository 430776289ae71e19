// SPDX-License-Identifier: GPL-3.0-or-later
//
// Stream capture: which calls it forbids, and what becomes of those it records.
//
// One lock guards all captures of the process; calls outside any capture read one counter.
#pragma once

#include <set>

#include "graph.h"
#include "operation.h"

namespace simcuda {

struct Capture {
  std::unique_ptr<Graph> own;  // null when the application gave the graph
  Graph* graph = nullptr;
  Stream* origin = nullptr;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  int thread = 0;
  cuuint64_t id = 0;
  bool invalid = false;
  bool ended = false;
  std::set<Stream*> streams;
  std::set<Node*> recorded;
};

// Whether anything captures in this process.
bool capturing();

// For calls that may synchronise behind the application's back (allocating, loading, querying): an
// error, which ends the captures that forbid them, or CUDA_SUCCESS.
CUresult unsafe_while_capturing();

// For waiting for a stream, or asking whether it is done.
CUresult legal_to_wait(Stream& stream);
CUresult legal_to_wait(Event& event);
CUresult legal_to_wait(Context& context);

// What recording an event and waiting for one mean while something captures; `handled` says that the
// capture has taken the call.
CUresult capture_record(Event& event, Stream& stream, bool external, bool& handled);
CUresult capture_await(Event& event, Stream& stream, bool external, bool& handled);

// Adds to the capture of `stream`, or answers that the call is illegal; `handled` as above.
CUresult capture_operation(Operation& operation, Stream& stream, Node** added, bool& handled);

// The event is recorded outside any capture now.
void forget_capture(Event& event);

// The stream or event is gone.
void leave_capture(Stream& stream);

}  // namespace simcuda
