# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""sysHAX as objects of Kubernetes: engines in one pod, or in two that share a node's memory, and
the conductor beside them. Pure."""

from __future__ import annotations

import hashlib
import posixpath
import typing as t

from . import _syshax as syshax
from ._errors import XpuError

LAYOUTS = ("one-pod", "two-pods")
LABEL = "app.kubernetes.io/name"
# Nobody's, as in the images of this project.
USER = 65532
# Longer than system.drain_timeout, in which running streams end.
DRAIN_S = 90


class Cluster(t.NamedTuple):
    """What a cluster needs to be told beside the engines' own settings."""

    name: str
    namespace: str
    layout: str
    gpu_resources: t.Mapping[str, str]  # huawei.com/vgpu-number, nvidia.com/gpu, ...
    cpus: int  # whole cores of the CPU's engine
    gpu_cpus: str  # those of the accelerator's, whole ones too where they shall be its own
    cpu_memory: str
    gpu_memory: str
    shared_memory: str
    node: str  # two pods share /dev/shm of this node


class Conductor(t.NamedTuple):
    """The conductor's pod."""

    image: str  # with our program; empty renders the engines alone
    port: int
    settings: t.Mapping[str, t.Any]
    resources: t.Mapping[str, str]


def render(
    settings: syshax.Settings, cluster: Cluster, conductor: Conductor
) -> list[dict[str, t.Any]]:
    """Deployments and services, in the order in which to apply them."""
    if cluster.layout not in LAYOUTS:
        raise XpuError(
            f"layout: {cluster.layout!r} is unknown.", f"take one of {', '.join(LAYOUTS)}."
        )
    if cluster.layout == "two-pods" and not cluster.node:
        raise XpuError(
            "layout: two-pods is wanted and node is empty.",
            "name the node: both pods have to see the same shared memory.",
        )
    engines = (settings.gpu, settings.cpu)
    groups = [engines] if cluster.layout == "one-pod" else [(engine,) for engine in engines]
    objects: list[dict[str, t.Any]] = []
    for group in groups:
        name = cluster.name if len(group) > 1 else f"{cluster.name}-{group[0].role}"
        objects.append(_deployment(settings, cluster, name, group))
    objects += [
        _service(cluster, cluster.name if len(groups) == 1 else f"{cluster.name}-{e.role}", e)
        for e in engines
    ]
    return objects + (_conductor(settings, cluster, conductor) if conductor.image else [])


def _deployment(
    settings: syshax.Settings,
    cluster: Cluster,
    name: str,
    engines: t.Sequence[syshax.Engine],
) -> dict[str, t.Any]:
    shared = cluster.layout == "one-pod"
    volumes: list[dict[str, t.Any]] = [
        {"name": "models", "hostPath": {"path": settings.models_dir, "type": "Directory"}}
    ]
    if shared:
        # The pod's containers have one IPC namespace, but /dev/shm of 64 MiB each.
        memory = {"medium": "Memory", "sizeLimit": cluster.shared_memory}
        volumes.append({"name": "shm", "emptyDir": memory})
    else:
        volumes.append({"name": "shm", "hostPath": {"path": "/dev/shm", "type": "Directory"}})
    pod: dict[str, t.Any] = {
        "containers": [_container(settings, cluster, engine) for engine in engines],
        "volumes": volumes,
    }
    if not shared:
        pod["hostIPC"] = True
        pod["nodeSelector"] = {"kubernetes.io/hostname": cluster.node}
    labels = {LABEL: name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": cluster.namespace, "labels": labels},
        "spec": {
            "replicas": 1,
            # Two generations of an engine would want the same devices and cores.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _container(
    settings: syshax.Settings, cluster: Cluster, engine: syshax.Engine
) -> dict[str, t.Any]:
    # The static CPU manager gives whole cores to a pod whose every container asks for exactly what
    # it is limited to. It chooses the cores, so the binding is left to what the engine then sees.
    if engine.role == syshax.CPU:
        amounts = {"cpu": str(cluster.cpus), "memory": cluster.cpu_memory}
    else:
        amounts = {"cpu": cluster.gpu_cpus, "memory": cluster.gpu_memory, **cluster.gpu_resources}
    env = syshax.environment(settings, engine, {})
    if engine.role == syshax.CPU and settings.op_mode == "fused":
        env.setdefault("OMP_NUM_THREADS", str(cluster.cpus))
    words = syshax.command(settings._replace(network="bridge"), engine)
    probe = {"httpGet": {"path": "/health", "port": engine.port}}
    limit = max(1, settings.start_timeout_s // 10)
    return {
        "name": engine.container.replace("_", "-"),
        "image": engine.image,
        "command": words[:1],
        "args": words[1:],
        "env": [{"name": name, "value": env[name]} for name in sorted(env)],
        "ports": [{"name": engine.role, "containerPort": engine.port}],
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": limit},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "securityContext": {"capabilities": {"add": ["SYS_NICE"]}}
        if engine.role == syshax.CPU
        else {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "models", "mountPath": settings.models_dir, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _service(cluster: Cluster, selector: str, engine: syshax.Engine) -> dict[str, t.Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{cluster.name}-{engine.role}", "namespace": cluster.namespace},
        "spec": {
            "selector": {LABEL: selector},
            "ports": [{"name": "http", "port": engine.port, "targetPort": engine.port}],
        },
    }


def _conductor(
    settings: syshax.Settings, cluster: Cluster, conductor: Conductor
) -> list[dict[str, t.Any]]:
    """A pod of its own: it survives the engines, and their pods keep whole cores for themselves."""
    name = f"{cluster.name}-conductor"
    labels = {LABEL: name}
    meta = {"name": name, "namespace": cluster.namespace, "labels": labels}
    engines = {
        f"services.{role}.host": f"{cluster.name}-{role}" for role in (syshax.GPU, syshax.CPU)
    }
    tree = syshax.config_tree(
        settings, ("0.0.0.0", conductor.port), {**engines, **conductor.settings}
    )
    text = syshax.config_text(tree)
    directory, file = posixpath.split(syshax.CONFIG)
    port = {"name": "http", "containerPort": conductor.port}
    container = {
        "name": "conductor",
        "image": conductor.image,
        "command": ["syshax"],
        "args": ["--config", syshax.CONFIG, "run"],
        "ports": [port],
        "resources": {
            "requests": dict(conductor.resources),
            "limits": dict(conductor.resources),
        },
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5},
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "http"}, "periodSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "config", "mountPath": directory, "readOnly": True}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": DRAIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    # Other settings are another pod: a mounted file changes some minutes later, and unnoticed.
    digest = {"flexai.io/config": hashlib.sha256(text.encode()).hexdigest()[:16]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {file: text}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                # Each counts only the requests of its own.
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels, "annotations": digest}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {
                "selector": labels,
                "ports": [{"name": "http", "port": conductor.port, "targetPort": "http"}],
            },
        },
    ]
