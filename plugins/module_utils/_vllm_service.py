# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""One inference server of one pod on a slice, on time slices or on whole cards (pure).

Settings in; out come what is wrong with them, what somebody should know, and a Deployment with its
Service: document 000's and 003's, mended.
"""

from __future__ import annotations

import re
import shlex
import typing as t

from . import _cuda_compat as cuda_compat
from ._cluster import OWNER
from ._errors import XpuError
from ._inference import engines, models, sizing
from ._inference.problem import HIDDEN, Problem

LABEL = "flexai.io/vllm-service"
CLASS = "flexai.io/class"
READY = {"gpupool.com/gpu-ready": "true"}
ENGINES = ("vllm", "sglang")
CLASSES = ("guaranteed", "elastic", "best-effort")
# How a pod comes by its GPU: as slices of this collection, as NVIDIA's time slices, as whole cards,
# or not at all, for engines that compute on the CPU.
SLICE, SHARED, WHOLE, NONE = DEVICES = ("slice", "shared", "whole", "none")
RUNTIME_CLASSES = {SLICE: "flexai-xpu", SHARED: "nvidia", WHOLE: "nvidia", NONE: ""}
# On a GeForce NCCL finds neither peer-to-peer copies nor InfiniBand and fails on trying.
CONSUMER_NCCL = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
PROBE_PERIOD_S = 10
# After the engine's own drain, for Python and the driver to let go of the card.
GRACE_S = 15
# Shared memory of one GPU's process: NCCL's rings and vLLM's broadcast between processes.
SHM_GIB_PER_GPU = 2

_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_AMOUNT = re.compile(r"^(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?$")
_UNITS = {
    "": 1,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}
# As whole words: TOKENIZERS_PARALLELISM and MAX_TOKENS are no secrets.
_SECRET = re.compile(
    r"(^|_)(PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|CREDENTIALS?)(_|$)", re.IGNORECASE
)


class Settings(t.NamedTuple):
    """What role vllm_service is told; fields are its variables without their prefix."""

    name: str
    namespace: str
    model: str
    served_name: str = ""
    engine: str = "vllm"
    version: str = "0.8.5"
    image: str = ""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: t.Sequence[str] = ()
    command: t.Sequence[str] = ()
    args: t.Sequence[str] = ()
    env: t.Mapping[str, t.Any] = {}
    secret: str = ""
    volumes: t.Sequence[str] = ()
    replicas: int = 1
    device: str = SLICE
    gpus: int = 1
    cores: int = 0
    memory_gib: int = 0
    card_memory_gib: int = 0
    shared_replicas: int = 0
    device_class: str = ""
    gpu_class: str = "consumer"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_model_len: int = 0
    memory_utilization: float = 0.0
    sequences: int = 1
    quantisation: str = ""
    dtype: str = ""
    cpu: str = "4"
    memory: str = "16Gi"
    shm_gib: int = 0
    port: int = 8000
    service_type: str = "ClusterIP"
    start_timeout_s: int = 1800
    drain_s: int = 30
    scheduler: str = ""
    runtime_class: str = ""
    nodes: t.Sequence[str] = ()
    node_selector: t.Mapping[str, str] = {}
    tolerations: t.Sequence[t.Mapping[str, t.Any]] = ()


class Site(t.NamedTuple):
    """What was found on the nodes; empty where nobody looked."""

    config: t.Mapping[str, t.Any] = {}  # the model's config.json
    drivers: t.Mapping[str, str] = {}  # node → version
    toolkits: t.Mapping[str, str] = {}  # likewise


class Plan(t.NamedTuple):
    """``objects`` is empty where there are problems."""

    problems: list[Problem]
    warnings: list[str]
    objects: list[dict[str, t.Any]]
    launch: engines.Launch
    need: sizing.Need | None


def plan(settings: Settings, site: Site) -> Plan:
    """All that is wrong at once, or the objects."""
    problems = _simple_problems(settings)
    model, warnings = _model(settings, site)
    if problems:
        return Plan(problems, warnings, [], _launch(settings, None), None)
    quantisation = settings.quantisation or _published_quantisation(site.config)
    derived = _derived(settings, model, quantisation)
    launch = _launch(settings, derived)
    problems += _device_problems(settings)
    problems += engines.launch_problems("vllm_service", launch)
    problems += sizing.parallel_problems(
        "vllm_service",
        model,
        settings.engine,
        tp=settings.tensor_parallel,
        pp=settings.pipeline_parallel,
        dp=1,
        pods=1,
        gpus_per_pod=_cards(settings),
    )
    need = _need(settings, model, launch, quantisation)
    if model and need and not problems:
        problems += _memory_problems(settings, model, need)
    verdicts, cuda_problems, cuda_warnings = _cuda(settings, site)
    problems = [_renamed(problem) for problem in problems] + cuda_problems
    if problems:
        return Plan(problems, warnings, [], launch, need)
    made = engines.commands(launch)
    warnings += [*(derived.warnings if derived else ()), *made.warnings, *cuda_warnings]
    warnings += _pigeons(settings)
    objects = [_deployment(settings, launch, made, verdicts), _service(settings)]
    return Plan([], warnings, objects, launch, need)


# -- what may be wrong ---------------------------------------------------------------------------

# Paths of engines and sizing, and the variables that they are written in here.
_VARIABLES = {
    "vllm_service.engine": "vllm_service_engine",
    "vllm_service.version": "vllm_service_version",
    "vllm_service.model_path": "vllm_service_model",
    "vllm_service.port": "vllm_service_port",
    "vllm_service.tp": "vllm_service_tensor_parallel",
    "vllm_service.pp": "vllm_service_pipeline_parallel",
    "vllm_service.max_model_len": "vllm_service_max_model_len",
    "vllm_service.gpu_memory_utilization": "vllm_service_memory_utilization",
    "vllm_service.extra": "vllm_service_args",
    "vllm_service": "vllm_service_gpus",
}


def _renamed(problem: Problem) -> Problem:
    path, bracket, rest = problem.path.partition("[")
    return Problem(
        _VARIABLES.get(path, path) + bracket + rest, problem.value, problem.allowed, problem.remedy
    )


def amount(text: str) -> int | None:
    """Kubernetes' quantity of memory in bytes; None where it is none."""
    match = _AMOUNT.match(str(text))
    return int(float(match[1]) * _UNITS[match[2] or ""]) if match else None


def _simple_problems(settings: Settings) -> list[Problem]:
    found = []

    def expect(holds: bool, key: str, allowed: str, remedy: str) -> None:
        if not holds:
            found.append(Problem(f"vllm_service_{key}", getattr(settings, key), allowed, remedy))

    label = "a DNS label (lower case letters, digits and -, at most 63)"
    expect(bool(_DNS_LABEL.match(settings.name)), "name", label, "name the service so")
    expect(bool(_DNS_LABEL.match(settings.namespace)), "namespace", label, "name it so")
    expect(
        settings.model.startswith("/") and "{" not in settings.model,
        "model",
        "the path of a directory on the nodes",
        "put the model there, by vllm_service_model_source for example, and write its path",
    )
    expect(settings.engine in ENGINES, "engine", " or ".join(ENGINES), "name one of these")
    expect(settings.device in DEVICES, "device", " or ".join(DEVICES), "name one of these")
    expect(
        settings.device_class in ("", *CLASSES),
        "device_class",
        "empty or " + " or ".join(CLASSES),
        "name one of these",
    )
    expect(
        settings.quantisation in ("", *sizing.QUANTISED_BYTES),
        "quantisation",
        "empty or " + " or ".join(sizing.QUANTISED_BYTES),
        "name one of these, or leave it empty and give max_model_len and memory_utilization",
    )
    for key in ("gpus", "sequences", "tensor_parallel", "pipeline_parallel", "start_timeout_s"):
        expect(getattr(settings, key) >= 1, key, "a whole number from 1 on", f"correct {key}")
    expect(settings.replicas >= 0, "replicas", "a whole number from 0 on", "correct replicas")
    expect(0 <= settings.cores <= 100, "cores", "0 to 100 percent of a card", "correct cores")
    expect(settings.memory_gib >= 0, "memory_gib", "0 or more GiB", "correct memory_gib")
    limit = amount(settings.memory)
    expect(limit is not None, "memory", "an amount such as 16Gi", "write it so")
    if limit is not None and _shm_gib(settings) * sizing.GIB >= limit:
        found.append(
            Problem(
                "vllm_service_shm_gib",
                _shm_gib(settings),
                f"less than vllm_service_memory ({settings.memory}), which it counts against",
                "raise vllm_service_memory, or lower vllm_service_shm_gib",
            )
        )
    for name, value in settings.env.items():
        if _SECRET.search(str(name)) and str(value):
            found.append(
                Problem(
                    f"vllm_service_env.{name}",
                    HIDDEN,
                    "no secret in a manifest, where everybody reads it who reads Deployments",
                    "put it into a Secret of the namespace and name that in vllm_service_secret",
                )
            )
    for number, volume in enumerate(settings.volumes):
        if not re.match(r"^/[^:]*:/[^:]*$", str(volume)):
            found.append(
                Problem(
                    f"vllm_service_volumes[{number}]",
                    volume,
                    "/path/on/the/node:/path/in/the/container",
                    "write it so; it is mounted read-only",
                )
            )
    return found


def _device_problems(settings: Settings) -> list[Problem]:
    found = []
    if settings.device == SLICE and not (settings.cores or settings.memory_gib):
        found.append(
            Problem(
                "vllm_service_memory_gib",
                settings.memory_gib,
                "with device slice: GiB of a card, or percent of one in vllm_service_cores",
                "say how large the slice is, or take device whole",
            )
        )
    if settings.device != SLICE and settings.cores:
        found.append(
            Problem(
                "vllm_service_cores",
                settings.cores,
                f"0 with device {settings.device}: only slices limit compute",
                "take device slice, or leave cores out",
            )
        )
    if settings.device_class in ("guaranteed", "elastic") and not settings.cores:
        found.append(
            Problem(
                "vllm_service_device_class",
                settings.device_class,
                "best-effort or empty where vllm_service_cores is 0: the others promise compute",
                "give vllm_service_cores, or take class best-effort",
            )
        )
    if settings.device_class == "best-effort" and settings.cores:
        found.append(
            Problem(
                "vllm_service_cores",
                settings.cores,
                "0 with class best-effort, which reserves no compute",
                "leave cores out, or take class elastic",
            )
        )
    if settings.device == SHARED and settings.gpus < settings.tensor_parallel:
        found.append(
            Problem(
                "vllm_service_gpus",
                settings.gpus,
                f"at least vllm_service_tensor_parallel ({settings.tensor_parallel})",
                "ask for as many time slices as the model is split over",
            )
        )
    if settings.device == SHARED and settings.tensor_parallel > 1:
        least = settings.shared_replicas * (settings.tensor_parallel - 1) + 1
        if not settings.shared_replicas or settings.gpus < least:
            found.append(
                Problem(
                    "vllm_service_gpus",
                    settings.gpus,
                    f"with tensor_parallel {settings.tensor_parallel} on time slices: more than "
                    "one card can hold, since two slices may lie on the same card",
                    f"take whole cards (device whole); or give vllm_service_shared_replicas, and "
                    f"{f'at least {least}' if settings.shared_replicas else 'more'} slices",
                )
            )
    return found


def _pigeons(settings: Settings) -> list[str]:
    """Document 003's 12 of 10: it works, and here is what it costs."""
    if settings.device != SHARED or settings.tensor_parallel == 1:
        return []
    return [
        f"{settings.gpus} time slices are taken to be sure of {settings.tensor_parallel} cards, of "
        "which nobody else has so much left; a node with whole cards serves this better"
    ]


# -- the model and its memory --------------------------------------------------------------------


def _model(settings: Settings, site: Site) -> tuple[models.Model | None, list[str]]:
    """The model by what lies on the node, else by its name."""
    method = _published_quantisation(site.config)
    if method and method not in sizing.QUANTISED_BYTES:
        return None, [f"the model's memory is not checked: quant_method {method} isn't known here"]
    if site.config:
        try:
            return models.from_config(site.config, settings.model.rstrip("/").split("/")[-1]), []
        except XpuError as error:
            return None, [f"the model's memory is not checked: {error.msg}"]
    found = models.find(settings.model) or models.find(settings.served_name)
    if found or settings.command:
        return found, []
    return None, [
        f"the model's memory is not checked: {settings.model} is none of those that are known here"
    ]


def _cards(settings: Settings) -> int:
    """On time slices the number that is asked for says nothing of cards."""
    if settings.device in (SHARED, NONE):
        return settings.tensor_parallel * settings.pipeline_parallel
    return settings.gpus


def _published_quantisation(config: t.Mapping[str, t.Any]) -> str:
    """How a published model is quantised, which engines see by themselves; empty where it isn't."""
    found = config.get("quantization_config")
    if not isinstance(found, t.Mapping):
        return ""
    eight = found.get("bits") == 8 or found.get("load_in_8bit")
    return "int8" if eight else str(found.get("quant_method"))


def _given(settings: Settings) -> int:
    """What one GPU gives this service; 0 where nobody said."""
    return (settings.memory_gib or settings.card_memory_gib) * sizing.GIB


def _visible(settings: Settings) -> int:
    """What the engine sees as the card's memory: a slice shows itself, a time slice the card."""
    if settings.device == SLICE and settings.memory_gib:
        return settings.memory_gib * sizing.GIB
    return (settings.card_memory_gib or settings.memory_gib) * sizing.GIB


def _memory(settings: Settings) -> int:
    """What the engine takes of it, which a fraction that was given makes less."""
    if not settings.memory_utilization:
        return _given(settings)
    taken = int(settings.memory_utilization * _visible(settings)) + sizing.CONTEXT_BYTES
    return min(_given(settings), taken)


def _memory_problems(settings: Settings, model: models.Model, need: sizing.Need) -> list[Problem]:
    memory = _memory(settings)
    less = memory < _given(settings)
    path = "vllm_service_memory_utilization" if less else "vllm_service_memory_gib"
    found = sizing.memory_problems(path, model, need, memory)
    if settings.max_model_len > model.max_context:
        found.append(
            Problem(
                "vllm_service_max_model_len",
                settings.max_model_len,
                f"at most the {model.max_context} tokens of {model.name}",
                "leave it out to have it derived",
            )
        )
    return found


def _sized(settings: Settings, model: models.Model | None) -> bool:
    return bool(model and settings.device != NONE and _given(settings))


def _derived(
    settings: Settings, model: models.Model | None, quantisation: str
) -> sizing.Derived | None:
    if model is None or not _sized(settings, model):
        return None
    return sizing.derive(
        model,
        _memory(settings),
        visible_bytes=_visible(settings),
        tp=settings.tensor_parallel,
        pp=settings.pipeline_parallel,
        sequences=settings.sequences,
        quantisation=quantisation or None,
    )


def _need(
    settings: Settings, model: models.Model | None, launch: engines.Launch, quantisation: str
) -> sizing.Need | None:
    if model is None or not _sized(settings, model):
        return None
    return sizing.need(
        model,
        context=launch.max_model_len or sizing.LEAST_CONTEXT,
        sequences=settings.sequences,
        tp=settings.tensor_parallel,
        pp=settings.pipeline_parallel,
        quantisation=quantisation or None,
    )


def _launch(settings: Settings, derived: sizing.Derived | None) -> engines.Launch:
    length = settings.max_model_len or (derived.max_model_len if derived else 0)
    use = settings.memory_utilization or (derived.gpu_memory_utilization if derived else 0)
    quantised = ["--quantization", settings.quantisation] if settings.quantisation else []
    return engines.Launch(
        engine=settings.engine,
        version=settings.version,
        model_path=settings.model,
        served_name=settings.served_name or settings.model.rstrip("/").split("/")[-1],
        port=settings.port,
        tp=settings.tensor_parallel,
        pp=settings.pipeline_parallel,
        max_model_len=length or None,
        gpu_memory_utilization=use or None,
        dtype=settings.dtype or None,
        extra=(*quantised, *(str(word) for word in settings.args)),
        drain_seconds=settings.drain_s,
    )


# -- driver and CUDA -----------------------------------------------------------------------------


def _cuda(settings: Settings, site: Site) -> tuple[set[str], list[Problem], list[str]]:
    """Verdicts over the nodes. An image of the site's own is not judged: its CUDA isn't known."""
    cuda = "" if settings.image or settings.command else _cuda_of(settings)
    if settings.device == NONE or not cuda:
        return set(), [], []
    verdicts, problems, warnings = set(), [], []
    for node, driver in sorted(site.drivers.items()):
        toolkit = site.toolkits.get(node, "")
        question = cuda_compat.Question(driver, cuda, settings.gpu_class, True, toolkit)
        try:
            answer = cuda_compat.answer(question)
        except XpuError as error:
            warnings.append(f"node {node}: {error.msg}; driver and image are not compared")
            continue
        verdicts.add(answer.verdict)
        warnings += [f"node {node}: {warning}" for warning in answer.warnings]
        if not answer.runs:
            allowed = f"an engine whose image runs on node {node}: {answer.reason}"
            problems.append(
                Problem("vllm_service_version", settings.version, allowed, answer.remedy)
            )
    return verdicts, problems, warnings


def _cuda_of(settings: Settings) -> str:
    return engines.cuda_floor(settings.engine, settings.version)


# -- objects -------------------------------------------------------------------------------------


def _shm_gib(settings: Settings) -> int:
    return settings.shm_gib or SHM_GIB_PER_GPU * settings.tensor_parallel


def resources(settings: Settings) -> dict[str, str]:
    """What the container asks for, which is what it is limited to."""
    if settings.device == SLICE:
        asked = {
            "huawei.com/vgpu-number": settings.gpus,
            "huawei.com/vgpu-cores": settings.cores,
            "huawei.com/vgpu-memory-1Gi": settings.memory_gib,
        }
    elif settings.device == NONE:
        asked = {}
    else:
        resource = "nvidia.com/gpu.shared" if settings.device == SHARED else "nvidia.com/gpu"
        asked = {resource: settings.gpus}
    amounts = {name: str(value) for name, value in asked.items() if value}
    return {"cpu": str(settings.cpu), "memory": settings.memory, **amounts}


def environment(settings: Settings, verdicts: t.Container[str]) -> dict[str, str]:
    """The role's variables; the site's win."""
    own: dict[str, str] = {}
    if settings.gpu_class == "consumer" and settings.tensor_parallel > 1:
        own.update(CONSUMER_NCCL)
    if "forward" in verdicts and settings.engine == "vllm":
        own["VLLM_ENABLE_CUDA_COMPATIBILITY"] = "1"
    return {**own, **{str(name): str(value) for name, value in settings.env.items()}}


def labels(settings: Settings) -> dict[str, str]:
    return {LABEL: settings.name}


def _metadata(settings: Settings) -> dict[str, t.Any]:
    return {
        "name": settings.name,
        "namespace": settings.namespace,
        "labels": {**labels(settings), **OWNER},
    }


def _deployment(
    settings: Settings,
    launch: engines.Launch,
    made: engines.Commands,
    verdicts: t.Container[str],
) -> dict[str, t.Any]:
    annotations = {CLASS: settings.device_class} if settings.device_class else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(settings),
        "spec": {
            "replicas": settings.replicas,
            # A second pod would ask for a second slice while the first one still has its own.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels(settings)},
            "template": {
                "metadata": {
                    "labels": {**labels(settings), **OWNER},
                    **({"annotations": annotations} if annotations else {}),
                },
                "spec": _pod(settings, launch, made, verdicts),
            },
        },
    }


def _pod(
    settings: Settings,
    launch: engines.Launch,
    made: engines.Commands,
    verdicts: t.Container[str],
) -> dict[str, t.Any]:
    memory = {"medium": "Memory", "sizeLimit": f"{_shm_gib(settings)}Gi"}
    volumes: list[dict[str, t.Any]] = [
        {"name": "model", "hostPath": {"path": settings.model, "type": "Directory"}},
        {"name": "shm", "emptyDir": memory},
    ]
    mounts: list[dict[str, t.Any]] = [
        {"name": "model", "mountPath": settings.model, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for number, volume in enumerate(settings.volumes):
        source, target = volume.split(":", 1)
        volumes.append({"name": f"volume-{number}", "hostPath": {"path": source}})
        mounts.append({"name": f"volume-{number}", "mountPath": target, "readOnly": True})
    env = environment(settings, verdicts)
    container: dict[str, t.Any] = {
        "name": "engine",
        "image": settings.image or engines.default_image(settings.engine, settings.version),
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(settings.command) or shlex.split(made.leader),
        "ports": [{"name": "http", "containerPort": launch.port}],
        "resources": {"requests": resources(settings), "limits": resources(settings)},
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False},
        **_probes(settings),
    }
    if env:
        container["env"] = [{"name": name, "value": env[name]} for name in sorted(env)]
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    pod: dict[str, t.Any] = {
        "containers": [container],
        "volumes": volumes,
        "automountServiceAccountToken": False,
        # A Service named vllm would otherwise set VLLM_PORT to a URL, which the engine can't read.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.drain_s + GRACE_S,
    }
    runtime = settings.runtime_class or RUNTIME_CLASSES[settings.device]
    if runtime:
        pod["runtimeClassName"] = runtime
    if settings.scheduler and settings.device == SLICE:
        pod["schedulerName"] = settings.scheduler
    selector = {**(READY if settings.device == SLICE else {}), **settings.node_selector}
    if selector:
        pod["nodeSelector"] = selector
    if settings.nodes:
        pod["affinity"] = _affinity(settings.nodes)
    if settings.tolerations:
        pod["tolerations"] = [dict(one) for one in settings.tolerations]
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return pod


def _affinity(nodes: t.Iterable[str]) -> dict[str, t.Any]:
    """By the nodes' names, one term each: fields take one value only."""
    terms = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        for node in sorted(nodes)
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}


def _probes(settings: Settings) -> dict[str, t.Any]:
    """However long loading takes, nothing waits longer than it does."""
    ask = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    tries = -(-settings.start_timeout_s // PROBE_PERIOD_S)
    return {
        "startupProbe": {**ask, "periodSeconds": PROBE_PERIOD_S, "failureThreshold": tries},
        "readinessProbe": {**ask, "periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**ask, "periodSeconds": PROBE_PERIOD_S, "failureThreshold": 6},
    }


def _service(settings: Settings) -> dict[str, t.Any]:
    """Clients call the port that the engine says it listens on."""
    port = {"name": "http", "protocol": "TCP", "port": settings.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(settings),
        "spec": {"type": settings.service_type, "selector": labels(settings), "ports": [port]},
    }
