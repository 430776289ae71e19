// SPDX-License-Identifier: GPL-3.0-or-later
//
// Batch memory operations: a stream writes values, and waits for them.
#include "graph_api.h"

using namespace simcuda;

namespace {

CUresult in_stream(CUstream on, NullStream null, unsigned count, const CUstreamBatchMemOpParams* steps,
                   unsigned flags) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  if (steps == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  Values values{{steps, steps + count}};
  if (const CUresult error = check(values)) return error;
  return enqueue(std::move(values), *stream);
}

CUresult one(CUstream on, NullStream null, CUstreamBatchMemOpType what, CUdeviceptr address, cuuint64_t value,
             unsigned flags) {
  CUstreamBatchMemOpParams step{};
  step.waitValue.operation = what;
  step.waitValue.address = address;
  step.waitValue.value64 = value;
  step.waitValue.flags = flags;
  return in_stream(on, null, 1, &step, 0);
}

CUresult values_from(const CUDA_BATCH_MEM_OP_NODE_PARAMS* how, Values& values) {
  if (how == nullptr || how->paramArray == nullptr || how->flags != 0) return CUDA_ERROR_INVALID_VALUE;
  values.steps.assign(how->paramArray, how->paramArray + how->count);
  return check(values);
}

}  // namespace

#undef cuStreamWaitValue32
#undef cuStreamWaitValue64
#undef cuStreamWriteValue32
#undef cuStreamWriteValue64
#undef cuStreamBatchMemOp
#define VALUES(suffix, null)                                                                         \
  SIM_EXPORT CUresult cuStreamWaitValue32##suffix(CUstream on, CUdeviceptr address, cuuint32_t value, \
                                                 unsigned flags) {                                  \
    return one(on, null, CU_STREAM_MEM_OP_WAIT_VALUE_32, address, value, flags);                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamWaitValue64##suffix(CUstream on, CUdeviceptr address, cuuint64_t value, \
                                                 unsigned flags) {                                  \
    return one(on, null, CU_STREAM_MEM_OP_WAIT_VALUE_64, address, value, flags);                     \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamWriteValue32##suffix(CUstream on, CUdeviceptr address, cuuint32_t value, \
                                                  unsigned flags) {                                 \
    return one(on, null, CU_STREAM_MEM_OP_WRITE_VALUE_32, address, value, flags);                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamWriteValue64##suffix(CUstream on, CUdeviceptr address, cuuint64_t value, \
                                                  unsigned flags) {                                 \
    return one(on, null, CU_STREAM_MEM_OP_WRITE_VALUE_64, address, value, flags);                    \
  }                                                                                                  \
  SIM_EXPORT CUresult cuStreamBatchMemOp##suffix(CUstream on, unsigned count,                        \
                                                CUstreamBatchMemOpParams* steps, unsigned flags) {  \
    return in_stream(on, null, count, steps, flags);                                                 \
  }
VALUES(, NullStream::kLegacy)
VALUES(_ptsz, NullStream::kPerThread)
VALUES(_v2, NullStream::kLegacy)
VALUES(_v2_ptsz, NullStream::kPerThread)

SIM_EXPORT CUresult cuGraphAddBatchMemOpNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                             std::size_t count, const CUDA_BATCH_MEM_OP_NODE_PARAMS* how) {
  Values values;
  if (const CUresult error = values_from(how, values)) return error;
  return add_node(made, graph, after, count, std::move(values));
}

SIM_EXPORT CUresult cuGraphBatchMemOpNodeGetParams(CUgraphNode node, CUDA_BATCH_MEM_OP_NODE_PARAMS* how) {
  Values* values = operation_of<Values>(node);
  if (values == nullptr || how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *how = {};
  how->count = static_cast<unsigned>(values->steps.size());
  how->paramArray = values->steps.data();
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphBatchMemOpNodeSetParams(CUgraphNode node, const CUDA_BATCH_MEM_OP_NODE_PARAMS* how) {
  Values values;
  if (const CUresult error = values_from(how, values)) return error;
  return replace(operation_of<Values>(node), values);
}

SIM_EXPORT CUresult cuGraphExecBatchMemOpNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                       const CUDA_BATCH_MEM_OP_NODE_PARAMS* how) {
  Values values;
  if (const CUresult error = values_from(how, values)) return error;
  return replace(operation_in<Values>(exec, node), values);
}
