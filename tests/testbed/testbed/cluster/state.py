# SPDX-License-Identifier: GPL-3.0-or-later
"""What Node objects say, in the few words the testbed needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NodeState:
    """One node's state. ``reason`` is empty when it is ready."""

    name: str
    ready: bool
    reason: str
    boot_id: str
    kubelet: str
    runtime: str


def read_node(node: Mapping[str, Any]) -> NodeState:
    """The state in a Node object."""
    status = node.get("status", {})
    info = status.get("nodeInfo", {})
    conditions = {entry["type"]: entry for entry in status.get("conditions", [])}
    found = conditions.get("Ready", {})
    ready = found.get("status") == "True"
    reason = "" if ready else found.get("message", "its kubelet has reported nothing yet")
    return NodeState(
        name=node["metadata"]["name"],
        ready=ready,
        reason=reason,
        boot_id=info.get("bootID", ""),
        kubelet=info.get("kubeletVersion", ""),
        runtime=info.get("containerRuntimeVersion", ""),
    )


def waiting_for(wanted: Mapping[str, str], nodes: Iterable[NodeState]) -> dict[str, str]:
    """Which nodes are not ready, and why. *wanted* maps a node to its host's present boot id.

    A node stays Ready in the API for a while after its host is gone, so only a report of the
    present boot counts.
    """
    known = {node.name: node for node in nodes}
    missing: dict[str, str] = {}
    for name, boot_id in wanted.items():
        node = known.get(name)
        if node is None:
            missing[name] = "not registered"
        elif node.boot_id != boot_id:
            missing[name] = "has not reported since its host booted"
        elif not node.ready:
            missing[name] = node.reason
    return missing
