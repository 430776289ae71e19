# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Pods of a group: the given template with run.sh, its files, probes and environment (pure)."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
import typing as t

from . import engines, templates
from .checks import GROUP_PORT, launch
from .service import Service

Object = t.Dict[str, t.Any]
Given = t.Mapping[str, t.Any]

SERVICE_LABEL, GROUP_LABEL = "flexai.io/inferenceservice", "flexai.io/group"
ROLE_LABEL, RUNTIME = "flexai.io/role", "flexai.io/runtime"
POD_INDEX = "apps.kubernetes.io/pod-index"
NETWORKS = "k8s.v1.cni.cncf.io/networks"
FILES, STATE = "/opt/flexai", "/run/flexai"
PROBE_PERIOD_S = 10
# Above preStop and drain: what run.sh itself and the engine's processes take to end.
GRACE_S = 30
# The kubelet expands these in arguments; in a fragment the shell does.
_EXPANDED = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class Launched(t.NamedTuple):
    """The fragments that run.sh sources, how the members meet and where (0: where such ones do)."""

    leader: str
    worker: str
    backend: str
    rendezvous_port: int
    warnings: tuple[str, ...]


def fragment(words: t.Sequence[str]) -> str:
    """Words as one line of bash that runs them as the kubelet would."""
    return " ".join(_word(word) for word in words) + "\n"


def _word(word: str) -> str:
    quoted, at = "", 0
    for match in _EXPANDED.finditer(word):
        literal = word[at : match.start()] + ("$" if match.group(1) is None else "")
        quoted += shlex.quote(literal) if literal else ""
        quoted += f'"${{{match.group(1)}}}"' if match.group(1) else ""
        at = match.end()
    rest = word[at:]
    return quoted + (shlex.quote(rest) if rest or not quoted else "")


def launched(service: Service) -> Launched:
    """What the service's members run."""
    if service.engine and service.model:
        how = launch(service)
        made = engines.commands(how)
        told = tuple(f"spec.flexai.engine: {text}" for text in made.warnings)
        backend = "sglang" if how.engine == "sglang" and service.workers else how.backend
        return Launched(made.leader, made.worker, backend, made.rendezvous_port, told)
    leader, worker = (
        fragment([*one.get("command", ()), *one.get("args", ())])
        for one in (templates.engine(service.leader), templates.engine(service.worker))
    )
    if not service.workers:
        return Launched(leader, "", "none", 0, ())
    backend = service.rendezvous_backend or _guessed(leader + worker)
    told = () if service.rendezvous_backend else (_GUESSED.format(backend),)
    return Launched(leader, worker, backend, service.rendezvous_port, told)


_GUESSED = (
    "spec.flexai.rendezvous.backend: taken to be {} from the commands; write it if their members "
    "meet otherwise"
)


def _guessed(commands: str) -> str:
    """How the members of a command that we did not write meet."""
    return next((name for name in ("sglang", "ray") if name in commands), "mp")


def files(
    scripts: t.Mapping[str, str], how: Launched, leader_env: Given, worker_env: Given
) -> dict[str, str]:
    """All files of ``/opt/flexai``."""
    return {
        **scripts,
        "leader.sh": how.leader,
        "worker.sh": how.worker,
        "leader.env": _exports(leader_env),
        "worker.env": _exports(worker_env),
    }


def _exports(variables: Given) -> str:
    return "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())
    )


def digest(data: t.Mapping[str, str]) -> str:
    """Eight digits that change when, and only when, a file does."""
    digests = {name: _digest(text) for name, text in data.items()}
    return _digest(json.dumps(digests, sort_keys=True))[:8]


@functools.lru_cache(maxsize=64)
def _digest(text: str) -> str:
    """Remembered, since every service has the same scripts."""
    return hashlib.sha256(text.encode()).hexdigest()


class Member(t.NamedTuple):
    """What a pod's template depends on beside the given template."""

    labels: t.Mapping[str, str]
    annotations: t.Mapping[str, str]
    scheduler: str
    leader_address: str
    # A literal, a label whose value is the index, or nothing: LWS then sets all three variables.
    ordinal: str
    index_label: str
    lws: bool
    runtime: str


def pod(service: Service, template: Given, how: Launched, member: Member) -> Object:
    """A pod template."""
    meta, spec = template.get("metadata", {}), template.get("spec", {})
    annotations = {
        **({} if service.network.profile == "tcp" else service.network.annotations),
        **meta.get("annotations", {}),
        **member.annotations,
        RUNTIME: member.runtime.rpartition("-")[2],
    }
    timing = service.timing
    grace = timing.prestop + timing.drain + GRACE_S
    whole = {
        # A Service called vllm would otherwise set VLLM_PORT, which vLLM takes for its own.
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        **spec,
        "terminationGracePeriodSeconds": max(spec.get("terminationGracePeriodSeconds", 0), grace),
        "containers": [
            container(service, templates.engine(template), how, member),
            *templates.containers(template)[1:],
        ],
        "volumes": [*spec.get("volumes", ()), *_volumes(service, member.runtime)],
    }
    if member.scheduler:
        whole["schedulerName"] = member.scheduler
    return {
        "metadata": {
            "labels": {**meta.get("labels", {}), **member.labels},
            "annotations": annotations,
        },
        "spec": whole,
    }


def _volumes(service: Service, runtime: str) -> list[Object]:
    volumes: list[Object] = [
        {"name": "flexai-runtime", "configMap": {"name": runtime, "defaultMode": 0o555}},
        {"name": "flexai-state", "emptyDir": {}},
    ]
    if service.shm_size:
        memory = {"medium": "Memory", "sizeLimit": service.shm_size}
        volumes.append({"name": "flexai-shm", "emptyDir": memory})
    return volumes


def container(service: Service, given: Given, how: Launched, member: Member) -> Object:
    """The engine's container; the command given is in the role's fragment."""
    own = {key: value for key, value in given.items() if key not in ("command", "args")}
    mounts = [
        {"name": "flexai-runtime", "mountPath": FILES, "readOnly": True},
        {"name": "flexai-state", "mountPath": STATE},
    ]
    if service.shm_size:
        mounts.append({"name": "flexai-shm", "mountPath": "/dev/shm"})
    made: Object = {
        **own,
        "command": ["/bin/bash", f"{FILES}/run.sh"],
        "env": _environment(service, given.get("env", ()), how, member),
        "ports": _ports(service, given.get("ports", ())),
        "volumeMounts": [*given.get("volumeMounts", ()), *mounts],
        "lifecycle": {
            **given.get("lifecycle", {}),
            "preStop": {"exec": {"command": ["/bin/bash", f"{FILES}/prestop.sh"]}},
        },
        **_probes(service),
    }
    if not made.get("image") and service.engine:
        made["image"] = engines.default_image(service.engine.name, service.engine.version)
    return _with_rdma(service, made) if service.network.profile == "roce" else made


def _with_rdma(service: Service, made: Object) -> Object:
    """Verbs need locked memory, and the device where the site names its resource."""
    context = made.get("securityContext", {})
    capabilities = context.get("capabilities", {})
    add = list(dict.fromkeys([*capabilities.get("add", ()), "IPC_LOCK"]))
    made["securityContext"] = {**context, "capabilities": {**capabilities, "add": add}}
    name = service.network.rdma_resource
    if name:
        block = made.get("resources", {})
        made["resources"] = {
            **block,
            **{key: {name: "1", **block.get(key, {})} for key in ("requests", "limits")},
        }
    return made


def _probes(service: Service) -> Object:
    """run.sh alone knows whether a member waits, forms or serves; probe.sh asks its state."""

    def probe(kind: str, failures: int, **more: t.Any) -> Object:
        command = ["/bin/bash", f"{FILES}/probe.sh", kind]
        return {
            "exec": {"command": command},
            "periodSeconds": PROBE_PERIOD_S,
            "timeoutSeconds": 10,
            "failureThreshold": failures,
            **more,
        }

    return {
        "startupProbe": probe("startup", -(-service.timing.startup // PROBE_PERIOD_S)),
        "readinessProbe": probe("readiness", 2, periodSeconds=5, timeoutSeconds=5),
        "livenessProbe": probe("liveness", 6),
    }


def _ports(service: Service, given: t.Sequence[Given]) -> list[Given]:
    declared = any(port.get("containerPort") == service.port for port in given)
    taken = any(port.get("name") == "http" for port in given)
    ours = {"containerPort": service.port, **({} if taken else {"name": "http"})}
    return [*given, *([] if declared else [ours])]


def _from_field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _environment(
    service: Service, given: t.Sequence[Given], how: Launched, member: Member
) -> list[Given]:
    """LWS's variables first, so that any other can refer to them as $(NAME)."""
    ours: list[Object] = []
    if not member.lws:
        if member.ordinal:
            ours.append({"name": "LWS_WORKER_INDEX", "value": member.ordinal})
        elif member.index_label:
            path = f"metadata.labels['{member.index_label}']"
            ours.append(_from_field("LWS_WORKER_INDEX", path))
        ours.append({"name": "LWS_GROUP_SIZE", "value": str(service.pods)})
    ours += [
        _from_field("POD_NAME", "metadata.name"),
        _from_field("POD_NAMESPACE", "metadata.namespace"),
        _from_field("POD_IP", "status.podIP"),
        _from_field("NODE_NAME", "spec.nodeName"),
        {"name": "VLLM_HOST_IP", "value": "$(POD_IP)"},
    ]
    if not member.lws:
        ours.append({"name": "LWS_LEADER_ADDRESS", "value": member.leader_address})
    ours += [{"name": name, "value": value} for name, value in _settings(service, how).items()]
    theirs = {entry.get("name") for entry in given}
    profile = [
        {"name": name, "value": value}
        for name, value in _profile(service).items()
        if name not in theirs
    ]
    return [*ours, *profile, *given]


def _settings(service: Service, how: Launched) -> dict[str, str]:
    timing = service.timing
    whole = {
        "FLEXAI_API_PORT": service.port,
        "FLEXAI_GROUP_PORT": GROUP_PORT,
        "FLEXAI_START_TIMEOUT": timing.startup,
        "FLEXAI_GROUP_FAILURE_TIMEOUT": timing.group_failure,
        "FLEXAI_HEARTBEAT_SECONDS": timing.heartbeat,
        "FLEXAI_MAX_GROUP_RESTARTS": timing.max_group_restarts,
        "FLEXAI_RESTART_WINDOW": timing.restart_window,
        "FLEXAI_DRAIN_SECONDS": timing.drain,
        "FLEXAI_PRESTOP_SECONDS": timing.prestop,
        "FLEXAI_DEEP_PROBE_SECONDS": timing.deep_probe,
    }
    if how.rendezvous_port:
        # Without it run.sh takes the backend's own.
        whole["FLEXAI_RENDEZVOUS_PORT"] = how.rendezvous_port
    return {
        "FLEXAI_BACKEND": how.backend,
        **{name: str(value) for name, value in whole.items()},
        "FLEXAI_HEALTH_PATH": service.health_path,
    }


def _profile(service: Service) -> dict[str, str]:
    """NCCL's and Gloo's settings; a value of the user's own takes their place."""
    net, found = service.network, {}
    if service.workers:
        found["NCCL_SOCKET_IFNAME"] = net.ifname
        # Gloo takes names alone; without one it falls back to loopback on some hosts.
        if not net.ifname.startswith("^"):
            for name in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
                found[name] = net.ifname.lstrip("=")
    if net.profile == "roce":
        # An unset index lets NCCL (2.21 on) find RoCE v2 by itself.
        for name, value in (
            ("NCCL_IB_GID_INDEX", net.gid_index),
            ("NCCL_IB_TC", net.traffic_class),
            ("NCCL_IB_HCA", net.hca or None),
        ):
            if value is not None:
                found[name] = str(value)
    if service.gpu_profile == "consumer":
        # GeForce has no peer-to-peer over PCIe, and nodes with it have no InfiniBand.
        found.update({"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"})
    return found
