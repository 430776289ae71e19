// SPDX-License-Identifier: GPL-3.0-or-later
//
// The graph itself: copies, order, comparison, launch. Its functions are in graph_api.cc.
#include "graph.h"

#include <algorithm>

#include "book.h"

namespace simcuda {

Node* Graph::add(Operation operation, std::vector<Node*> after) {
  auto node = std::make_unique<Node>();
  node->graph = this;
  node->id = Driver::get().next_id();
  node->operation = std::move(operation);
  std::sort(after.begin(), after.end());
  after.erase(std::unique(after.begin(), after.end()), after.end());
  node->after = std::move(after);
  nodes.push_back(std::move(node));
  return nodes.back().get();
}

void Graph::remove(Node* node) {
  for (const auto& other : nodes) {
    auto& after = other->after;
    after.erase(std::remove(after.begin(), after.end(), node), after.end());
  }
  node->magic = 0;
  nodes.erase(std::find_if(nodes.begin(), nodes.end(), [&](const auto& one) { return one.get() == node; }));
}

Node* Graph::by_id(std::uint64_t id) const {
  for (const auto& node : nodes) {
    if (node->id == id) return node.get();
  }
  return nullptr;
}

Graph::~Graph() {
  magic = 0;
  for (const auto& node : nodes) node->magic = 0;
  for (const auto& [object, count] : objects) object->release(count);
}

bool UserObject::release(std::uint64_t count) {
  std::uint64_t seen = uses.load();
  do {
    if (seen < count) return false;
  } while (!uses.compare_exchange_weak(seen, seen - count));
  if (seen != count) return true;
  magic = 0;
  call_apart({destroy, data});
  delete this;
  return true;
}

std::unique_ptr<Graph> clone(const Graph& graph) {
  auto copy = std::make_unique<Graph>();
  std::map<const Node*, Node*> copies;
  for (const auto& node : graph.nodes) {
    Operation operation = node->operation;
    if (const auto* child = std::get_if<Child>(&operation)) {
      operation = Child{std::shared_ptr<Graph>(clone(*child->graph))};
    }
    Node* made = copy->add(std::move(operation), {});
    made->id = node->id;
    made->enabled = node->enabled;
    made->attributes = node->attributes;
    copies[node.get()] = made;
  }
  for (const auto& node : graph.nodes) {
    for (const Node* before : node->after) copies[node.get()]->after.push_back(copies[before]);
  }
  copy->objects = graph.objects;
  for (const auto& [object, count] : copy->objects) object->retain(count);
  return copy;
}

bool in_order(const Graph& graph, std::vector<Node*>& order) {
  std::map<const Node*, std::size_t> open;
  for (const auto& node : graph.nodes) open[node.get()] = node->after.size();
  order.clear();
  // Rounds over the nodes in their own order keep it wherever the dependencies allow.
  for (bool moved = true; moved && order.size() < graph.nodes.size();) {
    moved = false;
    for (const auto& node : graph.nodes) {
      const auto at = open.find(node.get());
      if (at == open.end()) continue;
      const bool free = std::none_of(node->after.begin(), node->after.end(),
                                     [&](const Node* before) { return open.count(before) != 0; });
      if (!free) continue;
      open.erase(at);
      order.push_back(node.get());
      moved = true;
    }
  }
  return order.size() == graph.nodes.size();
}

CUgraphNodeType type_of(const Operation& operation) {
  constexpr CUgraphNodeType kTypes[] = {
      CU_GRAPH_NODE_TYPE_EMPTY,  CU_GRAPH_NODE_TYPE_KERNEL,       CU_GRAPH_NODE_TYPE_MEMCPY,
      CU_GRAPH_NODE_TYPE_MEMSET, CU_GRAPH_NODE_TYPE_HOST,         CU_GRAPH_NODE_TYPE_EVENT_RECORD,
      CU_GRAPH_NODE_TYPE_WAIT_EVENT, CU_GRAPH_NODE_TYPE_MEM_ALLOC, CU_GRAPH_NODE_TYPE_MEM_FREE,
      CU_GRAPH_NODE_TYPE_GRAPH, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP};
  static_assert(std::size(kTypes) == std::variant_size_v<Operation>);
  return kTypes[operation.index()];
}

CUgraphExecUpdateResult compare(const Graph& running, const Graph& changed, const Node*& where) {
  where = nullptr;
  if (running.nodes.size() != changed.nodes.size()) return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
  std::map<const Node*, std::size_t> old_place;
  std::map<const Node*, std::size_t> new_place;
  for (std::size_t i = 0; i < running.nodes.size(); ++i) {
    old_place[running.nodes[i].get()] = new_place[changed.nodes[i].get()] = i;
  }
  const auto places = [](const Node& node, std::map<const Node*, std::size_t>& of) {
    std::vector<std::size_t> found;
    for (const Node* before : node.after) found.push_back(of[before]);
    std::sort(found.begin(), found.end());
    return found;
  };
  for (std::size_t i = 0; i < running.nodes.size(); ++i) {
    const Node& before = *running.nodes[i];
    const Node& after = *changed.nodes[i];
    where = &after;
    if (before.operation.index() != after.operation.index()) {
      return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
    }
    if (places(before, old_place) != places(after, new_place)) {
      return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    }
    const bool memory = std::holds_alternative<Take>(after.operation) ||
                        std::holds_alternative<Return>(after.operation);
    if (memory) return CU_GRAPH_EXEC_UPDATE_ERROR_NOT_SUPPORTED;
    if (const auto* child = std::get_if<Child>(&after.operation)) {
      const auto result = compare(*std::get<Child>(before.operation).graph, *child->graph, where);
      if (result != CU_GRAPH_EXEC_UPDATE_SUCCESS) return result;
    }
  }
  where = nullptr;
  return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

// Memory that the launch before left allocated, where the application asked for that.
static void free_left_over(const Exec& exec) {
  if ((exec.flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) == 0) return;
  for (const Node* node : exec.order) {
    const auto* take = std::get_if<Take>(&node->operation);
    if (take != nullptr) book().set_graph_resident(take->address, false);
  }
}

CUresult launch(const Exec& exec, Stream& stream) {
  free_left_over(exec);
  for (const Node* node : exec.order) {
    if (!node->enabled) continue;
    if (const CUresult error = perform(node->operation, stream)) return error;
  }
  return CUDA_SUCCESS;
}

}  // namespace simcuda
