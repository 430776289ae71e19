// SPDX-License-Identifier: GPL-3.0-or-later
//
// What the functions on graphs share: graph_api.cc has those of one kind of node each, graph_node.cc those
// that take any.
#pragma once

#include "graph.h"

namespace simcuda {

// The nodes behind handles, all of that graph.
CUresult nodes_of(const CUgraphNode* handles, std::size_t count, const Graph& graph,
                  std::vector<Node*>& nodes);
CUresult add_node(CUgraphNode* made, CUgraph handle, const CUgraphNode* after, std::size_t count,
                  Operation operation);
CUresult launch_from(const CUDA_KERNEL_NODE_PARAMS* from, Launch& launch);
Fill fill_from(const CUDA_MEMSET_NODE_PARAMS& from);
// An address for memory that the card gives when the graph runs.
CUresult reserve_for_graph(const CUmemPoolProps& where, std::size_t bytes, CUdeviceptr& address);
bool of_graph(CUdeviceptr address);
// A kernel's parameters as its node keeps them.
void describe(const Node& node, const Launch& launch, CUDA_KERNEL_NODE_PARAMS& how);

// A node's operation of one type, if that is what it has.
template <class Kind>
Kind* operation_of(CUgraphNode handle) {
  Node* node = alive<Node>(handle);
  return node != nullptr ? std::get_if<Kind>(&node->operation) : nullptr;
}

// The same node in an executable graph.
inline Node* node_in(CUgraphExec exec_handle, CUgraphNode handle) {
  const Exec* exec = alive<Exec>(exec_handle);
  const Node* node = alive<Node>(handle);
  return exec != nullptr && node != nullptr ? exec->graph->by_id(node->id) : nullptr;
}

template <class Kind>
Kind* operation_in(CUgraphExec exec, CUgraphNode handle) {
  Node* node = node_in(exec, handle);
  return node != nullptr ? std::get_if<Kind>(&node->operation) : nullptr;
}

template <class Kind>
CUresult replace(Kind* operation, const Kind& with) {
  if (operation == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *operation = with;
  return CUDA_SUCCESS;
}

}  // namespace simcuda
