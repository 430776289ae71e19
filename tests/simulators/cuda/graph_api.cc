// SPDX-License-Identifier: GPL-3.0-or-later
//
// The driver's functions on graphs.
#include <algorithm>

#include "book.h"
#include "capture.h"
#include "graph.h"

using namespace simcuda;

namespace {

CUresult nodes_of(const CUgraphNode* handles, std::size_t count, const Graph& graph,
                  std::vector<Node*>& nodes) {
  if (count != 0 && handles == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (std::size_t i = 0; i < count; ++i) {
    Node* node = alive<Node>(handles[i]);
    if (node == nullptr || node->graph != &graph) return CUDA_ERROR_INVALID_VALUE;
    nodes.push_back(node);
  }
  return CUDA_SUCCESS;
}

CUresult add(CUgraphNode* made, CUgraph handle, const CUgraphNode* after, std::size_t count,
             Operation operation) {
  if (const CUresult error = Driver::get().usable()) return error;
  Graph* graph = alive<Graph>(handle);
  std::vector<Node*> before;
  if (made == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = nodes_of(after, count, *graph, before)) return error;
  *made = reinterpret_cast<CUgraphNode>(graph->add(std::move(operation), std::move(before)));
  return CUDA_SUCCESS;
}

// A node's operation of one type, if that is what it has.
template <class Kind>
Kind* operation_of(CUgraphNode handle) {
  Node* node = alive<Node>(handle);
  return node != nullptr ? std::get_if<Kind>(&node->operation) : nullptr;
}

// The same node in an executable graph.
template <class Kind>
Kind* operation_in(CUgraphExec exec_handle, CUgraphNode handle) {
  const Exec* exec = alive<Exec>(exec_handle);
  const Node* node = alive<Node>(handle);
  if (exec == nullptr || node == nullptr) return nullptr;
  Node* copy = exec->graph->by_id(node->id);
  return copy != nullptr ? std::get_if<Kind>(&copy->operation) : nullptr;
}

template <class Kind>
CUresult replace(Kind* operation, const Kind& with) {
  if (operation == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *operation = with;
  return CUDA_SUCCESS;
}

CUresult launch_from(const CUDA_KERNEL_NODE_PARAMS* from, Launch& launch) {
  if (from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUfunction function = from->func != nullptr ? from->func : reinterpret_cast<CUfunction>(from->kern);
  return describe_launch(function, {from->gridDimX, from->gridDimY, from->gridDimZ},
                         {from->blockDimX, from->blockDimY, from->blockDimZ}, from->sharedMemBytes,
                         from->kernelParams, from->extra, Keep::kParameters, launch);
}

Fill fill_from(const CUDA_MEMSET_NODE_PARAMS& from) {
  return {from.dst, from.pitch, from.value, from.elementSize, from.width, from.height};
}

// The protocol of the graph's lists: without an array the count is told, with one it is filled.
CUresult list(const std::vector<Node*>& found, CUgraphNode* nodes, std::size_t* count) {
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (nodes != nullptr) {
    for (std::size_t i = 0; i < *count; ++i) {
      nodes[i] = i < found.size() ? reinterpret_cast<CUgraphNode>(found[i]) : nullptr;
    }
    *count = std::min(*count, found.size());
  } else {
    *count = found.size();
  }
  return CUDA_SUCCESS;
}

std::vector<std::pair<Node*, Node*>> edges_of(const Graph& graph) {
  std::vector<std::pair<Node*, Node*>> edges;
  for (const auto& node : graph.nodes) {
    for (Node* before : node->after) edges.emplace_back(before, node.get());
  }
  return edges;
}

CUresult change_edges(CUgraph handle, const CUgraphNode* from, const CUgraphNode* to, std::size_t count,
                      bool present) {
  Graph* graph = alive<Graph>(handle);
  std::vector<Node*> first;
  std::vector<Node*> second;
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = nodes_of(from, count, *graph, first)) return error;
  if (const CUresult error = nodes_of(to, count, *graph, second)) return error;
  for (std::size_t i = 0; i < count; ++i) {
    auto& after = second[i]->after;
    const auto at = std::find(after.begin(), after.end(), first[i]);
    if ((at != after.end()) == present || first[i] == second[i]) return CUDA_ERROR_INVALID_VALUE;
    if (present) after.push_back(first[i]);
    else after.erase(at);
  }
  return CUDA_SUCCESS;
}

CUresult instantiate(CUgraphExec* handle, CUgraph from, unsigned long long flags) {
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  const Graph* graph = alive<Graph>(from);
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto exec = std::make_unique<Exec>();
  exec->graph = clone(*graph);
  exec->flags = flags;
  if (!in_order(*exec->graph, exec->order)) return CUDA_ERROR_INVALID_VALUE;
  *handle = reinterpret_cast<CUgraphExec>(exec.release());
  return CUDA_SUCCESS;
}

CUresult launch_graph(CUgraphExec handle, CUstream on, NullStream null) {
  Stream* stream = nullptr;
  if (const CUresult error = stream_of(on, null, stream)) return error;
  const Exec* exec = alive<Exec>(handle);
  if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (capturing()) {
    bool handled = false;
    Operation child = Child{std::shared_ptr<Graph>(clone(*exec->graph))};
    const CUresult result = capture_operation(child, *stream, nullptr, handled);
    if (handled) return result;
  }
  return launch(*exec, *stream);
}

}  // namespace

SIM_EXPORT CUresult cuGraphCreate(CUgraph* graph, unsigned flags) {
  if (graph == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  *graph = reinterpret_cast<CUgraph>(new Graph);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphDestroy(CUgraph handle) {
  Graph* graph = alive<Graph>(handle);
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  delete graph;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphClone(CUgraph* copy, CUgraph original) {
  const Graph* graph = alive<Graph>(original);
  if (copy == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *copy = reinterpret_cast<CUgraph>(clone(*graph).release());
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphNodeFindInClone(CUgraphNode* found, CUgraphNode original, CUgraph copy) {
  const Node* node = alive<Node>(original);
  const Graph* graph = alive<Graph>(copy);
  if (found == nullptr || node == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *found = reinterpret_cast<CUgraphNode>(graph->by_id(node->id));
  return *found != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphDestroyNode(CUgraphNode handle) {
  Node* node = alive<Node>(handle);
  if (node == nullptr) return CUDA_ERROR_INVALID_VALUE;
  node->graph->remove(node);
  return CUDA_SUCCESS;
}

// --- nodes -------------------------------------------------------------------------------------

SIM_EXPORT CUresult cuGraphAddEmptyNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                        std::size_t count) {
  return add(made, graph, after, count, Empty{});
}

SIM_EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                            std::size_t count, const CUDA_KERNEL_NODE_PARAMS* how) {
  Launch launch;
  if (const CUresult error = launch_from(how, launch)) return error;
  return add(made, graph, after, count, std::move(launch));
}

SIM_EXPORT CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS* how) {
  Launch* launch = operation_of<Launch>(handle);
  if (launch == nullptr || how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Node& node = *alive<Node>(handle);
  node.parameter_places.clear();
  for (const sim::Parameter& parameter : launch->function->kernel.parameters) {
    node.parameter_places.push_back(launch->parameters.data() + parameter.offset);
  }
  *how = {};
  how->func = reinterpret_cast<CUfunction>(launch->function);
  how->gridDimX = launch->grid[0];
  how->gridDimY = launch->grid[1];
  how->gridDimZ = launch->grid[2];
  how->blockDimX = launch->block[0];
  how->blockDimY = launch->block[1];
  how->blockDimZ = launch->block[2];
  how->sharedMemBytes = launch->shared_bytes;
  how->kernelParams = node.parameter_places.data();
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS* how) {
  Launch launch;
  if (const CUresult error = launch_from(how, launch)) return error;
  return replace(operation_of<Launch>(node), launch);
}

SIM_EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                      const CUDA_KERNEL_NODE_PARAMS* how) {
  Launch launch;
  if (const CUresult error = launch_from(how, launch)) return error;
  return replace(operation_in<Launch>(exec, node), launch);
}

// The parameters' first version ends before `kern`, so it is a prefix of the second.
#define FIRST_VERSION(from)                                             \
  CUDA_KERNEL_NODE_PARAMS whole{};                                      \
  if ((from) == nullptr) return CUDA_ERROR_INVALID_VALUE;               \
  std::copy_n(reinterpret_cast<const unsigned char*>(from),             \
              sizeof(CUDA_KERNEL_NODE_PARAMS_v1), reinterpret_cast<unsigned char*>(&whole));

#undef cuGraphAddKernelNode
SIM_EXPORT CUresult cuGraphAddKernelNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                         std::size_t count, const CUDA_KERNEL_NODE_PARAMS_v1* how) {
  FIRST_VERSION(how)
  return cuGraphAddKernelNode_v2(made, graph, after, count, &whole);
}

#undef cuGraphKernelNodeSetParams
SIM_EXPORT CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1* how) {
  FIRST_VERSION(how)
  return cuGraphKernelNodeSetParams_v2(node, &whole);
}

#undef cuGraphExecKernelNodeSetParams
SIM_EXPORT CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                   const CUDA_KERNEL_NODE_PARAMS_v1* how) {
  FIRST_VERSION(how)
  return cuGraphExecKernelNodeSetParams_v2(exec, node, &whole);
}

#undef cuGraphKernelNodeGetParams
SIM_EXPORT CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1* how) {
  CUDA_KERNEL_NODE_PARAMS whole{};
  if (how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = cuGraphKernelNodeGetParams_v2(node, &whole)) return error;
  std::copy_n(reinterpret_cast<const unsigned char*>(&whole), sizeof(*how),
              reinterpret_cast<unsigned char*>(how));
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphAddMemcpyNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                         std::size_t count, const CUDA_MEMCPY3D* copy, CUcontext) {
  if (copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = check(*copy)) return error;
  return add(made, graph, after, count, *copy);
}

SIM_EXPORT CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* copy) {
  const Copy* found = operation_of<Copy>(node);
  if (found == nullptr || copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *copy = *found;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D* copy) {
  if (copy == nullptr || check(*copy) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  return replace(operation_of<Copy>(node), *copy);
}

SIM_EXPORT CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                   const CUDA_MEMCPY3D* copy, CUcontext) {
  if (copy == nullptr || check(*copy) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  return replace(operation_in<Copy>(exec, node), *copy);
}

SIM_EXPORT CUresult cuGraphAddMemsetNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                         std::size_t count, const CUDA_MEMSET_NODE_PARAMS* how, CUcontext) {
  if (how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = check(fill_from(*how))) return error;
  return add(made, graph, after, count, fill_from(*how));
}

SIM_EXPORT CUresult cuGraphMemsetNodeSetParams(CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS* how) {
  if (how == nullptr || check(fill_from(*how)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  return replace(operation_of<Fill>(node), fill_from(*how));
}

SIM_EXPORT CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                   const CUDA_MEMSET_NODE_PARAMS* how, CUcontext) {
  if (how == nullptr || check(fill_from(*how)) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  return replace(operation_in<Fill>(exec, node), fill_from(*how));
}

SIM_EXPORT CUresult cuGraphAddHostNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                       std::size_t count, const CUDA_HOST_NODE_PARAMS* how) {
  if (how == nullptr || how->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add(made, graph, after, count, HostCall{how->fn, how->userData});
}

SIM_EXPORT CUresult cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_HOST_NODE_PARAMS* how) {
  if (how == nullptr || how->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return replace(operation_in<HostCall>(exec, node), HostCall{how->fn, how->userData});
}

SIM_EXPORT CUresult cuGraphAddEventRecordNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                              std::size_t count, CUevent handle) {
  Event* event = alive<Event>(handle);
  return event != nullptr ? add(made, graph, after, count, Record{event}) : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphAddEventWaitNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                            std::size_t count, CUevent handle) {
  Event* event = alive<Event>(handle);
  return event != nullptr ? add(made, graph, after, count, Await{event}) : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                             std::size_t count, CUgraph handle) {
  const Graph* child = alive<Graph>(handle);
  if (child == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return add(made, graph, after, count, Child{std::shared_ptr<Graph>(clone(*child))});
}

SIM_EXPORT CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph* graph) {
  const Child* child = operation_of<Child>(node);
  if (child == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *graph = reinterpret_cast<CUgraph>(child->graph.get());
  return CUDA_SUCCESS;
}

// The address is known from now on; the card's memory is taken when the graph runs.
SIM_EXPORT CUresult cuGraphAddMemAllocNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                           std::size_t count, CUDA_MEM_ALLOC_NODE_PARAMS* how) {
  if (how == nullptr || how->bytesize == 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  Device* device = Driver::get().device(how->poolProps.location.id);
  if (device == nullptr || alive<Graph>(graph) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult error = book().allocate(*device, how->bytesize, Kind::kGraph, nullptr, how->dptr);
  if (error != CUDA_SUCCESS) return error;
  return add(made, graph, after, count, Take{how->dptr, how->bytesize});
}

SIM_EXPORT CUresult cuGraphAddMemFreeNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                          std::size_t count, CUdeviceptr address) {
  Allocation allocation;
  if (!book().find(address, allocation) || allocation.kind != Kind::kGraph) return CUDA_ERROR_INVALID_VALUE;
  return add(made, graph, after, count, Return{address});
}

// --- what a graph holds ------------------------------------------------------------------------

SIM_EXPORT CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* type) {
  const Node* node = alive<Node>(handle);
  if (node == nullptr || type == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *type = type_of(node->operation);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, std::size_t* count) {
  const Graph* graph = alive<Graph>(handle);
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::vector<Node*> all;
  for (const auto& node : graph->nodes) all.push_back(node.get());
  return list(all, nodes, count);
}

SIM_EXPORT CUresult cuGraphGetRootNodes(CUgraph handle, CUgraphNode* nodes, std::size_t* count) {
  const Graph* graph = alive<Graph>(handle);
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::vector<Node*> roots;
  for (const auto& node : graph->nodes) {
    if (node->after.empty()) roots.push_back(node.get());
  }
  return list(roots, nodes, count);
}

SIM_EXPORT CUresult cuGraphGetEdges(CUgraph handle, CUgraphNode* from, CUgraphNode* to, std::size_t* count) {
  const Graph* graph = alive<Graph>(handle);
  if (graph == nullptr || count == nullptr || (from == nullptr) != (to == nullptr)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::vector<Node*> first;
  std::vector<Node*> second;
  for (const auto& [before, after] : edges_of(*graph)) {
    first.push_back(before);
    second.push_back(after);
  }
  std::size_t room = *count;
  list(first, from, &room);
  return list(second, to, count);
}

SIM_EXPORT CUresult cuGraphNodeGetDependencies(CUgraphNode handle, CUgraphNode* nodes, std::size_t* count) {
  const Node* node = alive<Node>(handle);
  return node != nullptr ? list(node->after, nodes, count) : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphNodeGetDependentNodes(CUgraphNode handle, CUgraphNode* nodes, std::size_t* count) {
  Node* node = alive<Node>(handle);
  if (node == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::vector<Node*> found;
  for (const auto& [before, after] : edges_of(*node->graph)) {
    if (before == node) found.push_back(after);
  }
  return list(found, nodes, count);
}

SIM_EXPORT CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                           std::size_t count) {
  return change_edges(graph, from, to, count, true);
}

SIM_EXPORT CUresult cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode* from,
                                              const CUgraphNode* to, std::size_t count) {
  return change_edges(graph, from, to, count, false);
}

// --- running it --------------------------------------------------------------------------------

SIM_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
  return instantiate(exec, graph, flags);
}

#undef cuGraphInstantiate
SIM_EXPORT CUresult cuGraphInstantiate(CUgraphExec* exec, CUgraph graph, CUgraphNode* error, char*,
                                       std::size_t) {
  if (error != nullptr) *error = nullptr;
  return instantiate(exec, graph, 0);
}

SIM_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec* exec, CUgraph graph, CUgraphNode* error,
                                          char* text, std::size_t size) {
  return cuGraphInstantiate(exec, graph, error, text, size);
}

#define LAUNCH(suffix, null)                                                                         \
  SIM_EXPORT CUresult cuGraphInstantiateWithParams##suffix(CUgraphExec* exec, CUgraph graph,         \
                                                          CUDA_GRAPH_INSTANTIATE_PARAMS* how) {     \
    if (how == nullptr) return CUDA_ERROR_INVALID_VALUE;                                             \
    const CUresult result = instantiate(exec, graph, how->flags);                                    \
    how->hErrNode_out = nullptr;                                                                     \
    how->result_out = result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS                        \
                                             : CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;             \
    return result;                                                                                   \
  }                                                                                                  \
  SIM_EXPORT CUresult cuGraphUpload##suffix(CUgraphExec exec, CUstream on) {                         \
    Stream* stream = nullptr;                                                                        \
    if (const CUresult error = stream_of(on, null, stream)) return error;                            \
    return alive<Exec>(exec) != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;                   \
  }                                                                                                  \
  SIM_EXPORT CUresult cuGraphLaunch##suffix(CUgraphExec exec, CUstream on) {                         \
    return launch_graph(exec, on, null);                                                             \
  }
LAUNCH(, NullStream::kLegacy)
LAUNCH(_ptsz, NullStream::kPerThread)

SIM_EXPORT CUresult cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t* flags) {
  const Exec* exec = alive<Exec>(handle);
  if (exec == nullptr || flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *flags = exec->flags;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphExecDestroy(CUgraphExec handle) {
  Exec* exec = alive<Exec>(handle);
  if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
  exec->magic = 0;
  delete exec;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphNodeSetEnabled(CUgraphExec handle, CUgraphNode which, unsigned enabled) {
  const Exec* exec = alive<Exec>(handle);
  const Node* node = alive<Node>(which);
  if (exec == nullptr || node == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Node* copy = exec->graph->by_id(node->id);
  if (copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUgraphNodeType type = type_of(copy->operation);
  if (type > CU_GRAPH_NODE_TYPE_MEMSET) return CUDA_ERROR_INVALID_VALUE;
  copy->enabled = enabled != 0;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph with,
                                         CUgraphExecUpdateResultInfo* told) {
  Exec* exec = alive<Exec>(handle);
  const Graph* graph = alive<Graph>(with);
  if (exec == nullptr || graph == nullptr || told == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const Node* where = nullptr;
  *told = {};
  told->result = compare(*exec->graph, *graph, where);
  told->errorNode = reinterpret_cast<CUgraphNode>(const_cast<Node*>(where));
  if (told->result != CU_GRAPH_EXEC_UPDATE_SUCCESS) return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
  // The graph's nodes go by the names that the first graph's have.
  auto changed = clone(*graph);
  for (std::size_t i = 0; i < changed->nodes.size(); ++i) {
    changed->nodes[i]->id = exec->graph->nodes[i]->id;
  }
  exec->graph = std::move(changed);
  in_order(*exec->graph, exec->order);
  return CUDA_SUCCESS;
}

#undef cuGraphExecUpdate
SIM_EXPORT CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph with, CUgraphNode* where,
                                      CUgraphExecUpdateResult* result) {
  CUgraphExecUpdateResultInfo told{};
  if (result == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult error = cuGraphExecUpdate_v2(exec, with, &told);
  *result = told.result;
  if (where != nullptr) *where = told.errorNode;
  return error;
}

SIM_EXPORT CUresult cuDeviceGraphMemTrim(CUdevice ordinal) {
  if (const CUresult error = Driver::get().usable()) return error;
  Device* device = Driver::get().device(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  graph_pool(*device).trim(0);
  return CUDA_SUCCESS;
}
