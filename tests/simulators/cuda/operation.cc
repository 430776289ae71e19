// SPDX-License-Identifier: GPL-3.0-or-later
#include "operation.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <thread>

#include <unistd.h>

#include "array.h"
#include "book.h"
#include "capture.h"
#include "graph.h"
#include "shared_event.h"

namespace simcuda {
namespace {

// A fill may name all of a card's memory; this much of it is really written.
constexpr std::size_t kWrittenByFill = 64 << 20;

bool sound_shape(const unsigned (&grid)[3], const unsigned (&block)[3]) {
  const std::uint64_t threads = static_cast<std::uint64_t>(block[0]) * block[1] * block[2];
  return grid[0] != 0 && grid[1] != 0 && grid[2] != 0 && grid[0] <= 2147483647u && grid[1] <= 65535 &&
         grid[2] <= 65535 && threads != 0 && block[0] <= 1024 && block[1] <= 1024 && block[2] <= 64 &&
         threads <= 1024;
}

CUresult arguments_of(void** parameters, void** extra, sim::Arguments& arguments) {
  arguments.each = parameters;
  if (extra == nullptr) return CUDA_SUCCESS;
  if (parameters != nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) arguments.packed = extra[1];
    else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) arguments.packed_size = *static_cast<std::size_t*>(extra[1]);
    else return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

std::vector<unsigned char> packed(const sim::Kernel& kernel, const sim::Arguments& arguments) {
  if (kernel.parameters.empty()) return {};
  std::vector<unsigned char> bytes(kernel.parameters.back().offset + kernel.parameters.back().size);
  if (arguments.packed != nullptr) {
    std::memcpy(bytes.data(), arguments.packed, std::min(bytes.size(), arguments.packed_size));
    return bytes;
  }
  for (std::size_t i = 0; i < kernel.parameters.size(); ++i) {
    const sim::Parameter& parameter = kernel.parameters[i];
    std::memcpy(bytes.data() + parameter.offset, arguments.each[i], parameter.size);
  }
  return bytes;
}

// One end of a copy as addresses: a row, the step to the next row, the step to the next slice.
struct End {
  unsigned char* at;
  std::size_t row, slice;
};

End end_of(CUmemorytype type, const void* host, CUdeviceptr device, CUarray array, std::size_t pitch,
           std::size_t height, std::size_t x, std::size_t y, std::size_t z, const Copy& copy) {
  End end{};
  if (type == CU_MEMORYTYPE_ARRAY) {
    const Array* found = alive<Array>(array);
    end = {reinterpret_cast<unsigned char*>(found->address), found->row_bytes(),
           found->row_bytes() * found->rows()};
  } else {
    const bool on_host = type == CU_MEMORYTYPE_HOST;
    const void* address = on_host ? host : reinterpret_cast<const void*>(device);
    end.at = static_cast<unsigned char*>(const_cast<void*>(address));
    end.row = pitch != 0 ? pitch : copy.WidthInBytes;
    end.slice = end.row * (height != 0 ? height : copy.Height);
  }
  end.at += x + y * end.row + z * end.slice;
  return end;
}

End destination(const Copy& copy) {
  return end_of(copy.dstMemoryType, copy.dstHost, copy.dstDevice, copy.dstArray, copy.dstPitch,
                copy.dstHeight, copy.dstXInBytes, copy.dstY, copy.dstZ, copy);
}

End source(const Copy& copy) {
  return end_of(copy.srcMemoryType, copy.srcHost, copy.srcDevice, copy.srcArray, copy.srcPitch,
                copy.srcHeight, copy.srcXInBytes, copy.srcY, copy.srcZ, copy);
}

bool sound_end(CUmemorytype type, CUarray array, const End& end, const Copy& copy) {
  const std::size_t bytes =
      (copy.Depth - 1) * end.slice + (copy.Height - 1) * end.row + copy.WidthInBytes;
  switch (type) {
    case CU_MEMORYTYPE_HOST: return end.at != nullptr && end.row >= copy.WidthInBytes;
    case CU_MEMORYTYPE_DEVICE:
      return end.row >= copy.WidthInBytes && book().covers(reinterpret_cast<CUdeviceptr>(end.at), bytes);
    case CU_MEMORYTYPE_UNIFIED: return end.at != nullptr;
    case CU_MEMORYTYPE_ARRAY: {
      const Array* found = alive<Array>(array);
      return !found->deferred() && reinterpret_cast<CUdeviceptr>(end.at) + bytes <= found->address + found->bytes();
    }
  }
  return false;
}

bool wait_step(const CUstreamBatchMemOpParams& step) {
  return step.operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 || step.operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
}

bool write_step(const CUstreamBatchMemOpParams& step) {
  return step.operation == CU_STREAM_MEM_OP_WRITE_VALUE_32 || step.operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
}

template <class Word, class Signed>
bool fulfilled(CUdeviceptr address, Word wanted, unsigned flags) {
  const Word found = __atomic_load_n(reinterpret_cast<const Word*>(address), __ATOMIC_ACQUIRE);
  switch (flags & ~CU_STREAM_WAIT_VALUE_FLUSH) {
    case CU_STREAM_WAIT_VALUE_EQ: return found == wanted;
    case CU_STREAM_WAIT_VALUE_AND: return (found & wanted) != 0;
    case CU_STREAM_WAIT_VALUE_NOR: return static_cast<Word>(~(found | wanted)) != 0;
    default: return static_cast<Signed>(found - wanted) >= 0;
  }
}

bool fulfilled(const CUstreamBatchMemOpParams& step) {
  const auto& wait = step.waitValue;
  return wait.operation == CU_STREAM_MEM_OP_WAIT_VALUE_32
             ? fulfilled<std::uint32_t, std::int32_t>(wait.address, wait.value, wait.flags)
             : fulfilled<std::uint64_t, std::int64_t>(wait.address, wait.value64, wait.flags);
}

void write(const CUstreamBatchMemOpParams& step) {
  const auto& value = step.writeValue;
  if (value.operation == CU_STREAM_MEM_OP_WRITE_VALUE_32) {
    __atomic_store_n(reinterpret_cast<std::uint32_t*>(value.address), value.value, __ATOMIC_RELEASE);
  } else if (value.operation == CU_STREAM_MEM_OP_WRITE_VALUE_64) {
    __atomic_store_n(reinterpret_cast<std::uint64_t*>(value.address), value.value64, __ATOMIC_RELEASE);
  }
}

// What the host does in a stream's place: functions of the application's, values that are written and waited
// for. One thread for all of it, which sleeps unless there is some.
class HostCalls {
 public:
  static HostCalls& get() {
    static HostCalls* const only = new HostCalls;
    return *only;
  }

  void add(Device& device, std::uint64_t gate, const HostCall& call, std::vector<CUstreamBatchMemOpParams> steps) {
    const std::lock_guard<std::mutex> held(lock_);
    if (!started_) {
      std::thread([this] { serve(); }).detach();
      started_ = true;
    }
    waiting_.push_back({&device, gate, call, std::move(steps)});
    changed_.notify_one();
  }

  static thread_local bool inside;

 private:
  struct Waiting {
    Device* device;
    std::uint64_t gate;
    HostCall call;
    std::vector<CUstreamBatchMemOpParams> steps;
  };

  [[noreturn]] void serve() {
    while (true) {
      std::unique_lock<std::mutex> held(lock_);
      changed_.wait(held, [this] { return !waiting_.empty(); });
      Waiting next = std::move(waiting_.front());
      waiting_.pop_front();
      held.unlock();
      next.device->wait(next.gate);
      for (const auto& step : next.steps) carry_out(step);
      if (next.call.function != nullptr) call_apart(next.call);
      next.device->open(next.gate);
    }
  }

  // Other streams' writes would come behind a wait in the one queue, although nothing there says so: while a
  // value is waited for they are made at once, or the wait might never end.
  void carry_out(const CUstreamBatchMemOpParams& step) {
    if (!wait_step(step)) return write(step);
    for (unsigned pause_us = 20; !fulfilled(step); pause_us = std::min(pause_us * 2, 1000u)) {
      {
        const std::lock_guard<std::mutex> held(lock_);
        for (Waiting& behind : waiting_) write_ahead(behind);
      }
      usleep(pause_us);
    }
  }

  static void write_ahead(Waiting& behind) {
    const auto wait = std::find_if(behind.steps.begin(), behind.steps.end(), wait_step);
    std::for_each(behind.steps.begin(), wait, write);
    behind.steps.erase(behind.steps.begin(), wait);
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<Waiting> waiting_;
  bool started_ = false;
};
thread_local bool HostCalls::inside = false;

struct Performer {
  Stream& stream;
  Device& device;

  CUresult mark() {
    device.submit(sim::ItemKind::kMark, 0, stream);
    return CUDA_SUCCESS;
  }
  CUresult operator()(const Empty&) { return CUDA_SUCCESS; }
  CUresult operator()(const Launch& launch) {
    if (book().any_managed()) touch(launch);
    device.submit(sim::ItemKind::kWork, launch.duration_ns, stream);
    return CUDA_SUCCESS;
  }
  CUresult operator()(const Copy& copy) {
    carry_out(copy);
    return mark();
  }
  CUresult operator()(const Fill& fill) {
    carry_out(fill);
    return mark();
  }
  CUresult operator()(const HostCall& call) {
    queue_host_call(call, stream);
    return CUDA_SUCCESS;
  }
  CUresult operator()(const Record& record) {
    device.record(*record.event, stream);
    return CUDA_SUCCESS;
  }
  // An event can only have been recorded before, and a process' items run in the order of their
  // submission, so whatever the stream gets from now on waits for it anyway. The mark makes the
  // stream's own completion wait too.
  CUresult operator()(const Await& await) {
    const Event& event = *await.event;
    if (event.shared != nullptr) return await_shared(*event.shared, stream);
    if (!event.recorded) return CUDA_SUCCESS;
    if (event.context->device == &device) return mark();
    event.context->device->wait(event.item + 1);
    return CUDA_SUCCESS;
  }
  CUresult operator()(const Take& take) {
    if (const CUresult error = book().set_graph_resident(take.address, true)) return error;
    return mark();
  }
  CUresult operator()(const Return& back) {
    if (const CUresult error = book().set_graph_resident(back.address, false)) return error;
    return mark();
  }
  CUresult operator()(const Child& child) {
    std::vector<Node*> order;
    in_order(*child.graph, order);
    for (const Node* node : order) {
      if (!node->enabled) continue;
      if (const CUresult error = std::visit(*this, node->operation)) return error;
    }
    return CUDA_SUCCESS;
  }

  CUresult operator()(const Values& values) {
    HostCalls::get().add(device, device.submit(sim::ItemKind::kGate, 0, stream), {}, values.steps);
    return CUDA_SUCCESS;
  }

  // A kernel touches the managed memory that it gets a pointer to.
  static void touch(const Launch& launch) {
    if (launch.parameters.empty()) return;
    for (const sim::Parameter& parameter : launch.function->kernel.parameters) {
      if (parameter.size != sizeof(CUdeviceptr)) continue;
      CUdeviceptr address = 0;
      std::memcpy(&address, launch.parameters.data() + parameter.offset, sizeof(address));
      book().move(address, true);
    }
  }
};

}  // namespace

CUresult describe_launch(CUfunction handle, const unsigned (&grid)[3], const unsigned (&block)[3],
                         unsigned shared_bytes, void** parameters, void** extra, Keep keep,
                         Launch& launch) {
  Function* function = alive<Function>(handle);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!sound_shape(grid, block)) return CUDA_ERROR_INVALID_VALUE;
  sim::Arguments arguments;
  if (const CUresult error = arguments_of(parameters, extra, arguments)) return error;
  const bool given = arguments.each != nullptr || arguments.packed != nullptr;
  if (!function->kernel.parameters.empty() && !given) return CUDA_ERROR_INVALID_VALUE;
  launch.function = function;
  launch.grid = {grid[0], grid[1], grid[2]};
  launch.block = {block[0], block[1], block[2]};
  launch.shared_bytes = shared_bytes;
  if (keep == Keep::kParameters) launch.parameters = packed(function->kernel, arguments);
  Context* context = function->context();
  if (context == nullptr) {
    if (const CUresult error = current(context)) return error;
  }
  launch.duration_ns =
      sim::duration_ns(function->kernel, arguments, context->device->default_kernel_ns());
  return CUDA_SUCCESS;
}

Copy linear_copy(void* to, const void* from, std::size_t bytes, bool to_card, bool from_card) {
  Copy copy{};
  copy.dstMemoryType = to_card ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  copy.srcMemoryType = from_card ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  copy.dstHost = to;
  copy.srcHost = from;
  copy.dstDevice = reinterpret_cast<CUdeviceptr>(to);
  copy.srcDevice = reinterpret_cast<CUdeviceptr>(from);
  copy.WidthInBytes = bytes;
  copy.Height = copy.Depth = 1;
  return copy;
}

CUresult check(const Copy& copy) {
  for (const auto& [type, array] : {std::pair{copy.dstMemoryType, copy.dstArray},
                                    std::pair{copy.srcMemoryType, copy.srcArray}}) {
    if (type == CU_MEMORYTYPE_ARRAY && alive<Array>(array) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  }
  if (copy.WidthInBytes == 0 || copy.Height == 0 || copy.Depth == 0) return CUDA_SUCCESS;
  const bool sound = sound_end(copy.dstMemoryType, copy.dstArray, destination(copy), copy) &&
                     sound_end(copy.srcMemoryType, copy.srcArray, source(copy), copy);
  return sound ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult check(const Fill& fill) {
  const bool width = fill.width == 1 || fill.width == 2 || fill.width == 4;
  if (!width || fill.to % fill.width != 0 || fill.rows == 0) return CUDA_ERROR_INVALID_VALUE;
  const std::size_t bytes = (fill.rows - 1) * fill.pitch + fill.count * fill.width;
  return book().covers(fill.to, bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult check(const Values& values) {
  if (values.steps.empty() || values.steps.size() > 256) return CUDA_ERROR_INVALID_VALUE;
  for (const auto& step : values.steps) {
    const bool wide = step.operation == CU_STREAM_MEM_OP_WAIT_VALUE_64 || step.operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
    const std::size_t width = wide ? sizeof(std::uint64_t) : sizeof(std::uint32_t);
    if (!wait_step(step) && !write_step(step)) {
      const bool barrier = step.operation == CU_STREAM_MEM_OP_BARRIER ||
                           step.operation == CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES;
      if (!barrier) return CUDA_ERROR_INVALID_VALUE;
    } else if (step.waitValue.address % width != 0 || !book().covers(step.waitValue.address, width)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return CUDA_SUCCESS;
}

void carry_out(const Copy& copy) {
  const End to = destination(copy);
  const End from = source(copy);
  for (std::size_t z = 0; z < copy.Depth; ++z) {
    for (std::size_t y = 0; y < copy.Height; ++y) {
      std::memmove(to.at + z * to.slice + y * to.row, from.at + z * from.slice + y * from.row,
                   copy.WidthInBytes);
    }
  }
}

void carry_out(const Fill& fill) {
  std::size_t left = kWrittenByFill / fill.width;
  for (std::size_t row = 0; row < fill.rows && left != 0; ++row) {
    auto* at = reinterpret_cast<unsigned char*>(fill.to + row * fill.pitch);
    const std::size_t written = std::min(fill.count, left);
    for (std::size_t i = 0; i < written; ++i) std::memcpy(at + i * fill.width, &fill.value, fill.width);
    left -= written;
  }
}

CUresult wait_for_stream(Stream& stream) {
  if (const CUresult error = legal_to_wait(stream)) return error;
  if (const CUresult error = unsafe_while_capturing()) return error;
  stream.context->device->wait(bound_of(stream));
  return CUDA_SUCCESS;
}

CUresult copy_now(const Copy& copy, Stream& stream) {
  if (const CUresult error = wait_for_stream(stream)) return error;
  carry_out(copy);
  return CUDA_SUCCESS;
}

void queue_host_call(const HostCall& call, Stream& stream) {
  Device& device = *stream.context->device;
  HostCalls::get().add(device, device.submit(sim::ItemKind::kGate, 0, stream), call, {});
}

void call_apart(const HostCall& call) {
  const bool before = HostCalls::inside;
  HostCalls::inside = true;
  call.function(call.data);
  HostCalls::inside = before;
}

bool in_host_call() { return HostCalls::inside; }

CUresult perform(const Operation& operation, Stream& stream) {
  return std::visit(Performer{stream, *stream.context->device}, operation);
}

CUresult enqueue(Operation operation, Stream& stream) {
  if (capturing()) {
    bool handled = false;
    const CUresult result = capture_operation(operation, stream, nullptr, handled);
    if (handled) return result;
  }
  return perform(operation, stream);
}

}  // namespace simcuda
