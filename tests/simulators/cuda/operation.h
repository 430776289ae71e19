// SPDX-License-Identifier: GPL-3.0-or-later
//
// What a stream can be given. An operation is done at once, or becomes a node of the graph that captures
// its stream; a graph's launch does its nodes' operations, one after another.
#pragma once

#include <variant>

#include "driver.h"

namespace simcuda {

struct Graph;

struct Empty {};

struct Launch {
  Function* function = nullptr;
  std::array<unsigned, 3> grid{};
  std::array<unsigned, 3> block{};
  unsigned shared_bytes = 0;
  std::vector<unsigned char> parameters;  // packed, as the kernel's declaration says
  sim::Nanos duration_ns = 0;
};

struct Fill {
  CUdeviceptr to;
  std::size_t pitch;  // from row to row
  unsigned value;
  unsigned width;     // of one element, in bytes
  std::size_t count;  // elements in a row
  std::size_t rows;
};

struct HostCall {
  CUhostFn function;
  void* data;
};
struct Record {
  Event* event;
};
struct Await {
  Event* event;
};
// Memory that a graph owns.
struct Take {
  CUdeviceptr address;
  std::size_t bytes;
};
struct Return {
  CUdeviceptr address;
};
struct Child {
  std::shared_ptr<Graph> graph;
};

// Values that the stream writes, and waits for.
struct Values {
  std::vector<CUstreamBatchMemOpParams> steps;
};

using Copy = CUDA_MEMCPY3D;
using Operation =
    std::variant<Empty, Launch, Copy, Fill, HostCall, Record, Await, Take, Return, Child, Values>;

// Whoever launches at once needs no copy of the parameters.
enum class Keep { kNothing, kParameters };

// Reads a launch's arguments as the function declares them; they may change once the call returns.
CUresult describe_launch(CUfunction handle, const unsigned (&grid)[3], const unsigned (&block)[3],
                         unsigned shared_bytes, void** parameters, void** extra, Keep keep,
                         Launch& launch);

Copy linear_copy(void* to, const void* from, std::size_t bytes, bool to_card, bool from_card);
// Whether a copy's or fill's ends are memory that was allocated.
CUresult check(const Copy& copy);
CUresult check(const Fill& fill);
CUresult check(const Values& values);
void carry_out(const Copy& copy);
void carry_out(const Fill& fill);

// Does it now: takes effect at once where it takes no time of the card, and is queued where it does.
CUresult perform(const Operation& operation, Stream& stream);

// What a synchronous call needs: that nothing captures, and that the stream has done its work.
CUresult wait_for_stream(Stream& stream);
// A copy that has been made when the call returns.
CUresult copy_now(const Copy& copy, Stream& stream);

// Performs it, or adds it to the graph that captures the stream.
CUresult enqueue(Operation operation, Stream& stream);

// Queues a function of the application's: the stream's later work waits until it has returned.
void queue_host_call(const HostCall& call, Stream& stream);
// Runs one in this thread.
void call_apart(const HostCall& call);
// Whether the calling thread is in such a function; the driver's functions are forbidden there.
bool in_host_call();

}  // namespace simcuda
