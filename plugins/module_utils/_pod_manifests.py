# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What is wrong with manifests of inference servers that people write by hand (pure).

The mistakes of documents 000 and 003, which the API server takes in silence or refuses in words
that don't lead to them. Each check is a few lines; a new one joins the table of its level.
"""

from __future__ import annotations

import re
import typing as t

from . import _nvidia_plugin as nvidia_plugin
from ._errors import XpuError
from ._inference import models, sizing
from ._inference.problem import MISSING, Problem

SLICE_PREFIX = "huawei.com/vgpu-"
SLICE_MEMORY = "huawei.com/vgpu-memory-1Gi"
SLICE_NUMBER = "huawei.com/vgpu-number"
NVIDIA_PREFIX = "nvidia.com/"
SHARED = "nvidia.com/gpu.shared"
# Until then a probe's delay is a matter of taste.
LONGEST_DELAY_S = 60
TEMPLATES = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_PLACEHOLDER = re.compile(r"\{[^{}]*/[^{}]*\}")
_LIBRARY_LINK = re.compile(r"\bln\s+-\S*s\S*\s+\S*/(lib(?:cuda|nvidia)\S*)\.so\.[\d.]+")
_PORT = re.compile(r"^https?://[^/]*:(\d+)(?:/|$)")

Load = t.Callable[[str], t.Any]
Found = t.Iterator[Problem]


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}


def _sequence(value: t.Any) -> t.Sequence[t.Any]:
    return value if isinstance(value, (list, tuple)) else ()


class Container(t.NamedTuple):
    """A container, where it stands, and the pod around it."""

    path: str
    spec: t.Mapping[str, t.Any]
    pod_path: str
    pod: t.Mapping[str, t.Any]

    @property
    def words(self) -> list[str]:
        """Command and arguments; a shell's script counts by its words."""
        parts = [*_sequence(self.spec.get("command")), *_sequence(self.spec.get("args"))]
        return " ".join(str(part).replace("\\\n", " ") for part in parts).split()

    def flag(self, name: str) -> str:
        """What is given with a flag; empty where it isn't."""
        words = self.words
        for place, word in enumerate(words):
            head, equals, value = word.partition("=")
            if head == name:
                return value if equals else (words[place + 1 : place + 2] or [""])[0]
        return ""

    @property
    def asked(self) -> dict[str, t.Any]:
        """Requests, limits and limits in the wrong place: what the author meant."""
        resources = _mapping(self.spec.get("resources"))
        return {
            **_mapping(self.spec.get("limits")),
            **_mapping(resources.get("limits")),
            **_mapping(resources.get("requests")),
        }

    @property
    def engine(self) -> str:
        words = self.words
        if "vllm" in words or "vllm.entrypoints.openai.api_server" in words:
            return "vllm"
        return "sglang" if "sglang.launch_server" in words else ""

    @property
    def model(self) -> models.Model | None:
        words = self.words
        after = words[words.index("serve") + 1 :][:1] if "serve" in words else []
        named = [*after, self.flag("--model"), self.flag("--served-model-name")]
        found = (models.find(word.strip("{}")) for word in named if word)
        return next((model for model in found if model), None)


def check(
    objects: t.Iterable[t.Any], load: Load | None = None, calls: t.Sequence[str] = ()
) -> list[Problem]:
    """All problems of some objects. *load* reads YAML, for what ConfigMaps hold, and gives None for
    what is none; *calls* are URLs that clients are to use."""
    found: list[Problem] = []
    services = []
    for thing in objects:
        thing = _mapping(thing)
        metadata = _mapping(thing.get("metadata"))
        where = f"{thing.get('kind', 'object')} {metadata.get('name', '')}".strip()
        for key, value in thing.items():
            found += _mappings_for_texts(f"{where}: {key}", value)
        if thing.get("kind") == "ConfigMap" and load:
            found += _plugin_configuration(where, thing, load)
        if thing.get("kind") == "Service":
            services.append((where, thing))
        for container in _containers(where, thing):
            for one in CONTAINER_CHECKS:
                found += one(container)
        if thing.get("kind") == "Pod" and any(c.engine for c in _containers(where, thing)):
            found.append(
                Problem(
                    f"{where}: kind",
                    "Pod",
                    "Deployment or StatefulSet for a service",
                    "put the pod's spec into a Deployment: nobody makes a bare pod anew",
                )
            )
    for call in calls:
        found += _call(call, services)
    return found


def _containers(where: str, thing: t.Mapping[str, t.Any]) -> t.Iterator[Container]:
    path, pod = "spec", _mapping(thing.get("spec"))
    if thing.get("kind") in TEMPLATES:
        path, pod = "spec.template.spec", _mapping(_mapping(pod.get("template")).get("spec"))
    elif thing.get("kind") != "Pod":
        return
    for number, spec in enumerate(_sequence(pod.get("containers"))):
        if isinstance(spec, t.Mapping):
            pod_path = f"{where}: {path}"
            yield Container(f"{pod_path}.containers[{number}]", spec, pod_path, pod)


# -- anywhere ------------------------------------------------------------------------------------


def _mappings_for_texts(path: str, value: t.Any) -> Found:
    """``path: {path/to/model}``: YAML reads braces as a mapping."""
    if isinstance(value, t.Mapping):
        names = list(value)
        if len(names) == 1 and value[names[0]] is None and "/" in str(names[0]):
            yield Problem(
                path,
                f"{{{names[0]}}}",
                "a text; YAML reads unquoted braces as a mapping",
                "put the real path in the placeholder's place, without braces",
            )
            return
        for name, inner in value.items():
            yield from _mappings_for_texts(f"{path}.{name}", inner)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _mappings_for_texts(f"{path}[{number}]", inner)


# -- containers ----------------------------------------------------------------------------------


def _placeholders(container: Container) -> Found:
    for key in ("command", "args"):
        for number, word in enumerate(_sequence(container.spec.get(key))):
            match = _PLACEHOLDER.search(str(word))
            if match:
                yield Problem(
                    f"{container.path}.{key}[{number}]",
                    match[0],
                    "a path; the braces are a placeholder of the document's",
                    "put the real path in its place",
                )


def _limits_beside(container: Container) -> Found:
    for key in ("limits", "requests"):
        if key in container.spec:
            yield Problem(
                f"{container.path}.{key}",
                container.spec[key],
                "resources below it; a container has no such key, so nothing is limited",
                f"indent {key} once more, so that it stands below resources",
            )


def _requests_without_limits(container: Container) -> Found:
    resources = _mapping(container.spec.get("resources"))
    limits = _mapping(resources.get("limits"))
    for name, value in _mapping(resources.get("requests")).items():
        extended = str(name).startswith((SLICE_PREFIX, NVIDIA_PREFIX))
        if extended and str(limits.get(name)) != str(value):
            yield Problem(
                f"{container.path}.resources.limits.{name}",
                limits.get(name, MISSING),
                f"{value}, as it is requested: extended resources have equal requests and limits",
                f"write {name}: {value} there too",
            )


def _has(container: Container, prefix: str) -> bool:
    return any(str(name).startswith(prefix) for name in container.asked)


def _scheduler(container: Container) -> Found:
    if _has(container, SLICE_PREFIX) and not container.pod.get("schedulerName"):
        yield Problem(
            f"{container.pod_path}.schedulerName",
            MISSING,
            "the scheduler that places slices (volcano, or flexai-volcano beside another Volcano)",
            "write schedulerName: volcano; the default scheduler knows nothing of cards",
        )


def _runtime_class(container: Container) -> Found:
    slices, nvidia = _has(container, SLICE_PREFIX), _has(container, NVIDIA_PREFIX)
    if (slices or nvidia) and not container.pod.get("runtimeClassName"):
        name = "flexai-xpu" if slices else "nvidia"
        yield Problem(
            f"{container.pod_path}.runtimeClassName",
            MISSING,
            f"{name} (flexai-xpu-docker on nodes of cri-dockerd)" if slices else name,
            f"write runtimeClassName: {name}; without it the container sees no card",
        )


def _memory(container: Container) -> Found:
    model = container.model
    size = str(container.asked.get(SLICE_MEMORY, ""))
    if model is None or not size.isdigit():
        return
    length = container.flag("--max-model-len")
    tp = container.flag("--tensor-parallel-size")
    quantised = container.flag("--quantization")
    wanted = sizing.need(
        model,
        # The engine refuses to start when the model's whole context finds no place.
        context=int(length) if length.isdigit() else model.max_context,
        tp=int(tp) if tp.isdigit() and int(tp) else 1,
        quantisation=quantised if quantised in sizing.QUANTISED_BYTES else None,
    )
    path = f"{container.path}.resources: {SLICE_MEMORY}"
    yield from sizing.memory_problems(path, model, wanted, int(size) * sizing.GIB)


def _shared_memory(container: Container) -> Found:
    if not container.engine:
        return
    mounts = [_mapping(mount) for mount in _sequence(container.spec.get("volumeMounts"))]
    names = [mount.get("name") for mount in mounts if mount.get("mountPath") == "/dev/shm"]
    if not names:
        yield Problem(
            f"{container.path}.volumeMounts",
            "nothing at /dev/shm",
            "a volume there: a container has 64 MiB, and engine and NCCL need more",
            "mount an emptyDir {medium: Memory, sizeLimit: 2Gi} at /dev/shm",
        )
        return
    for number, volume in enumerate(_sequence(container.pod.get("volumes"))):
        volume = _mapping(volume)
        if volume.get("name") in names and "emptyDir" in volume:
            memory = _mapping(volume["emptyDir"])
            if memory.get("medium") != "Memory" or not memory.get("sizeLimit"):
                yield Problem(
                    f"{container.pod_path}.volumes[{number}].emptyDir",
                    dict(memory),
                    "medium: Memory and a sizeLimit; without medium it lies on the node's disk",
                    "write {medium: Memory, sizeLimit: 2Gi}, less than the memory's limit",
                )


def _delays(container: Container) -> Found:
    if "startupProbe" in container.spec:
        return
    for name in PROBES:
        delay = _mapping(container.spec.get(name)).get("initialDelaySeconds")
        if isinstance(delay, int) and delay >= LONGEST_DELAY_S:
            yield Problem(
                f"{container.path}.{name}.initialDelaySeconds",
                delay,
                f"less than {LONGEST_DELAY_S}: a fixed delay is too long for one model and too "
                "short for the next, which is then killed while it loads",
                "take it out, and add a startupProbe with periodSeconds 10 and failureThreshold "
                "180 (30 minutes)",
            )


def _latest(container: Container) -> Found:
    image = str(container.spec.get("image", ""))
    name, colon, tag = image.rpartition(":")
    if container.engine and (not colon or "/" in tag or tag == "latest"):
        yield Problem(
            f"{container.path}.image",
            image,
            "an image with a version: flags and CUDA differ between them",
            f"write a release, such as {name if colon and '/' not in tag else image}:v0.8.5",
        )


def _library_links(container: Container) -> Found:
    for key in ("command", "args"):
        for number, word in enumerate(_sequence(container.spec.get(key))):
            libraries = _LIBRARY_LINK.findall(str(word))
            if libraries:
                yield Problem(
                    f"{container.path}.{key}[{number}]",
                    f"ln -sf … {', '.join(libraries)}",
                    "no link to a library of one driver's version: it breaks with the next driver",
                    "let the node's container toolkit be 1.17.4 or newer (role container_toolkit), "
                    "which leaves the host's driver in its place, or take an image whose CUDA the "
                    "driver runs (filter flexai.xpu.cuda_compat)",
                )


def _split_over_time_slices(container: Container) -> Found:
    parallel = container.flag("--tensor-parallel-size") or container.flag("--tp")
    if SHARED in container.asked and parallel.isdigit() and int(parallel) > 1:
        yield Problem(
            f"{container.path}.resources: {SHARED}",
            container.asked[SHARED],
            f"whole cards for tensor parallelism {parallel}: time slices may lie on one card, and "
            "only more of them than a card has make sure that they don't",
            f"write nvidia.com/gpu: {parallel} on a node with whole cards",
        )


CONTAINER_CHECKS: t.Sequence[t.Callable[[Container], Found]] = (
    _placeholders,
    _limits_beside,
    _requests_without_limits,
    _scheduler,
    _runtime_class,
    _memory,
    _shared_memory,
    _delays,
    _latest,
    _library_links,
    _split_over_time_slices,
)


# -- other objects -------------------------------------------------------------------------------


def _plugin_configuration(where: str, thing: t.Mapping[str, t.Any], load: Load) -> Found:
    """Configurations of NVIDIA's device plugin, by their content."""
    for key, text in _mapping(thing.get("data")).items():
        config = load(text) if isinstance(text, str) else None
        if not isinstance(config, t.Mapping) or not {"version", "sharing", "config"} & set(config):
            continue
        plugin = _mapping(_mapping(config.get("flags")).get("plugin"))
        strategy = str(plugin.get("deviceListStrategy") or "volume-mounts")
        try:
            nvidia_plugin.check({key: config}, str(key), strategy, {})
        except XpuError as error:
            said = error.msg.partition(": ")[2]
            yield Problem(f"{where}: data.{key}", "a configuration", said, error.remedy)


def _call(call: str, services: t.Sequence[tuple[str, t.Mapping[str, t.Any]]]) -> Found:
    match = _PORT.match(call)
    ports = [
        (where, str(_mapping(port).get("port")))
        for where, service in services
        for port in _sequence(_mapping(service.get("spec")).get("ports"))
    ]
    if match and ports and match[1] not in [port for _where, port in ports]:
        where, port = ports[0]
        yield Problem(
            f"{where}: spec.ports",
            f"port {port}",
            f"{match[1]}, which {call} calls",
            f"write port: {match[1]}, or call port {port}",
        )
