# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""An InferenceService (document 004) with our additive block ``spec.flexai``, parsed (pure).

The document's own keys keep the document's meaning: ``spec.replicas`` counts groups, one group is
one leader and ``servers.worker.replicas`` workers, and one group is one instance of the model.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from . import shape
from .pod_types import POD_TYPES
from .problem import Problem

API_VERSION = "system.hero.ai/v1alpha1"
KIND = "InferenceService"
# Seconds of a day: nothing that a service waits for is longer.
_DAY = "86400"

TYPES: shape.Types = {
    **POD_TYPES,
    "InferenceService": {
        "apiVersion!": f"={API_VERSION}",
        "kind!": "=InferenceService",
        "metadata!": "Metadata",
        "spec!": "Spec",
    },
    "Metadata": {
        "name!": "string",
        "namespace": "string",
        "labels": "{string}",
        "annotations": "{string}",
    },
    "Spec": {
        "deploymentMode": "=DistributeInference",
        "scheduler": "Scheduler",
        "replicas": "1..1000",
        "servers!": "Servers",
        "flexai": "Flexai",
    },
    "Scheduler": {"queue": "string"},
    "Servers": {"leader!": "Role", "worker": "Role"},
    "Role": {"replicas": "0..1000", "template!": "PodTemplateSpec"},
    "Flexai": {
        "layout": "auto|single|split|lws",
        "resource_policy": "strict|max",
        "engine": "Engine",
        "model": "Model",
        "parallelism": "Parallelism",
        "rendezvous": "Rendezvous",
        "network": "Network",
        "gpu_profile": "datacenter|consumer",
        "gang": "Gang",
        "scaling": "Scaling",
        "rollout": "Rollout",
        "probes": "Probes",
        "restart": "Restart",
        "drain": "Drain",
        "shm_size": "quantity",
        "api": "Api",
        "network_policy": "NetworkPolicyBlock",
        "monitoring": "Monitoring",
    },
    "Engine": {
        "name!": "vllm|sglang|vllm-ascend",
        "version!": "string",
        "backend": "mp|ray|dp|none",
        "args": "[string]",
    },
    "Model": {
        "path!": "string",
        "name": "string",
        "template": "string",
        "max_model_len": "1..",
        "gpu_memory_utilization": "number",
        "dtype": "string",
    },
    "Parallelism": {"tp": "1..4096", "pp": "1..4096", "dp": "1..4096"},
    "Rendezvous": {"backend": "mp|ray|dp|sglang", "port": "1..65535"},
    "Network": {
        "profile": "tcp|roce",
        "ifname": "string",
        "annotations": "{string}",
        "rdma_resource": "string",
        "gid_index": "0..255",
        "traffic_class": "0..255",
        "hca": "string",
    },
    "Gang": {"provider": "none|volcano", "volcano_version": "string"},
    "Scaling": {
        "mode": "none|keda|hpa",
        "serverless": "switch",
        "min_groups": "0..1000",
        "target_concurrency": "1..",
        "polling_seconds": f"1..{_DAY}",
        "cooldown_seconds": f"0..{_DAY}",
        "prometheus": "PrometheusTrigger",
        "http": "HttpTrigger",
        "metric": "string",
    },
    "PrometheusTrigger": {"server!": "string", "query": "string"},
    "HttpTrigger": {"hosts!": "[string]", "scaler": "string"},
    "Rollout": {"strategy": "serial|all", "max_unavailable_groups": "1..1000"},
    "Probes": {"startup_seconds": f"10..{_DAY}", "deep_seconds": f"0..{_DAY}"},
    "Restart": {
        "group_failure_timeout": f"2..{_DAY}",
        "heartbeat_seconds": "1..3600",
        "max_group_restarts": "0..1000000",
        "window_seconds": "1..31536000",
    },
    "Drain": {"seconds": f"0..{_DAY}", "prestop_seconds": f"0..{_DAY}"},
    "Api": {"port": "1..65535", "health_path": "string"},
    "NetworkPolicyBlock": {"enabled": "switch", "clients": "[NetworkPolicyPeer]"},
    "NetworkPolicyPeer": {
        "namespaceSelector": "LabelSelector",
        "podSelector": "LabelSelector",
        "ipBlock": "IpBlock",
    },
    "IpBlock": {"cidr!": "string", "except": "[string]"},
    "Monitoring": {"enabled": "switch"},
}


@dataclass(frozen=True)
class Engine:
    """Which program serves the model; without one the containers' own commands do."""

    name: str
    version: str
    backend: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """What is served, from where in the container, and as which entry of models.py."""

    path: str
    name: str
    template: str
    max_model_len: int | None
    gpu_memory_utilization: float | None
    dtype: str | None


@dataclass(frozen=True)
class Network:
    """Which interface carries collectives, and what RoCE needs of pod and node."""

    profile: str
    ifname: str
    annotations: t.Mapping[str, str]
    rdma_resource: str
    gid_index: int | None
    traffic_class: int | None
    hca: str


@dataclass(frozen=True)
class Scaling:
    """When groups come and go; groups below ``min_groups`` always are."""

    mode: str
    min_groups: int
    target_concurrency: int
    polling_seconds: int
    cooldown_seconds: int
    prometheus: str
    query: str
    http_hosts: tuple[str, ...]
    http_scaler: str
    metric: str


@dataclass(frozen=True)
class Timing:
    """All that run.sh and the probes wait for, in seconds."""

    startup: int
    deep_probe: int
    group_failure: int
    heartbeat: int
    max_group_restarts: int
    restart_window: int
    drain: int
    prestop: int


@dataclass(frozen=True)
class Service:
    """One service as the renderer needs it; templates are plain data, as they were given."""

    name: str
    namespace: str
    labels: t.Mapping[str, str]
    annotations: t.Mapping[str, str]
    queue: str
    groups: int
    workers: int
    leader_replicas: int
    leader: t.Mapping[str, t.Any]
    worker: t.Mapping[str, t.Any]
    layout: str
    resource_policy: str
    engine: Engine | None
    model: Model | None
    tp: int
    pp: int
    dp: int
    rendezvous_backend: str
    rendezvous_port: int
    network: Network
    gpu_profile: str
    gang: str
    volcano_version: str
    scaling: Scaling
    rollout_strategy: str
    max_unavailable_groups: int
    timing: Timing
    shm_size: str
    port: int
    health_path: str
    network_policy: bool
    clients: tuple[t.Mapping[str, t.Any], ...]
    monitoring: bool
    document: t.Mapping[str, t.Any]

    @property
    def pods(self) -> int:
        """Pods of one group."""
        return 1 + self.workers

    @property
    def collapsed(self) -> bool:
        """Whether groups are replicas of one StatefulSet: a group of one pod that scales."""
        return self.pods == 1 and self.scaling.mode != "none" and self.layout != "lws"


DEFAULTS: t.Mapping[str, t.Any] = {
    "namespace": "default",
    "ifname": "eth0",
    "port": 8000,
    "target_concurrency": 32,
    "polling_seconds": 15,
    "cooldown_seconds": 900,
    "http_scaler": "keda-add-ons-http-external-scaler.keda:9090",
    "startup_seconds": 1800,
    "shm_size": "1Gi",
}


def parse(document: t.Any) -> tuple[Service, list[Problem]]:
    """A document's service, as far as the document is right, and what is wrong with its shape."""
    clean, problems = shape.check(document, TYPES, "InferenceService")
    return _service(clean), problems


def _service(clean: t.Mapping[str, t.Any]) -> Service:
    meta, spec = clean.get("metadata", {}), clean.get("spec", {})
    ours = spec.get("flexai", {})
    servers = spec.get("servers", {})
    leader, worker = servers.get("leader", {}), servers.get("worker", {})
    workers = worker.get("replicas", 1) if worker else 0
    parallelism, api = ours.get("parallelism", {}), ours.get("api", {})
    queue = spec.get("scheduler", {}).get("queue", "")
    gang, rollout = ours.get("gang", {}), ours.get("rollout", {})
    policy = ours.get("network_policy", {})
    return Service(
        name=meta.get("name", ""),
        namespace=meta.get("namespace", DEFAULTS["namespace"]),
        labels=meta.get("labels", {}),
        annotations=meta.get("annotations", {}),
        queue=queue,
        groups=spec.get("replicas", 1),
        workers=workers,
        leader_replicas=leader.get("replicas", 1),
        leader=leader.get("template", {}),
        # A service without workers has one template.
        worker=worker.get("template", {}) if workers else leader.get("template", {}),
        layout=ours.get("layout", "auto"),
        resource_policy=ours.get("resource_policy", "strict"),
        engine=_engine(ours, workers),
        model=_model(ours),
        tp=parallelism.get("tp", 1),
        pp=parallelism.get("pp", 1),
        dp=parallelism.get("dp", 1),
        rendezvous_backend=ours.get("rendezvous", {}).get("backend", ""),
        rendezvous_port=ours.get("rendezvous", {}).get("port", 0),
        network=_network(ours.get("network", {})),
        gpu_profile=ours.get("gpu_profile", "datacenter"),
        gang=gang.get("provider", "volcano" if queue else "none"),
        volcano_version=gang.get("volcano_version", ""),
        scaling=_scaling(ours.get("scaling", {})),
        rollout_strategy=rollout.get("strategy", "serial"),
        max_unavailable_groups=rollout.get("max_unavailable_groups", 1),
        timing=_timing(ours),
        shm_size=str(ours.get("shm_size", DEFAULTS["shm_size"] if "engine" in ours else "")),
        port=api.get("port") or _template_port(leader.get("template", {})) or DEFAULTS["port"],
        health_path=api.get("health_path", "/health"),
        network_policy=policy.get("enabled", True),
        clients=tuple(policy.get("clients", ())),
        monitoring=ours.get("monitoring", {}).get("enabled", True),
        document=clean,
    )


def _template_port(template: t.Mapping[str, t.Any]) -> int | None:
    """The port that the leader's engine declares: the one called http, else its first."""
    containers = template.get("spec", {}).get("containers", [])
    ports = containers[0].get("ports", []) if containers else []
    named = [port for port in ports if port.get("name") == "http"]
    return next((port["containerPort"] for port in named + ports if "containerPort" in port), None)


def _engine(ours: t.Mapping[str, t.Any], workers: int) -> Engine | None:
    block = ours.get("engine")
    if not block or "name" not in block or "version" not in block:
        return None
    # One pod has nothing to distribute over pods.
    backend = block.get("backend", "mp" if workers else "none")
    return Engine(block["name"], block["version"], backend, tuple(block.get("args", ())))


def _model(ours: t.Mapping[str, t.Any]) -> Model | None:
    block = ours.get("model")
    if not block or "path" not in block:
        return None
    last = block["path"].rstrip("/").rpartition("/")[2]
    return Model(
        path=block["path"],
        name=block.get("name", last),
        template=block.get("template", last),
        max_model_len=block.get("max_model_len"),
        gpu_memory_utilization=block.get("gpu_memory_utilization"),
        dtype=block.get("dtype"),
    )


def _network(block: t.Mapping[str, t.Any]) -> Network:
    return Network(
        profile=block.get("profile", "tcp"),
        ifname=block.get("ifname", DEFAULTS["ifname"]),
        annotations=block.get("annotations", {}),
        rdma_resource=block.get("rdma_resource", ""),
        gid_index=block.get("gid_index"),
        traffic_class=block.get("traffic_class"),
        hca=block.get("hca", ""),
    )


def _scaling(block: t.Mapping[str, t.Any]) -> Scaling:
    prometheus, http = block.get("prometheus", {}), block.get("http", {})
    return Scaling(
        mode=block.get("mode", "none"),
        min_groups=block.get("min_groups", 0 if block.get("serverless") else 1),
        target_concurrency=block.get("target_concurrency", DEFAULTS["target_concurrency"]),
        polling_seconds=block.get("polling_seconds", DEFAULTS["polling_seconds"]),
        cooldown_seconds=block.get("cooldown_seconds", DEFAULTS["cooldown_seconds"]),
        prometheus=prometheus.get("server", ""),
        query=prometheus.get("query", ""),
        http_hosts=tuple(http.get("hosts", ())),
        http_scaler=http.get("scaler", DEFAULTS["http_scaler"]),
        metric=block.get("metric", ""),
    )


def _timing(ours: t.Mapping[str, t.Any]) -> Timing:
    probes, restart = ours.get("probes", {}), ours.get("restart", {})
    drain = ours.get("drain", {})
    return Timing(
        startup=probes.get("startup_seconds", DEFAULTS["startup_seconds"]),
        deep_probe=probes.get("deep_seconds", 0),
        group_failure=restart.get("group_failure_timeout", 60),
        heartbeat=restart.get("heartbeat_seconds", 5),
        max_group_restarts=restart.get("max_group_restarts", 5),
        restart_window=restart.get("window_seconds", 3600),
        drain=drain.get("seconds", 30),
        prestop=drain.get("prestop_seconds", 10),
    )
