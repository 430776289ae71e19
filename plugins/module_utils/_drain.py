# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Cordon, drain and uncordon one node, with what we did recorded on the node itself.

A cordon of ours bears our annotation; another's is never taken off. Evictions go through the API
server, so disruption budgets hold.
"""

from __future__ import annotations

import json
import typing as t

from ._cluster import NODES, Cluster, Object
from ._errors import XpuError

PODS = "/api/v1/pods"
# Value: JSON {reason, held, labels}; "held" where a failed change left the node cordoned, "labels"
# what was taken off for the time, and is put back.
MARK = "flexai.io/transaction"
MIRROR = "kubernetes.io/config.mirror"
FINISHED = ("Succeeded", "Failed")
POLL_S = 2.0

Clock = t.Callable[[], float]
Sleep = t.Callable[[float], None]


def mark_of(node: Object) -> dict[str, t.Any] | None:
    """What our mark says; None where the node bears none."""
    text = (node["metadata"].get("annotations") or {}).get(MARK)
    found: dict[str, t.Any] | None = json.loads(text) if text else None
    return found


def is_cordoned(node: Object) -> bool:
    return bool((node.get("spec") or {}).get("unschedulable"))


def _owner(pod: Object) -> str:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["kind"]) for owner in owners if owner.get("controller")), "")


def to_evict(pods: t.Iterable[Object], node: str) -> list[Object]:
    """Pods that a drain takes off the node: not those of DaemonSets, static ones, ended ones."""
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName") == node
        and (pod.get("status") or {}).get("phase") not in FINISHED
        and MIRROR not in (pod["metadata"].get("annotations") or {})
        and _owner(pod) != "DaemonSet"
    ]


def leaving(pods: t.Iterable[Object], node: str, labels: t.Collection[str]) -> list[Object]:
    """Pods of DaemonSets that choose by a label which was taken off: they go by themselves."""
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName") == node
        and _owner(pod) == "DaemonSet"
        and (pod["spec"].get("nodeSelector") or {}).keys() & set(labels)
    ]


def name_of(pod: Object) -> str:
    return f"{pod['metadata'].get('namespace', 'default')}/{pod['metadata']['name']}"


def orphans(pods: t.Iterable[Object]) -> list[str]:
    """Pods that nobody would make again."""
    return sorted(name_of(pod) for pod in pods if not _owner(pod))


def others_at_work(nodes: t.Iterable[Object], name: str) -> tuple[list[str], list[str]]:
    """(nodes that are being changed, nodes that a failed change left cordoned), but for this one"""
    working, held = [], []
    for node in nodes:
        mark = mark_of(node)
        if mark is not None and node["metadata"]["name"] != name:
            (held if mark.get("held") else working).append(node["metadata"]["name"])
    return sorted(working), sorted(held)


class Drain:
    """One node. Time is handed in."""

    def __init__(self, cluster: Cluster, node: str, clock: Clock, sleep: Sleep) -> None:
        self.cluster, self.name = cluster, node
        self.clock, self.sleep = clock, sleep

    def node(self) -> Object:
        found = self.cluster.get(f"{NODES}/{self.name}")
        if found is None:
            raise XpuError(
                f"The cluster has no node {self.name}. Nothing was changed.",
                "set node_labels_node_name on hosts whose node is named otherwise.",
            )
        return found

    def _patch(self, body: Object) -> None:
        self.cluster.change("patch", f"{NODES}/{self.name}", body)

    # -- cordon ------------------------------------------------------------------------------
    def cordon(self, reason: str, labels: t.Iterable[str] = ()) -> None:
        """Take the node out of scheduling; a cordon from before us stays his who set it."""
        node = self.node()
        mark = mark_of(node)
        if mark is None:
            has = node["metadata"].get("labels") or {}
            taken = {key: has[key] for key in labels if key in has}
            mark = {"theirs": is_cordoned(node), "labels": taken}
        mark = {**mark, "reason": reason, "held": False}
        self._patch(
            {
                "metadata": {
                    "annotations": {MARK: json.dumps(mark, sort_keys=True)},
                    "labels": dict.fromkeys(mark["labels"]),
                },
                "spec": {"unschedulable": True},
            }
        )

    def hold(self, reason: str) -> None:
        """Leave the node cordoned, and say why on it."""
        mark = mark_of(self.node())
        if mark is not None:
            text = json.dumps({**mark, "held": True, "reason": reason}, sort_keys=True)
            self._patch({"metadata": {"annotations": {MARK: text}}})

    def release(self) -> bool:
        """Take back what we did; whether there was something."""
        mark = mark_of(self.node())
        if mark is None:
            return False
        body: Object = {"metadata": {"annotations": {MARK: None}, "labels": mark["labels"]}}
        if not mark.get("theirs"):
            body["spec"] = {"unschedulable": None}
        self._patch(body)
        return True

    # -- drain -------------------------------------------------------------------------------
    def _on_node(self) -> list[Object]:
        return self.cluster.list(PODS, field_selector=f"spec.nodeName={self.name}")

    def pods(self) -> list[Object]:
        """What a drain evicts."""
        return to_evict(self._on_node(), self.name)

    def refuse_orphans(self, delete_orphans: bool) -> None:
        names = orphans(self.pods())
        if names and not delete_orphans:
            raise XpuError(
                f"Node {self.name} can't be drained: {', '.join(names)} has no controller that "
                "would make it again elsewhere. Nothing was changed.",
                "delete it, or set node_transaction_delete_orphans: true.",
            )

    def wait_for_a_turn(self, at_once: int, wait_s: float) -> None:
        """Until fewer than *at_once* other nodes are being changed; none after one has failed."""
        deadline = self.clock() + wait_s
        while True:
            working, held = others_at_work(self.cluster.list(NODES), self.name)
            if held:
                raise XpuError(
                    f"Node {self.name} was left as it is, since the change failed on "
                    f"{', '.join(held)}, which is still cordoned. Nothing was changed.",
                    f"mend that first; `kubectl describe node {held[0]}` says what is wrong in "
                    f"annotation {MARK}.",
                )
            if len(working) < at_once:
                return
            if self.clock() >= deadline:
                raise XpuError(
                    f"Node {self.name} waited {wait_s:.0f} s for its turn while "
                    f"{', '.join(working)} was being changed. Nothing was changed.",
                    "run again, or raise node_transaction_max_unavailable.",
                )
            self.sleep(POLL_S)

    def take_turn(
        self, at_once: int, wait_s: float, reason: str, labels: t.Sequence[str] = ()
    ) -> None:
        """Cordon when it is this node's turn; one that bears our mark already has its turn."""
        while mark_of(self.node()) is None:
            self.wait_for_a_turn(at_once, wait_s)
            self.cordon(reason, labels)
            working, _held = others_at_work(self.cluster.list(NODES), self.name)
            # Two runs may have seen the same free place: the first by name keeps it.
            if len([name for name in working if name < self.name]) < at_once:
                return
            self.release()
        self.cordon(reason, labels)

    def drain(self, wait_s: float, labels: t.Sequence[str] = ()) -> None:
        """Evict until nothing is left. Takes the cordon back where it can't."""
        deadline = self.clock() + wait_s
        while True:
            found = self._on_node()
            evicting = to_evict(found, self.name)
            left = evicting + leaving(found, self.name, labels)
            if not left:
                return
            blocked: dict[str, str] = {}
            for pod in evicting:
                if not pod["metadata"].get("deletionTimestamp"):
                    said = self.cluster.evict(pod["metadata"]["namespace"], pod["metadata"]["name"])
                    blocked.update({name_of(pod): said} if said else {})
            if self.clock() >= deadline:
                self._give_up(left, blocked, wait_s)
            self.sleep(POLL_S)

    def _give_up(
        self, left: t.Sequence[Object], blocked: t.Mapping[str, str], wait_s: float
    ) -> t.NoReturn:
        self.release()
        names = [
            f"{name_of(pod)} ({blocked.get(name_of(pod)) or 'has not ended yet'})" for pod in left
        ]
        raise XpuError(
            f"Node {self.name} could not be drained within {wait_s:.0f} s: {', '.join(names)}. "
            "It is uncordoned again; the host was not changed.",
            "give the workload another replica or its disruption budget room, or raise "
            "node_transaction_drain_limit_s.",
        )
