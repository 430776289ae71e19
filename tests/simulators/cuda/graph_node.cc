// SPDX-License-Identifier: GPL-3.0-or-later
//
// Nodes of any kind by one function, and what each kind can be asked. Edge data is taken and told back as
// zero: every edge here means that one node has ended before the next begins.
#include <algorithm>

#include "graph_api.h"

#include "book.h"

using namespace simcuda;

namespace {

CUresult memory_of(CUDA_MEM_ALLOC_NODE_PARAMS_v2& how, Operation& operation) {
  if (const CUresult error = reserve_for_graph(how.poolProps, how.bytesize, how.dptr)) return error;
  operation = Take{how.dptr, how.bytesize};
  return CUDA_SUCCESS;
}

template <class Kind>
CUresult on_event(CUevent handle, Operation& operation) {
  Event* event = alive<Event>(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  operation = Kind{event};
  return CUDA_SUCCESS;
}

CUresult launch_of(const CUDA_KERNEL_NODE_PARAMS_v3& how, Operation& operation) {
  CUDA_KERNEL_NODE_PARAMS same{};
  static_assert(sizeof(same) == sizeof(how));
  std::copy_n(reinterpret_cast<const unsigned char*>(&how), sizeof(how),
              reinterpret_cast<unsigned char*>(&same));
  Launch launch;
  if (const CUresult error = launch_from(&same, launch)) return error;
  operation = std::move(launch);
  return CUDA_SUCCESS;
}

CUresult copy_of(const CUDA_MEMCPY_NODE_PARAMS& how, Operation& operation) {
  if (how.flags != 0 || check(how.copyParams) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  operation = how.copyParams;
  return CUDA_SUCCESS;
}

CUresult fill_of(const CUDA_MEMSET_NODE_PARAMS_v2& how, Operation& operation) {
  const Fill fill{how.dst, how.pitch, how.value, how.elementSize, how.width, how.height};
  if (check(fill) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  operation = fill;
  return CUDA_SUCCESS;
}

CUresult host_call_of(const CUDA_HOST_NODE_PARAMS_v2& how, Operation& operation) {
  if (how.fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  operation = HostCall{how.fn, how.userData};
  return CUDA_SUCCESS;
}

CUresult child_of(const CUDA_CHILD_GRAPH_NODE_PARAMS& how, Operation& operation) {
  const Graph* child = alive<Graph>(how.graph);
  if (child == nullptr) return CUDA_ERROR_INVALID_VALUE;
  operation = Child{std::shared_ptr<Graph>(clone(*child))};
  return CUDA_SUCCESS;
}

CUresult return_of(const CUDA_MEM_FREE_NODE_PARAMS& how, Operation& operation) {
  if (!of_graph(how.dptr)) return CUDA_ERROR_INVALID_VALUE;
  operation = Return{how.dptr};
  return CUDA_SUCCESS;
}

CUresult values_of(const CUDA_BATCH_MEM_OP_NODE_PARAMS_v2& how, Operation& operation) {
  if (how.paramArray == nullptr || how.flags != 0) return CUDA_ERROR_INVALID_VALUE;
  Values values{{how.paramArray, how.paramArray + how.count}};
  if (const CUresult error = check(values)) return error;
  operation = std::move(values);
  return CUDA_SUCCESS;
}

// What a node with these parameters does; an allocation's parameters get its address.
CUresult operation_from(CUgraphNodeParams& how, Operation& operation) {
  switch (how.type) {
    case CU_GRAPH_NODE_TYPE_EMPTY: operation = Empty{}; return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_KERNEL: return launch_of(how.kernel, operation);
    case CU_GRAPH_NODE_TYPE_MEMCPY: return copy_of(how.memcpy, operation);
    case CU_GRAPH_NODE_TYPE_MEMSET: return fill_of(how.memset, operation);
    case CU_GRAPH_NODE_TYPE_HOST: return host_call_of(how.host, operation);
    case CU_GRAPH_NODE_TYPE_GRAPH: return child_of(how.graph, operation);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD: return on_event<Record>(how.eventRecord.event, operation);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT: return on_event<Await>(how.eventWait.event, operation);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC: return memory_of(how.alloc, operation);
    case CU_GRAPH_NODE_TYPE_MEM_FREE: return return_of(how.free, operation);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: return values_of(how.memOp, operation);
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}

// Parameters may change, what a node is may not; and memory nodes are what they are.
CUresult change(Node* node, CUgraphNodeParams* how) {
  if (node == nullptr || how == nullptr || how->type != type_of(node->operation)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const bool memory =
      how->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || how->type == CU_GRAPH_NODE_TYPE_MEM_FREE;
  return memory ? CUDA_ERROR_NOT_SUPPORTED : operation_from(*how, node->operation);
}

CUresult add(CUgraphNode* made, CUgraph graph, const CUgraphNode* after, std::size_t count,
             CUgraphNodeParams* how) {
  Operation operation;
  // Looked at before anything is reserved for the node.
  if (made == nullptr || how == nullptr || alive<Graph>(graph) == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult error = Driver::get().usable()) return error;
  if (const CUresult error = operation_from(*how, operation)) return error;
  const CUresult error = add_node(made, graph, after, count, operation);
  if (error != CUDA_SUCCESS && how->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) book().release(how->alloc.dptr);
  return error;
}

template <class Kind>
CUresult get_event(CUgraphNode node, CUevent* event) {
  const Kind* found = operation_of<Kind>(node);
  if (found == nullptr || event == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *event = reinterpret_cast<CUevent>(found->event);
  return CUDA_SUCCESS;
}

template <class Kind>
CUresult set_event(Kind* found, CUevent handle) {
  Event* event = alive<Event>(handle);
  return event != nullptr ? replace(found, Kind{event}) : CUDA_ERROR_INVALID_VALUE;
}

void no_data(CUgraphEdgeData* data, const std::size_t* count) {
  if (data != nullptr && count != nullptr) std::fill_n(data, *count, CUgraphEdgeData{});
}

const char* name_of(CUgraphNodeType type) {
  switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: return "kernel";
    case CU_GRAPH_NODE_TYPE_MEMCPY: return "memcpy";
    case CU_GRAPH_NODE_TYPE_MEMSET: return "memset";
    case CU_GRAPH_NODE_TYPE_HOST: return "host";
    case CU_GRAPH_NODE_TYPE_GRAPH: return "graph";
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT: return "wait event";
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD: return "event record";
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC: return "mem alloc";
    case CU_GRAPH_NODE_TYPE_MEM_FREE: return "mem free";
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: return "batch mem op";
    default: return "empty";
  }
}

std::uint64_t* graph_number(Pool& pool, CUgraphMem_attribute which) {
  switch (which) {
    case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT: return &pool.used;
    case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH: return &pool.used_high;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT: return &pool.reserved;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH: return &pool.reserved_high;
  }
  return nullptr;
}

}  // namespace

SIM_EXPORT CUresult cuGraphAddNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                   std::size_t count, CUgraphNodeParams* how) {
  return add(made, graph, after, count, how);
}

SIM_EXPORT CUresult cuGraphAddNode_v2(CUgraphNode* made, CUgraph graph, const CUgraphNode* after,
                                      const CUgraphEdgeData*, std::size_t count, CUgraphNodeParams* how) {
  return add(made, graph, after, count, how);
}

SIM_EXPORT CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams* how) {
  return change(alive<Node>(node), how);
}

SIM_EXPORT CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams* how) {
  return change(node_in(exec, node), how);
}

// --- what one kind of node can be asked --------------------------------------------------------

SIM_EXPORT CUresult cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS* how) {
  const Fill* fill = operation_of<Fill>(node);
  if (fill == nullptr || how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *how = {fill->to, fill->pitch, fill->value, fill->width, fill->count, fill->rows};
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS* how) {
  const HostCall* call = operation_of<HostCall>(node);
  if (call == nullptr || how == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *how = {call->function, call->data};
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS* how) {
  if (how == nullptr || how->fn == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return replace(operation_of<HostCall>(node), HostCall{how->fn, how->userData});
}

SIM_EXPORT CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent* event) {
  return get_event<Record>(node, event);
}

SIM_EXPORT CUresult cuGraphEventRecordNodeSetEvent(CUgraphNode node, CUevent event) {
  return set_event(operation_of<Record>(node), event);
}

SIM_EXPORT CUresult cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  return set_event(operation_in<Record>(exec, node), event);
}

SIM_EXPORT CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode node, CUevent* event) {
  return get_event<Await>(node, event);
}

SIM_EXPORT CUresult cuGraphEventWaitNodeSetEvent(CUgraphNode node, CUevent event) {
  return set_event(operation_of<Await>(node), event);
}

SIM_EXPORT CUresult cuGraphExecEventWaitNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
  return set_event(operation_in<Await>(exec, node), event);
}

SIM_EXPORT CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph handle) {
  Child* child = operation_in<Child>(exec, node);
  const Graph* graph = alive<Graph>(handle);
  const Node* where = nullptr;
  if (child == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (compare(*child->graph, *graph, where) != CU_GRAPH_EXEC_UPDATE_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  child->graph = clone(*graph);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS* how) {
  const Take* take = operation_of<Take>(node);
  Allocation allocation;
  if (take == nullptr || how == nullptr || !book().find(take->address, allocation)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *how = {};
  how->poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  how->poolProps.location = {CU_MEM_LOCATION_TYPE_DEVICE, allocation.device->ordinal};
  how->bytesize = take->bytes;
  how->dptr = take->address;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr* address) {
  const Return* back = operation_of<Return>(node);
  if (back == nullptr || address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *address = back->address;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode which, unsigned* enabled) {
  const Node* node = node_in(exec, which);
  if (node == nullptr || enabled == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *enabled = node->enabled ? 1 : 0;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphKernelNodeSetAttribute(CUgraphNode handle, CUkernelNodeAttrID which,
                                                  const CUkernelNodeAttrValue* value) {
  if (operation_of<Launch>(handle) == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  alive<Node>(handle)->attributes[which] = *value;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphKernelNodeGetAttribute(CUgraphNode handle, CUkernelNodeAttrID which,
                                                  CUkernelNodeAttrValue* value) {
  if (operation_of<Launch>(handle) == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto& kept = alive<Node>(handle)->attributes;
  const auto found = kept.find(which);
  *value = found != kept.end() ? found->second : CUkernelNodeAttrValue{};
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode to, CUgraphNode from) {
  const bool kernels = operation_of<Launch>(to) != nullptr && operation_of<Launch>(from) != nullptr;
  if (!kernels) return CUDA_ERROR_INVALID_VALUE;
  alive<Node>(to)->attributes = alive<Node>(from)->attributes;
  return CUDA_SUCCESS;
}

// --- edges with data ---------------------------------------------------------------------------

SIM_EXPORT CUresult cuGraphGetEdges_v2(CUgraph graph, CUgraphNode* from, CUgraphNode* to,
                                       CUgraphEdgeData* data, std::size_t* count) {
  const CUresult result = cuGraphGetEdges(graph, from, to, count);
  if (result == CUDA_SUCCESS) no_data(data, count);
  return result;
}

SIM_EXPORT CUresult cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode* before,
                                                  CUgraphEdgeData* data, std::size_t* count) {
  const CUresult result = cuGraphNodeGetDependencies(node, before, count);
  if (result == CUDA_SUCCESS) no_data(data, count);
  return result;
}

SIM_EXPORT CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode node, CUgraphNode* after,
                                                    CUgraphEdgeData* data, std::size_t* count) {
  const CUresult result = cuGraphNodeGetDependentNodes(node, after, count);
  if (result == CUDA_SUCCESS) no_data(data, count);
  return result;
}

SIM_EXPORT CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode* from, const CUgraphNode* to,
                                              const CUgraphEdgeData*, std::size_t count) {
  return cuGraphAddDependencies(graph, from, to, count);
}

SIM_EXPORT CUresult cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode* from,
                                                 const CUgraphNode* to, const CUgraphEdgeData*,
                                                 std::size_t count) {
  return cuGraphRemoveDependencies(graph, from, to, count);
}

// --- the whole graph ---------------------------------------------------------------------------

SIM_EXPORT CUresult cuGraphDebugDotPrint(CUgraph handle, const char* path, unsigned) {
  const Graph* graph = alive<Graph>(handle);
  if (graph == nullptr || path == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::FILE* file = std::fopen(path, "we");
  if (file == nullptr) return CUDA_ERROR_OPERATING_SYSTEM;
  std::fprintf(file, "digraph dot {\n");
  for (const auto& node : graph->nodes) {
    std::fprintf(file, "\"%p\" [label=\"%s\"];\n", static_cast<void*>(node.get()),
                 name_of(type_of(node->operation)));
    for (const Node* before : node->after) {
      std::fprintf(file, "\"%p\" -> \"%p\";\n", static_cast<const void*>(before),
                   static_cast<void*>(node.get()));
    }
  }
  std::fprintf(file, "}\n");
  return std::fclose(file) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

SIM_EXPORT CUresult cuDeviceGetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute which, void* value) {
  if (const CUresult error = Driver::get().usable()) return error;
  Device* device = Driver::get().device(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  Pool& pool = graph_pool(*device);
  const std::lock_guard<std::mutex> held(pool.lock);
  const std::uint64_t* number = graph_number(pool, which);
  if (number == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<cuuint64_t*>(value) = *number;
  return CUDA_SUCCESS;
}

// High-water marks may only be set back to what is now, by writing zero.
SIM_EXPORT CUresult cuDeviceSetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute which, void* value) {
  if (const CUresult error = Driver::get().usable()) return error;
  Device* device = Driver::get().device(ordinal);
  if (device == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  const bool mark = which == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || which == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
  if (!mark || value == nullptr || *static_cast<const cuuint64_t*>(value) != 0) return CUDA_ERROR_INVALID_VALUE;
  Pool& pool = graph_pool(*device);
  const std::lock_guard<std::mutex> held(pool.lock);
  const bool used = which == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH;
  *graph_number(pool, which) = used ? pool.used : pool.reserved;
  return CUDA_SUCCESS;
}

// --- user objects ------------------------------------------------------------------------------

SIM_EXPORT CUresult cuUserObjectCreate(CUuserObject* handle, void* data, CUhostFn destroy, unsigned uses,
                                       unsigned flags) {
  if (handle == nullptr || destroy == nullptr || uses == 0 || flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto* object = new UserObject;
  object->destroy = destroy;
  object->data = data;
  object->retain(uses);
  *handle = reinterpret_cast<CUuserObject>(object);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuUserObjectRetain(CUuserObject handle, unsigned count) {
  UserObject* object = alive<UserObject>(handle);
  if (object == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  object->retain(count);
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuUserObjectRelease(CUuserObject handle, unsigned count) {
  UserObject* object = alive<UserObject>(handle);
  if (object == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  return object->release(count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphRetainUserObject(CUgraph to, CUuserObject handle, unsigned count, unsigned flags) {
  Graph* graph = alive<Graph>(to);
  UserObject* object = alive<UserObject>(handle);
  if (graph == nullptr || object == nullptr || count == 0 || (flags & ~CU_GRAPH_USER_OBJECT_MOVE) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  // Moved: the caller's own references become the graph's.
  if ((flags & CU_GRAPH_USER_OBJECT_MOVE) == 0) object->retain(count);
  graph->objects[object] += count;
  return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphReleaseUserObject(CUgraph from, CUuserObject handle, unsigned count) {
  Graph* graph = alive<Graph>(from);
  UserObject* object = alive<UserObject>(handle);
  if (graph == nullptr || object == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  const auto held = graph->objects.find(object);
  if (held == graph->objects.end() || held->second < count) return CUDA_ERROR_INVALID_VALUE;
  if ((held->second -= count) == 0) graph->objects.erase(held);
  return object->release(count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
