# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What a cluster has and can, as far as rendering depends on it (pure)."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from . import shape
from .problem import Problem

TYPES: shape.Types = {
    "Facts": {
        "kubernetes_version": "string",
        "kinds": "[string]",
        "volcano_version": "string",
        "scheduler_name": "string",
        "queues": "{string}",
        "hero_controller": "switch",
        "driver_version": "string",
        "container_toolkit_version": "string",
        "gpu_class": "datacenter|consumer",
        "gpu_memory": "quantity",
        "shared_replicas": "2..",
    }
}

SCALED_OBJECT = "keda.sh/v1alpha1/ScaledObject"
INTERCEPTOR_ROUTE = "http.keda.sh/v1beta1/InterceptorRoute"
POD_GROUP = "scheduling.volcano.sh/v1beta1/PodGroup"
LEADER_WORKER_SET = "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet"
SERVICE_MONITOR = "monitoring.coreos.com/v1/ServiceMonitor"
INFERENCE_SERVICE = "system.hero.ai/v1alpha1/InferenceService"

_VERSION = re.compile(r"^v?(\d+)\.(\d+)")
Version = t.Tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """``None`` is "nobody has looked": nothing is refused for its lack then."""

    kubernetes: Version | None = None
    kinds: frozenset[str] | None = None
    volcano: Version | None = None
    scheduler_name: str = "volcano"
    queues: t.Mapping[str, str] | None = None
    hero_controller: bool = False
    driver_version: str = ""
    container_toolkit_version: str = ""
    gpu_class: str = "datacenter"
    gpu_memory: str = ""
    shared_replicas: int | None = None

    def lacks(self, kind: str) -> bool:
        """Whether somebody has looked and there is no such kind."""
        return self.kinds is not None and kind not in self.kinds

    def has(self, kind: str) -> bool:
        """Whether somebody has looked and there is such a kind."""
        return self.kinds is not None and kind in self.kinds


def version(text: str) -> Version | None:
    """``v1.28.3`` as (1, 28)."""
    match = _VERSION.match(text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def parse(document: t.Any) -> tuple[Facts, list[Problem]]:
    """Facts as they are given to the filter; keys that aren't there are not known."""
    clean, problems = shape.check(document or {}, TYPES, "Facts", "facts")
    for key in ("kubernetes_version", "volcano_version"):
        if clean.get(key) and version(clean[key]) is None:
            allowed, remedy = "a version such as 1.28 or v1.10.2", "correct the version"
            problems.append(Problem(f"facts.{key}", clean[key], allowed, remedy))
    known = ("scheduler_name", "queues", "hero_controller", "driver_version", "gpu_class")
    more = ("container_toolkit_version", "shared_replicas")
    return (
        Facts(
            kubernetes=version(clean.get("kubernetes_version", "")),
            kinds=frozenset(clean["kinds"]) if "kinds" in clean else None,
            volcano=version(clean.get("volcano_version", "")),
            gpu_memory=str(clean.get("gpu_memory", "")),
            **{key: clean[key] for key in (*known, *more) if key in clean},
        ),
        problems,
    )
