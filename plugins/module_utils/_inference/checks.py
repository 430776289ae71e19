# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What an inference service must be beyond its shape: every rule is a function, all are run (pure).

A rule sees a service whose values have the right types; keys may be missing where the document was
wrong there, and then the rule says nothing about them.
"""

from __future__ import annotations

import re
import typing as t

from .. import _cuda_compat as cuda_compat
from .._errors import XpuError
from . import engines, models, quantity, sizing, templates
from .facts import INTERCEPTOR_ROUTE, LEADER_WORKER_SET, POD_GROUP, SCALED_OBJECT, Facts
from .problem import HIDDEN, MISSING, Problem
from .service import DEFAULTS, Service

Found = t.Iterator[Problem]

GPU = "nvidia.com/gpu"
SLICES, SLICE_MEMORY = "huawei.com/vgpu-number", "huawei.com/vgpu-memory-1Gi"
ASCEND = "huawei.com/Ascend"
SHARED = ".shared"
GIB = 2**30

# A StatefulSet's pods bear its name and a hash as a label; KEDA's limit (54) is wider.
MAX_WORKLOAD, MAX_LABEL = 52, 63
_DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_QUEUE = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_QUALIFIED = re.compile(
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
# What every Kubernetes takes; newer ones take more, and a shell no more than this.
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_OURS = "flexai.io/"

# Set by the renderer; a value of the user's would break the group's rendezvous.
RESERVED = (
    "LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS",
    "POD_IP", "POD_NAME", "POD_NAMESPACE", "NODE_NAME", "VLLM_HOST_IP",
)  # fmt: skip
MOUNTS = ("/opt/flexai", "/run/flexai", "/dev/shm")
GROUP_PORT = 29400

# Words of a variable's name that say that its value is a secret, unless the last one says that it
# is only where the secret lies.
_SECRET_WORDS = {"PASSWORD", "PASSWD", "TOKEN", "SECRET", "CREDENTIAL", "CREDENTIALS", "APIKEY"}
_SECRET_KEYS = {"API", "ACCESS", "PRIVATE", "AUTH", "ENCRYPTION", "SECRET"}
_WHERE = {"FILE", "PATH", "DIR", "NAME", "URL", "ENDPOINT"}
_SECRET_FLAG = re.compile(
    r"--?(?:api[-_]key|password|passwd|(?:hf[-_]|auth[-_])?token|secret)(?:[= ]+)([^\s'\"]+)"
)
_IN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]+:([^/\s@]+)@")
# An address of a peer that somebody typed in: pods get new ones.
_TYPED_IN = re.compile(
    r"(?:addr(?:ess)?|master|leader|head|host)[\w-]*[=\s\"']+"
    r"(?!0\.0\.0\.0|127\.)(\d{1,3}(?:\.\d{1,3}){3})\b",
    re.IGNORECASE,
)
_TP = re.compile(r"--?(?:tensor[-_]parallel[-_]size|tp[-_]size|tp)(?:[= ]+)(\d+)")
_CURLY = re.compile("[\u201c\u201d\u2018\u2019]")


# -- paths ---------------------------------------------------------------------------------------


def roles(service: Service) -> list[tuple[str, t.Mapping[str, t.Any]]]:
    """(path of the template, template) of each role that the service has."""
    both = [("spec.servers.leader.template", service.leader)]
    if service.workers:
        both.append(("spec.servers.worker.template", service.worker))
    return both


def all_containers(service: Service) -> t.Iterator[tuple[str, t.Mapping[str, t.Any]]]:
    """(path, container) of every container, those that only initialise included."""
    for path, template in roles(service):
        for key in ("initContainers", "containers"):
            for index, container in enumerate(template.get("spec", {}).get(key, ())):
                yield f"{path}.spec.{key}[{index}]", container


def engines_of(service: Service) -> list[tuple[str, t.Mapping[str, t.Any]]]:
    """(path, the engine's container) of each role."""
    return [(f"{path}.spec.containers[0]", templates.engine(one)) for path, one in roles(service)]


def words(container: t.Mapping[str, t.Any]) -> list[str]:
    """What the container runs, where it says so itself."""
    return [*container.get("command", ()), *container.get("args", ())]


def accelerators(container: t.Mapping[str, t.Any]) -> tuple[str, int]:
    """(resource, how many) of the accelerators that a container gets."""
    for name, value in sorted(templates.resources(container).items()):
        if name.startswith((GPU, "nvidia.com/mig-", ASCEND)) or name == SLICES:
            count = quantity.amount(value)
            return name, int(count or 0)
    return "", 0


# -- the service ---------------------------------------------------------------------------------


def group_name(service: Service, index: int) -> str:
    """The name of a group's StatefulSet, ScaledObject and PodGroup."""
    return f"{service.name}-g{index}"


def names(service: Service, _facts: Facts) -> Found:
    if service.name and not _DNS_LABEL.match(service.name):
        allowed = "lower-case letters, digits and dashes; a letter first, no dash last, no dots"
        yield Problem("metadata.name", service.name, allowed, "rename the service")
    if not _NAMESPACE.match(service.namespace) or len(service.namespace) > MAX_LABEL:
        allowed = f"lower-case letters, digits and dashes, at most {MAX_LABEL} characters"
        yield Problem("metadata.namespace", service.namespace, allowed, "correct the namespace")
    longest = group_name(service, service.groups - 1)
    split = service.workers and service.layout in ("auto", "split")
    name = f"{longest}-w" if split else longest
    most = MAX_WORKLOAD - (len(name) - len(service.name))
    if len(service.name) > most:
        allowed = f"at most {most} characters, so that {name!r} has at most {MAX_WORKLOAD}"
        yield Problem("metadata.name", service.name, allowed, "take a shorter name")


def counts(service: Service, _facts: Facts) -> Found:
    if service.leader_replicas != 1:
        remedy = "write 1; spec.replicas counts the groups, servers.worker.replicas the workers"
        allowed = "1: a group has one leader"
        yield Problem("spec.servers.leader.replicas", service.leader_replicas, allowed, remedy)
    if service.max_unavailable_groups > service.groups:
        allowed = f"at most the {service.groups} groups of spec.replicas"
        path = "spec.flexai.rollout.max_unavailable_groups"
        yield Problem(path, service.max_unavailable_groups, allowed, "lower it")


def queue(service: Service, facts: Facts) -> Found:
    path, name = "spec.scheduler.queue", service.queue
    if not name:
        return
    if not _QUEUE.match(name) or len(name) > 253:
        allowed = "lower-case letters, digits, dashes and dots, at most 253 characters"
        yield Problem(path, name, allowed, "name a Queue of Volcano")
    elif facts.queues is not None and facts.queues.get(name) != "Open":
        state = facts.queues.get(name)
        is_so = f"is {state}" if state else "does not exist"
        allowed = f"a Queue that is Open; this one {is_so}"
        yield Problem(path, name, allowed, "make or open the Queue before its services")
    if service.gang == "none":
        allowed = "no queue with spec.flexai.gang.provider none"
        yield Problem(path, name, allowed, "remove the queue, or let the provider be volcano")


def gang(service: Service, facts: Facts) -> Found:
    if service.gang == "volcano" and facts.lacks(POD_GROUP):
        allowed = f"none: the cluster has no {POD_GROUP}"
        path = "spec.scheduler.queue" if service.queue else "spec.flexai.gang.provider"
        yield Problem(path, service.queue or "volcano", allowed, "install Volcano (role volcano)")


# -- templates -----------------------------------------------------------------------------------


def metadata_of_templates(service: Service, _facts: Facts) -> Found:
    places = [("metadata", {"labels": service.labels, "annotations": service.annotations})]
    places += [(f"{path}.metadata", dict(one.get("metadata", {}))) for path, one in roles(service)]
    for path, meta in places:
        for block in ("labels", "annotations"):
            for key, value in sorted(meta.get(block, {}).items()):
                where = f"{path}.{block}.{key}"
                if key.startswith(_OURS):
                    allowed = f"keys outside {_OURS}"
                    yield Problem(where, value, allowed, "remove it: the renderer sets these")
                elif not _QUALIFIED.match(key):
                    allowed = "a name of up to 63 characters, a DNS name and / before it if any"
                    yield Problem(where, HIDDEN, allowed, "correct the key")
                elif block == "labels" and not _LABEL_VALUE.match(value):
                    allowed = "up to 63 letters, digits, dashes, dots and underscores"
                    yield Problem(where, value, allowed, "shorten it, or make it an annotation")


def pods(service: Service, _facts: Facts) -> Found:
    for path, template in roles(service):
        spec = template.get("spec", {})
        if not spec.get("containers"):
            allowed = "at least one container; the first is the engine's"
            yield Problem(f"{path}.spec.containers", [], allowed, "write the engine's container")
        if spec.get("restartPolicy", "Always") != "Always":
            where, value = f"{path}.spec.restartPolicy", spec["restartPolicy"]
            yield Problem(where, value, "Always", "remove it: a StatefulSet admits no other")
        for key in ("hostname", "subdomain"):
            if key in spec:
                allowed = "nothing: the StatefulSet names its pods"
                yield Problem(f"{path}.spec.{key}", spec[key], allowed, "remove it")
        chosen = spec.get("schedulerName")
        if service.gang == "volcano" and chosen and chosen != _facts.scheduler_name:
            where = f"{path}.spec.schedulerName"
            allowed = f"{_facts.scheduler_name}: the service has a queue or a gang"
            yield Problem(where, chosen, allowed, "remove it, or the queue")
        yield from _distinct(f"{path}.spec.containers", spec.get("containers", ()), "name")
        yield from _distinct(f"{path}.spec.volumes", spec.get("volumes", ()), "name")


def _distinct(path: str, items: t.Sequence[t.Mapping[str, t.Any]], key: str) -> Found:
    seen: set[str] = set()
    for index, item in enumerate(items):
        name = item.get(key, "")
        if name and name in seen:
            allowed = f"each {key} once"
            yield Problem(f"{path}[{index}].{key}", name, allowed, "rename or remove one")
        seen.add(name)


def names_in_pods(service: Service, _facts: Facts) -> Found:
    for path, template in roles(service):
        for key in ("initContainers", "containers", "volumes"):
            for index, item in enumerate(template.get("spec", {}).get(key, ())):
                name = item.get("name", "a")
                if not _NAMESPACE.match(name) or len(name) > MAX_LABEL:
                    allowed = "lower-case letters, digits and dashes, at most 63 characters"
                    yield Problem(f"{path}.spec.{key}[{index}].name", name, allowed, "rename it")


def images(service: Service, _facts: Facts) -> Found:
    engine = service.engine
    for path, container in all_containers(service):
        is_engine = path.endswith(".containers[0]")
        if container and not container.get("image", "").strip():
            if is_engine and engine and engines.default_image(engine.name, engine.version):
                continue
            allowed = "the image of the container"
            yield Problem(f"{path}.image", MISSING, allowed, "name the image")


def commands(service: Service, _facts: Facts) -> Found:
    for path, container in engines_of(service):
        if not container:
            continue
        if service.engine:
            for key in ("command", "args"):
                if container.get(key):
                    allowed = "nothing with spec.flexai.engine, which makes the command"
                    remedy = "move flags to spec.flexai.engine.args, or remove spec.flexai.engine"
                    yield Problem(f"{path}.{key}", HIDDEN, allowed, remedy)
        elif not container.get("command"):
            allowed = "a command: run.sh takes the place of the image's entry point and starts it"
            remedy = "write the command, or describe the engine in spec.flexai.engine"
            yield Problem(f"{path}.command", MISSING, allowed, remedy)
        for key in ("command", "args"):
            for index, word in enumerate(container.get(key, ())):
                if _CURLY.search(word):
                    where = f"{path}.{key}[{index}]"
                    allowed = "straight quotes only; a shell takes \u201c and \u201d as letters"
                    yield Problem(where, HIDDEN, allowed, "retype the quotes, or the whole word")


def addresses(service: Service, _facts: Facts) -> Found:
    for path, container in engines_of(service):
        match = _TYPED_IN.search(" ".join(words(container)))
        if match:
            allowed = "no address of a pod: a pod that is made anew has another"
            remedy = 'write "$LWS_LEADER_ADDRESS" (a name) or "$FLEXAI_LEADER_IP" in its place'
            yield Problem(f"{path}.command", match.group(1), allowed, remedy)


def secrets(service: Service, _facts: Facts) -> Found:
    for path, container in all_containers(service):
        for index, entry in enumerate(container.get("env", ())):
            name = entry.get("name", "")
            if entry.get("value") and (names_secret(name) or _IN_URL.search(entry["value"])):
                allowed = f"no secret in plain text ({name})"
                remedy = "put it into a Secret, take it with valueFrom.secretKeyRef; change it too"
                yield Problem(f"{path}.env[{index}].value", HIDDEN, allowed, remedy)
        for key in ("command", "args"):
            if _tells_secret(" ".join(container.get(key, ()))):
                allowed = "no secret in plain text"
                remedy = "take it from a variable that has valueFrom.secretKeyRef"
                yield Problem(f"{path}.{key}", HIDDEN, allowed, remedy)
    if service.engine and _tells_secret(" ".join(service.engine.args)):
        remedy = "let the engine read it from a variable, as VLLM_API_KEY, with a secretKeyRef"
        yield Problem("spec.flexai.engine.args", HIDDEN, "no secret in plain text", remedy)


def _tells_secret(text: str) -> bool:
    match = _SECRET_FLAG.search(text)
    return bool(match and not match.group(1).startswith("$")) or bool(_IN_URL.search(text))


def names_secret(variable: str) -> bool:
    """Whether a variable of this name holds a secret."""
    parts = [part for part in re.split(r"[_.\-]", variable.upper()) if part]
    if not parts or parts[-1] in _WHERE:
        return False
    pairs = set(zip(parts, parts[1:]))
    return bool(_SECRET_WORDS & set(parts)) or any((k, "KEY") in pairs for k in _SECRET_KEYS)


def environment(service: Service, _facts: Facts) -> Found:
    for path, container in engines_of(service):
        yield from _distinct(f"{path}.env", container.get("env", ()), "name")
        for index, entry in enumerate(container.get("env", ())):
            name, where = entry.get("name", "A"), f"{path}.env[{index}].name"
            if name in RESERVED or name.startswith("FLEXAI_"):
                allowed = "other names: the renderer sets this one for each pod"
                yield Problem(where, name, allowed, "remove it")
            elif not _VARIABLE.match(name):
                allowed = "letters, digits and underscores, no digit first"
                yield Problem(where, name, allowed, "rename it")
            if "value" in entry and "valueFrom" in entry:
                allowed = "value or valueFrom"
                yield Problem(f"{path}.env[{index}]", HIDDEN, allowed, "remove one of them")


def amounts(service: Service, _facts: Facts) -> Found:
    for path, container in all_containers(service):
        block = container.get("resources", {})
        requests, limits = block.get("requests", {}), block.get("limits", {})
        for name in sorted(set(requests) | set(limits)):
            asked, limit = requests.get(name), limits.get(name)
            where = f"{path}.resources"
            if "/" not in name:
                least, most = quantity.amount(asked), quantity.amount(limit)
                if asked is not None and limit is not None and least and most and least > most:
                    allowed = f"at most the limit, {limit}"
                    yield Problem(f"{where}.requests.{name}", asked, allowed, "lower the request")
                continue
            if limit is None:
                allowed = "the same amount under limits: devices can't be had beyond a limit"
                remedy = f"write it under {where}.limits"
                yield Problem(f"{where}.requests.{name}", asked, allowed, remedy)
            elif asked is not None and not quantity.same(asked, limit):
                allowed = f"the limit's amount, {limit}"
                yield Problem(f"{where}.requests.{name}", asked, allowed, "make both the same")
            whole = quantity.amount(limit if limit is not None else asked)
            if whole is not None and (whole.denominator != 1 or whole < 0):
                shown = limit if limit is not None else asked
                yield Problem(f"{where}.limits.{name}", shown, "whole devices", "correct it")


def mounts(service: Service, _facts: Facts) -> Found:
    for path, container in engines_of(service):
        for index, mount in enumerate(container.get("volumeMounts", ())):
            target = mount.get("mountPath", "").rstrip("/")
            taken = [m for m in MOUNTS if m != "/dev/shm" or service.shm_size]
            if any(target == m or target.startswith(f"{m}/") for m in taken):
                allowed = f"paths outside {', '.join(taken)}, which the renderer mounts"
                where = f"{path}.volumeMounts[{index}].mountPath"
                remedy = "mount it elsewhere; shared memory is sized by spec.flexai.shm_size"
                yield Problem(where, target, allowed, remedy)
    for path, template in roles(service):
        for index, volume in enumerate(template.get("spec", {}).get("volumes", ())):
            if volume.get("name", "").startswith("flexai-"):
                where = f"{path}.spec.volumes[{index}].name"
                allowed = "names that don't begin with flexai-"
                yield Problem(where, volume["name"], allowed, "rename it")


def shared_memory(service: Service, _facts: Facts) -> Found:
    if not service.shm_size:
        return
    size = quantity.amount(service.shm_size)
    if size is None or size <= 0:
        allowed = "a quantity above 0"
        yield Problem("spec.flexai.shm_size", service.shm_size, allowed, "write one as 8Gi")
        return
    for path, container in engines_of(service):
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        memory = quantity.amount(limit) if limit is not None else None
        if memory is not None and size >= memory:
            allowed = f"less than the memory limit {limit} of {path}, against which it counts"
            remedy = "lower shm_size, or raise the limit"
            yield Problem("spec.flexai.shm_size", service.shm_size, allowed, remedy)
            return


def ports(service: Service, _facts: Facts) -> Found:
    taken = {
        GROUP_PORT: "the members' heartbeat", engines.RAY_PORT: "Ray",
        engines.MASTER_PORT: "the members' rendezvous", engines.DP_RPC_PORT: "data parallelism",
        engines.DIST_INIT_PORT: "SGLang's rendezvous",
    }  # fmt: skip
    if service.workers and service.port in taken:
        allowed = f"another port; {taken[service.port]} is at this one"
        remedy = f"take {DEFAULTS['port']}"
        yield Problem("spec.flexai.api.port", service.port, allowed, remedy)
    if not service.health_path.startswith("/") or re.search(r"\s", service.health_path):
        allowed = "a path that begins with /"
        yield Problem("spec.flexai.api.health_path", service.health_path, allowed, "write /health")


# -- engine, model, accelerators -----------------------------------------------------------------


def engine_and_model(service: Service, _facts: Facts) -> Found:
    ours = service.document.get("spec", {}).get("flexai", {})
    if service.engine and "model" not in ours:
        allowed = "where the model lies, with spec.flexai.engine"
        yield Problem("spec.flexai.model", MISSING, allowed, "write spec.flexai.model.path")
    for key in ("model", "parallelism"):
        if key in ours and "engine" not in ours:
            allowed = "nothing without spec.flexai.engine, which reads it"
            remedy = "describe the engine, or remove this"
            yield Problem(f"spec.flexai.{key}", HIDDEN, allowed, remedy)
    if service.engine and "rendezvous" in ours:
        allowed = "nothing with spec.flexai.engine, which knows where its members meet"
        yield Problem("spec.flexai.rendezvous", HIDDEN, allowed, "remove it")
    if service.engine and service.model:
        for problem in engines.launch_problems("", launch(service)):
            field, bracket, rest = problem.path.partition("[")
            path = _LAUNCH.get(field, f"spec.flexai.engine{field}") + bracket + rest
            yield Problem(path, problem.value, problem.allowed, problem.remedy)


# A launch's field → where the service says it.
_LAUNCH = {
    ".engine": "spec.flexai.engine.name",
    ".version": "spec.flexai.engine.version",
    ".backend": "spec.flexai.engine.backend",
    ".model_path": "spec.flexai.model.path",
    ".max_model_len": "spec.flexai.model.max_model_len",
    ".gpu_memory_utilization": "spec.flexai.model.gpu_memory_utilization",
    ".extra": "spec.flexai.engine.args",
    ".port": "spec.flexai.api.port",
    ".tp": "spec.flexai.parallelism.tp",
    ".pp": "spec.flexai.parallelism.pp",
    ".dp": "spec.flexai.parallelism.dp",
}


def launch(service: Service) -> engines.Launch:
    """How the service's engine is started; only for a service that has engine and model."""
    engine, model = service.engine, service.model
    if engine is None or model is None:
        raise ValueError(f"{service.name} has no engine or no model")
    return engines.Launch(
        engine=engine.name,
        version=engine.version,
        model_path=model.path,
        served_name=model.name,
        port=service.port,
        tp=service.tp,
        pp=service.pp,
        dp=service.dp,
        group_size=service.pods,
        backend=engine.backend,
        max_model_len=model.max_model_len,
        gpu_memory_utilization=model.gpu_memory_utilization,
        dtype=model.dtype,
        extra=engine.args,
        drain_seconds=service.timing.drain,
    )


def parallelism(service: Service, _facts: Facts) -> Found:
    resource, gpus = accelerators(templates.engine(service.leader))
    # Without accelerators an engine runs on CPUs, which nobody counts for it.
    if not service.engine or not gpus:
        return
    if resource.endswith(SHARED):
        # Shares are not cards: more of them than cards are how distinct_cards is satisfied.
        ranks = service.tp * service.pp * (1 if service.engine.name == "sglang" else service.dp)
        gpus = min(gpus, -(-ranks // service.pods))
    known = models.find(service.model.template) if service.model else None
    yield from sizing.parallel_problems(
        "spec.flexai.parallelism",
        known,
        service.engine.name,
        tp=service.tp,
        pp=service.pp,
        dp=service.dp,
        pods=service.pods,
        gpus_per_pod=gpus,
    )


def distinct_cards(service: Service, facts: Facts) -> Found:
    """Shares of a card say nothing about which card: two of them may be on one."""
    for path, container in engines_of(service):
        resource, count = accelerators(container)
        match = _TP.search(" ".join(words(container)))
        width = service.tp if service.engine else int(match.group(1)) if match else 1
        here = min(width, -(-width // service.pods) if service.pods > 1 else width)
        if not resource.endswith(SHARED) or width < 2:
            continue
        enough = facts.shared_replicas is not None and count > facts.shared_replicas * (here - 1)
        if not enough or here < 2:
            where = f"{path}.resources.limits.{resource}"
            allowed = (
                f"whole GPUs ({GPU}) with tensor parallelism {width}: shares of {SHARED[1:]} may "
                "lie on one card"
            )
            remedy = f"ask for {GPU}, or let tensor parallelism be 1"
            yield Problem(where, count, allowed, remedy)


def memory(service: Service, facts: Facts) -> Found:
    """Weights and one sequence of the shortest context that serves, against what a GPU gives."""
    model = models.find(service.model.template) if service.engine and service.model else None
    path, container = engines_of(service)[0]
    resource, gpus = accelerators(container)
    if model is None or service.model is None or not gpus:
        return
    given, where = quantity.amount(facts.gpu_memory), "facts.gpu_memory"
    if resource == SLICES:
        gib = quantity.amount(templates.resources(container).get(SLICE_MEMORY))
        given, where = gib and gib * GIB, f"{path}.resources.limits.{SLICE_MEMORY}"
    if given:
        context = service.model.max_model_len or min(model.max_context, sizing.LEAST_CONTEXT)
        wanted = sizing.need(model, context=context, tp=service.tp, pp=service.pp)
        yield from sizing.memory_problems(where, model, wanted, int(given))


def driver(service: Service, facts: Facts) -> Found:
    engine = service.engine
    if not engine or not facts.driver_version or templates.engine(service.leader).get("image"):
        return
    cuda = engines.cuda_floor(engine.name, engine.version)
    if not cuda:
        return
    question = cuda_compat.Question(
        facts.driver_version,
        cuda,
        facts.gpu_class if service.gpu_profile != "consumer" else "consumer",
        toolkit=facts.container_toolkit_version,
    )
    try:
        answer = cuda_compat.answer(question)
    except XpuError as error:
        yield Problem("facts.driver_version", facts.driver_version, error.msg, error.remedy)
        return
    if not answer.runs:
        path = "spec.flexai.engine.version"
        yield Problem(path, engine.version, f"an image for this driver: {answer.reason}",
                      answer.remedy or "take an older engine, or a newer driver")  # fmt: skip


# -- network and scaling -------------------------------------------------------------------------


def network(service: Service, _facts: Facts) -> Found:
    net = service.network
    if not re.match(r"^[=^]?[\w.,-]{1,128}$", net.ifname):
        allowed = "names of interfaces, as eth0, =eth0 or ^lo,docker0"
        yield Problem("spec.flexai.network.ifname", net.ifname, allowed, "correct it")
    if net.rdma_resource and not re.match(r"^[a-z0-9.-]+/[\w.-]+$", net.rdma_resource):
        allowed = "a resource as rdma/hca_shared"
        yield Problem("spec.flexai.network.rdma_resource", net.rdma_resource, allowed, "correct it")
    if net.profile == "tcp":
        for key in ("rdma_resource", "gid_index", "traffic_class", "hca"):
            value = getattr(net, key)
            if value not in ("", None):
                allowed = "nothing with network profile tcp"
                remedy = "let spec.flexai.network.profile be roce, or remove it"
                yield Problem(f"spec.flexai.network.{key}", value, allowed, remedy)


def clients(service: Service, _facts: Facts) -> Found:
    for index, peer in enumerate(service.clients):
        if not peer or ("ipBlock" in peer and len(peer) > 1):
            allowed = "ipBlock alone, or namespaceSelector and podSelector"
            path = f"spec.flexai.network_policy.clients[{index}]"
            yield Problem(path, dict(peer), allowed, "write one kind of client an item")


def scaling(service: Service, facts: Facts) -> Found:
    block = service.document.get("spec", {}).get("flexai", {}).get("scaling", {})
    path, mode = "spec.flexai.scaling", service.scaling.mode
    if mode == "none":
        for key in sorted(set(block) - {"mode"}):
            allowed = "nothing with scaling mode none"
            yield Problem(f"{path}.{key}", block[key], allowed, f"set {path}.mode, or remove it")
        return
    if service.scaling.min_groups > service.groups:
        allowed = f"at most the {service.groups} groups of spec.replicas"
        yield Problem(f"{path}.min_groups", service.scaling.min_groups, allowed, "lower it")
    if block.get("serverless") is not None and block["serverless"] == bool(
        service.scaling.min_groups
    ):
        allowed = "true with min_groups 0, false with more"
        yield Problem(f"{path}.serverless", block["serverless"], allowed, "remove one of the two")
    yield from (_keda if mode == "keda" else _hpa)(path, service, facts)


def _keda(path: str, service: Service, facts: Facts) -> Found:
    scaling = service.scaling
    if facts.lacks(SCALED_OBJECT):
        allowed = f"none: the cluster has no {SCALED_OBJECT}"
        yield Problem(f"{path}.mode", "keda", allowed, "install KEDA, or let mode be none")
    if scaling.http_hosts and facts.lacks(INTERCEPTOR_ROUTE):
        allowed = f"nothing: the cluster has no {INTERCEPTOR_ROUTE}"
        remedy = "install KEDA's HTTP add-on 0.14 or newer, or scale by prometheus"
        yield Problem(f"{path}.http", HIDDEN, allowed, remedy)
    if not scaling.http_hosts and not scaling.prometheus:
        allowed = "prometheus.server or http.hosts: what tells the load"
        yield Problem(f"{path}.prometheus", MISSING, allowed, "write one of them")
    elif not scaling.http_hosts and not scaling.query and not scaling.min_groups:
        allowed = "a query that has a value at zero pods: the engine's own metrics go with its pods"
        remedy = "query the gateway's requests, or use http.hosts, or let min_groups be 1"
        yield Problem(f"{path}.prometheus.query", MISSING, allowed, remedy)
    elif not scaling.query and not service.engine and scaling.prometheus:
        allowed = "a query: without spec.flexai.engine nobody knows the engine's metrics"
        yield Problem(f"{path}.prometheus.query", MISSING, allowed, "write the query")
    several = service.pods > 1 and service.groups - scaling.min_groups > 1
    if scaling.http_hosts and several and not scaling.prometheus:
        allowed = (
            "prometheus too: the HTTP add-on tells that there is load, not for how many groups"
        )
        yield Problem(f"{path}.prometheus", MISSING, allowed, "add it, or let spec.replicas be 1")
    if scaling.cooldown_seconds < service.timing.drain:
        allowed = f"at least the {service.timing.drain} s of spec.flexai.drain.seconds"
        yield Problem(f"{path}.cooldown_seconds", scaling.cooldown_seconds, allowed, "raise it")


def _hpa(path: str, service: Service, _facts: Facts) -> Found:
    if service.pods > 1:
        allowed = f"keda: an HPA moves single pods, and a group has {service.pods}"
        yield Problem(f"{path}.mode", "hpa", allowed, "let mode be keda or none")
    if not service.scaling.metric:
        allowed = "a metric of the pods that the cluster's metrics API serves"
        remedy = "name it as the adapter does, as vllm_num_requests_running"
        yield Problem(f"{path}.metric", MISSING, allowed, remedy)
    if not service.scaling.min_groups:
        allowed = "at least 1: an HPA can't wake a service from zero"
        yield Problem(f"{path}.min_groups", 0, allowed, "let mode be keda")


def layout(service: Service, facts: Facts) -> Found:
    if service.layout == "lws" and facts.lacks(LEADER_WORKER_SET):
        allowed = f"auto, single or split: the cluster has no {LEADER_WORKER_SET}"
        yield Problem("spec.flexai.layout", "lws", allowed, "install LWS, or choose another layout")
    if service.layout in ("split", "lws") and not service.workers:
        allowed = "auto or single for a service without workers"
        yield Problem("spec.flexai.layout", service.layout, allowed, "remove it")
    if service.layout != "single":
        return
    for found in templates.merge(
        service.leader, service.worker, service.resource_policy
    ).differences:
        path = f"spec.servers.worker.template.{found.path}"
        allowed = "the leader's: with layout single both have one template"
        remedy = "make both the same, or let spec.flexai.layout be auto or split"
        value = HIDDEN if "env" in found.path else found.worker
        yield Problem(path, value, allowed, remedy)


RULES: tuple[t.Callable[[Service, Facts], Found], ...] = (
    names, counts, queue, gang, metadata_of_templates, pods, names_in_pods, images, commands,
    addresses, secrets, environment, amounts, mounts, shared_memory, ports, engine_and_model,
    parallelism, distinct_cards, memory, driver, network, clients, scaling, layout,
)  # fmt: skip


def check(service: Service, facts: Facts, shape_problems: t.Sequence[Problem]) -> list[Problem]:
    """All that is wrong. A rule is not heard about what is wrong in its shape already."""
    wrong = {problem.path for problem in shape_problems}

    def known(path: str) -> bool:
        return any(
            path == other or path.startswith((f"{other}.", f"{other}[")) or _within(other, path)
            for other in wrong
        )

    found = [problem for rule in RULES for problem in rule(service, facts)]
    return [*shape_problems, *(problem for problem in found if not known(problem.path))]


def _within(inner: str, outer: str) -> bool:
    return inner.startswith((f"{outer}.", f"{outer}["))
