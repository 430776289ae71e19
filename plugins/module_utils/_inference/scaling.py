# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What brings groups up and takes them down (pure).

KEDA moves a StatefulSet from 0 to 1 and leaves the rest to an HPA that moves single pods: half
groups. With ``idleReplicaCount: 0`` and the least equal to the most it jumps from 0 to all of them.
Group i awakes when the service's load exceeds i times what one group shall bear.
"""

from __future__ import annotations

import typing as t

from .service import Service

Object = t.Dict[str, t.Any]
STATEFUL_SET = "apps/v1/StatefulSet"
# Requests that an engine works on or holds; by ServiceMonitor's labels.
_METRICS = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "vllm-ascend": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
}


def query(service: Service) -> str:
    """What Prometheus is asked: the operator's query, or the engine's own load."""
    if service.scaling.query or not service.engine:
        return service.scaling.query
    labels = f'{{namespace="{service.namespace}",service="{service.name}"}}'
    running, waiting = (name + labels for name in _METRICS[service.engine.name])
    return f"sum({running}) + sum({waiting}) or vector(0)"


def _triggers(service: Service, awakes_above: int, by_http: bool) -> list[Object]:
    scaling, found = service.scaling, []
    if by_http and scaling.http_hosts:
        metadata = {"scalerAddress": scaling.http_scaler, "interceptorRoute": service.name}
        found.append({"type": "external-push", "metadata": metadata})
    if scaling.prometheus:
        metadata = {
            "serverAddress": scaling.prometheus,
            "query": query(service),
            "threshold": str(scaling.target_concurrency),
            "activationThreshold": str(awakes_above),
            "ignoreNullValues": "true",
        }
        trigger = {"type": "prometheus", "metricType": "AverageValue", "metadata": metadata}
        found.append(trigger)
    return found


def _scaled(service: Service, kind: str, name: str, triggers: list[Object]) -> Object:
    api_version, _rest, word = kind.rpartition("/")
    return {
        "scaleTargetRef": {"apiVersion": api_version, "kind": word, "name": name},
        "pollingInterval": service.scaling.polling_seconds,
        "cooldownPeriod": service.scaling.cooldown_seconds,
        # A group that still loads its model has served nobody yet.
        "initialCooldownPeriod": service.timing.startup,
        "triggers": triggers,
    }


def all_or_nothing(service: Service, index: int, name: str, size: int) -> Object:
    """A ScaledObject that makes one group's StatefulSet empty or whole."""
    target = service.scaling.target_concurrency
    triggers = _triggers(service, index * target, by_http=index == service.scaling.min_groups)
    # No fallback: with one, an idle group comes up when Prometheus doesn't answer. Without one each
    # group stays as it is.
    return {
        **_scaled(service, STATEFUL_SET, name, triggers),
        "idleReplicaCount": 0,
        "minReplicaCount": size,
        "maxReplicaCount": size,
    }


def by_group(service: Service, kind: str, name: str) -> Object:
    """A ScaledObject for a workload whose replicas are whole groups."""
    return {
        **_scaled(service, kind, name, _triggers(service, 0, by_http=True)),
        "minReplicaCount": service.scaling.min_groups,
        "maxReplicaCount": service.groups,
    }


def route(service: Service) -> Object:
    """An InterceptorRoute: requests wait at KEDA's interceptor while a group comes up."""
    return {
        "target": {"service": service.name, "port": service.port},
        "rules": [{"hosts": list(service.scaling.http_hosts)}],
        "scalingMetric": {"concurrency": {"targetValue": service.scaling.target_concurrency}},
    }


def pod_autoscaler(service: Service, name: str) -> Object:
    """An HPA over a metric of the pods, for groups of one pod."""
    target = {"type": "AverageValue", "averageValue": str(service.scaling.target_concurrency)}
    metric = {"metric": {"name": service.scaling.metric}, "target": target}
    return {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name},
        "minReplicas": service.scaling.min_groups,
        "maxReplicas": service.groups,
        "metrics": [{"type": "Pods", "pods": metric}],
        "behavior": {
            "scaleDown": {"stabilizationWindowSeconds": min(service.scaling.cooldown_seconds, 3600)}
        },
    }
