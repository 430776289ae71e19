// SPDX-License-Identifier: GPL-3.0-or-later
//
// Graphs: nodes with operations, in the order that their dependencies allow.
#pragma once

#include <map>

#include "operation.h"

namespace simcuda {

// Something of the application's that graphs keep: gone, by its own function, with the last reference.
struct UserObject {
  static constexpr std::uint32_t kAlive = 0x5553524f;
  std::uint32_t magic = kAlive;
  std::atomic<std::uint64_t> uses{0};
  CUhostFn destroy = nullptr;
  void* data = nullptr;

  void retain(std::uint64_t count) { uses += count; }
  // False when there are fewer.
  bool release(std::uint64_t count);
};

struct Node {
  static constexpr std::uint32_t kAlive = 0x4e4f4445;
  std::uint32_t magic = kAlive;
  Graph* graph = nullptr;
  std::uint64_t id = 0;  // a clone's node has its original's
  Operation operation;
  std::vector<Node*> after;
  std::vector<void*> parameter_places;  // for whoever asks for a kernel's parameters
  bool enabled = true;
  std::map<int, CUlaunchAttributeValue> attributes;  // of a kernel; kept, without effect
};

struct Graph {
  static constexpr std::uint32_t kAlive = 0x47524146;
  std::uint32_t magic = kAlive;
  std::vector<std::unique_ptr<Node>> nodes;
  std::map<UserObject*, std::uint64_t> objects;

  Node* add(Operation operation, std::vector<Node*> after);
  void remove(Node* node);
  Node* by_id(std::uint64_t id) const;
  ~Graph();
};

// A graph ready to run: its own copy, and its nodes in an order that respects the dependencies.
struct Exec {
  static constexpr std::uint32_t kAlive = 0x45584543;
  std::uint32_t magic = kAlive;
  std::unique_ptr<Graph> graph;
  std::vector<Node*> order;
  unsigned long long flags = 0;
};

std::unique_ptr<Graph> clone(const Graph& graph);

// The nodes so that each comes after those it depends on; false when a circle makes that impossible.
bool in_order(const Graph& graph, std::vector<Node*>& order);

CUgraphNodeType type_of(const Operation& operation);

// Whether `changed` may replace `running` in an executable graph: the same nodes of the same types with
// the same dependencies. `where` gets the node that differs.
CUgraphExecUpdateResult compare(const Graph& running, const Graph& changed, const Node*& where);

CUresult launch(const Exec& exec, Stream& stream);

}  // namespace simcuda
