# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""How a group is, from its pods and StatefulSets (pure)."""

from __future__ import annotations

import re
import typing as t

Object = t.Mapping[str, t.Any]
IDLE, PENDING, STARTING, SERVING, OUTDATED, FAILED = (
    "Idle", "Pending", "Starting", "Serving", "Outdated", "Failed",
)  # fmt: skip
REVISION = "controller-revision-hash"
# Waiting for these, a container comes back only when somebody does something.
_BROKEN = {
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName",
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
}  # fmt: skip


def ready(pod: Object) -> bool:
    """Whether a pod is ready and stays."""
    conditions = pod.get("status", {}).get("conditions") or ()
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return is_ready and not pod["metadata"].get("deletionTimestamp")


def _containers(pod: Object) -> list[Object]:
    return list(pod.get("status", {}).get("containerStatuses") or ())


def _waits_for(pod: Object) -> str:
    """Why a pod is not further, in Kubernetes' own word."""
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return str(waiting.get("reason", ""))
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            return str(condition.get("reason", "Unschedulable"))
    return ""


def _last_reason(pods: t.Iterable[Object]) -> str:
    """Why a member ended the last time, or waits now."""
    ended = [
        (container["lastState"]["terminated"], pod["metadata"]["name"])
        for pod in pods
        for container in _containers(pod)
        if container.get("lastState", {}).get("terminated")
    ]
    ended.sort(key=lambda end: end[0].get("finishedAt") or "")
    if not ended:
        return ""
    last, name = ended[-1]
    return f"{name}: {last.get('reason', 'Error')} ({last.get('exitCode')})"


def stale(pods: t.Iterable[Object], workloads: t.Iterable[Object]) -> list[str]:
    """Names of pods that are of an older revision than their StatefulSet wants."""
    revisions = {
        w["metadata"]["name"]: (w.get("status") or {}).get("updateRevision") for w in workloads
    }
    found = []
    for pod in pods:
        owner = next(
            (
                o["name"]
                for o in pod["metadata"].get("ownerReferences") or ()
                if o.get("controller")
            ),
            "",
        )
        wanted = revisions.get(owner)
        if wanted and pod["metadata"].get("labels", {}).get(REVISION) != wanted:
            found.append(pod["metadata"]["name"])
    return sorted(found)


def observed(workload: Object) -> bool:
    """Whether the StatefulSet's controller has seen its newest form; others don't tell."""
    if workload["kind"] != "StatefulSet":
        return True
    seen = (workload.get("status") or {}).get("observedGeneration", 0)
    return bool(seen >= workload["metadata"].get("generation", 0))


COLUMNS = (
    "service", "group", "phase", "ready", "restarts", "tokens/s", "reason", "address",
)  # fmt: skip
# What each engine calls the tokens that it has made so far.
_GENERATED = re.compile(
    r"^(?:vllm|sglang):generation_tokens_total(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE
)


def generated(metrics: str) -> float | None:
    """Tokens that an engine says to have made; None where it says nothing of them."""
    found = [float(number) for number in _GENERATED.findall(metrics)]
    return sum(found) if found else None


def rate(before: float | None, after: float | None, seconds: float) -> float | None:
    """Tokens a second between two looks; None where an engine began anew in between."""
    if before is None or after is None or after < before or seconds <= 0:
        return None
    return round((after - before) / seconds, 1)


def table(services: t.Iterable[Object]) -> list[str]:
    """A line for each group below a line of titles, in columns."""
    rows = [list(COLUMNS)]
    for service in services:
        name = f"{service['namespace']}/{service['name']}"
        for row in service["groups"] or [{"group": "-", "phase": service["output"]}]:
            count = f"{row['ready']}/{row['pods']}" if "pods" in row else "-"
            restarts, reason = str(row.get("restarts", "-")), row.get("reason") or "-"
            tokens = "-" if row.get("tokens_per_second") is None else f"{row['tokens_per_second']}"
            cells = [name, row["group"], row["phase"], count, restarts, tokens, reason]
            rows.append([*cells, service["address"] or "-"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def of_group(group: Object, pods: t.Sequence[Object], workloads: t.Sequence[Object]) -> Object:
    """A group's row of the table."""
    replicas = sum(w["spec"].get("replicas", 0) for w in workloads)
    # Where groups are replicas of one workload, the last ones are those that are not wanted.
    wanted = replicas > group["index"] if group["shared"] else bool(replicas)
    count = sum(1 for pod in pods if ready(pod))
    waits = next((word for word in map(_waits_for, pods) if word), "")
    if not wanted and not pods:
        phase = IDLE
    elif waits in _BROKEN:
        phase = FAILED
    elif count < group["pods"]:
        placed = [pod for pod in pods if pod.get("spec", {}).get("nodeName")]
        phase = STARTING if len(placed) >= group["pods"] else PENDING
    else:
        phase = OUTDATED if stale(pods, workloads) else SERVING
    restarts = sum(c.get("restartCount", 0) for pod in pods for c in _containers(pod))
    return {
        "group": group["name"],
        "phase": phase,
        "ready": count,
        "pods": group["pods"],
        "restarts": restarts,
        "reason": waits or _last_reason(pods),
    }
