# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""sysHAX on one host: what is there, and what has to change. Decides; changes nothing."""

from __future__ import annotations

import inspect
import json
import re
import typing as t

from . import _cpu_plan as cpus
from . import _records as records
from . import _syshax as syshax
from . import _syshax_helper as helper
from ._decision import version_key
from ._errors import XpuError
from ._host import Host

COMPONENT = "syshax"
OLDEST_DOCKER = "25.0.3"  # the document's
# Before it, Docker takes CDI devices only where its configuration says so.
CDI_BY_DEFAULT = "28.2"
UNIT_DIRECTORY = "/etc/systemd/system"
COMPLETE = ".complete"
LSCPU = ("lscpu", "-J", "-a", "-e=CPU,NODE,SOCKET,CORE,ONLINE")
_CPUSETS = ("/sys/fs/cgroup/cpuset.cpus.effective", "/sys/fs/cgroup/cpuset/cpuset.effective_cpus")
_VERSION = re.compile(r"\d+(?:\.\d+)+")


class Machine(t.NamedTuple):
    """What of the host decides whether and how engines can run."""

    versions: t.Mapping[str, str]  # container engines that answer
    docker_config: str
    has_cdi: bool  # CDI knows nvidia.com/gpu
    driver: str
    cuda: str
    topology: t.Mapping[str, t.Any]
    allowed: str | None
    python: str


class Binding(t.NamedTuple):
    """How the CPU's engine is bound to cores, and what people should know of it."""

    env: t.Mapping[str, str]
    ranks: int
    warnings: t.Sequence[str]


class State(t.NamedTuple):
    """What of ours is there."""

    record: t.Mapping[str, t.Any]
    files: t.Mapping[str, str | None]
    enabled: t.Mapping[str, bool]
    runs: t.Mapping[str, bool]
    release: str  # where the program's link leads
    complete: bool  # and whether that directory is whole
    foreign_program: bool  # somebody else's lies where that link belongs


class Wanted(t.NamedTuple):
    """Everything that shall be: texts by path, units in their order, and the program's release."""

    files: t.Mapping[str, str]
    units: tuple[str, ...]
    release: str  # empty with the system's package


class Steps(t.NamedTuple):
    """What to do, in this order."""

    files: tuple[str, ...]
    release: bool
    enable: tuple[str, ...]
    restart: tuple[str, ...]
    reload: bool  # the conductor reads its file again, and drops no stream

    def __bool__(self) -> bool:
        return any(self)


def unit_file(unit: str) -> str:
    return f"{UNIT_DIRECTORY}/{unit}"


def wanted_by(unit: str) -> str:
    return f"{UNIT_DIRECTORY}/multi-user.target.wants/{unit}"


def helper_text() -> str:
    return "#!/usr/bin/python3\n" + inspect.getsource(helper)


# -- looking ---------------------------------------------------------------------------------
def look_at_machine(host: Host) -> Machine:
    argv = {
        "docker": ["docker", "version", "--format={{.Server.Version}}"],
        "podman": ["podman", "version", "--format={{.Client.Version}}"],
    }
    versions = {}
    for name, words in argv.items():
        done = host.run(words)
        found = _VERSION.search(done.out) if done.rc == 0 else None
        if found:
            versions[name] = found.group()
    smi = host.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    nvcc = host.run([host.program("nvcc") or "/usr/local/cuda/bin/nvcc", "-V"])
    release = re.search(r"release (\d+\.\d+)", nvcc.out)
    specs = [*host.glob("/etc/cdi/*"), *host.glob("/var/run/cdi/*")]
    return Machine(
        versions=versions,
        docker_config=host.read("/etc/docker/daemon.json") or "",
        has_cdi=any("nvidia.com/gpu" in (host.read(spec) or "") for spec in specs),
        driver=(smi.out.strip().splitlines() or [""])[0] if smi.rc == 0 else "",
        cuda=release.group(1) if release and nvcc.rc == 0 else "",
        topology=_topology(host),
        allowed=next((text.strip() for path in _CPUSETS if (text := host.read(path))), None),
        python=host.program("python3"),
    )


def _topology(host: Host) -> dict[str, t.Any]:
    done = host.run(list(LSCPU))
    if done.rc != 0:
        return {}
    try:
        document = json.loads(done.out)
    except ValueError:
        return {}
    memory = (host.read("/sys/devices/system/node/has_memory") or "").strip()
    return {**document, "memory_nodes": memory} if memory else dict(document)


def look_at_state(host: Host, paths: t.Iterable[str]) -> State:
    units = tuple(syshax.UNITS.values())
    link = host.link(syshax.PROGRAM)
    ours = link.startswith(f"{syshax.RELEASES}/")
    release = link.removeprefix(f"{syshax.RELEASES}/").partition("/")[0] if ours else ""
    return State(
        record=records.read(host, COMPONENT),
        files={path: host.read(path) for path in paths},
        enabled={unit: bool(host.link(wanted_by(unit))) for unit in units},
        # systemd keeps this link while a unit runs; elsewhere than on a host there are no services.
        runs={
            unit: not host.is_real or bool(host.link(f"/run/systemd/units/invocation:{unit}"))
            for unit in units
        },
        release=release,
        complete=bool(release) and host.exists(f"{syshax.RELEASES}/{release}/{COMPLETE}"),
        foreign_program=host.exists(syshax.PROGRAM) and not ours,
    )


# -- deciding --------------------------------------------------------------------------------
def choose_runtime(asked: str, versions: t.Mapping[str, str], since: str) -> str:
    """Docker before Podman, as the document has it; a Docker that is too old is no choice."""
    oldest = since or OLDEST_DOCKER
    new_enough = "docker" in versions and version_key(versions["docker"]) >= version_key(oldest)
    if asked == "auto":
        if new_enough:
            return "docker"
        if "podman" in versions:
            return "podman"
    elif asked in versions and (asked != "docker" or new_enough):
        return asked
    found = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    raise XpuError(
        f"syshax_runtime: {asked} is wanted, Docker from {oldest} on; "
        f"{found or 'neither Docker nor Podman'} answers on the host.",
        "install one of them (role container_engine with container_runtime_engine: docker, or "
        "`dnf install moby`), or lower syshax_runtime_since.",
    )


def check_accelerator(settings: syshax.Settings, machine: Machine, need_cuda: bool) -> None:
    """The document's checks before anything is started, and the device's name in CDI."""
    if settings.accelerator != "nvidia":
        return
    missing = [] if machine.driver else ["nvidia-smi names no card"]
    if need_cuda and not machine.cuda:
        missing.append("nvcc -V names no release")
    if missing:
        raise XpuError(
            f"The accelerator can't be used: {' and '.join(missing)}.",
            "install driver and CUDA first (playbook flexai.xpu.nvidia, roles nvidia_driver and "
            "cuda_toolkit); syshax_need_cuda: false where the images bring their own CUDA.",
        )
    if settings.devices != "cdi":
        return
    if not machine.has_cdi:
        raise XpuError(
            "syshax_devices: cdi is wanted, and no file in /etc/cdi or /var/run/cdi names "
            "nvidia.com/gpu.",
            "run role container_toolkit, or `nvidia-ctk cdi generate --output=/etc/cdi/"
            "nvidia.yaml`; syshax_devices: gpus takes Docker's own --gpus=all.",
        )
    version = machine.versions.get("docker", "")
    if settings.runtime == "docker" and version_key(version) < version_key(CDI_BY_DEFAULT):
        try:
            features = json.loads(machine.docker_config or "{}").get("features", {})
        except ValueError:
            features = {}
        if not features.get("cdi"):
            raise XpuError(
                f"syshax_devices: cdi is wanted, and Docker {version} takes CDI devices only with "
                '{"features": {"cdi": true}} in /etc/docker/daemon.json.',
                "set it there and restart Docker, or take Docker from 28.2 on, or Podman.",
            )


def check_model(host: Host, settings: syshax.Settings) -> None:
    """Docker would make a directory that is missing, and the engine find nothing in it."""
    needed = [settings.models_dir]
    if settings.model.startswith(settings.models_dir.rstrip("/") + "/"):
        needed.append(settings.model)
    for path in needed:
        if not host.exists(path):
            raise XpuError(
                f"{path} does not exist on the host.",
                "put the model there, or correct syshax_model and syshax_models_dir.",
            )


def bind(settings: syshax.Settings, machine: Machine, options: t.Mapping[str, t.Any]) -> Binding:
    """The CPU engine's binding, or why there is none."""
    if not options.get("enabled", True):
        return Binding({}, 1, [])
    engine = "fused" if settings.op_mode == "fused" else "vllm"
    facts = cpus.read_lscpu(machine.topology, machine.allowed)
    found = cpus.plan(
        facts,
        cpus.Options(
            engine=engine,
            smt=bool(options.get("smt", False)),
            nodes=tuple(cpus.parse_list(str(options.get("nodes") or ""))),
            reserve_per_node=int(options.get("reserve_per_node") or 0),
            reserved_cpus=frozenset(cpus.parse_list(str(options.get("reserved_cpus") or ""))),
            max_threads=options.get("max_threads") or None,
            max_stranded=float(options.get("max_stranded", 0.5)),
            hidden_sizes=tuple(int(size) for size in options.get("hidden_sizes") or ()),
        ),
    )
    (only,) = found["engines"]
    env = {str(name): str(value) for name, value in only["env"].items()}
    ranks = int(only.get("tensor_parallel_size", 1))
    return Binding(env, ranks, list(found.get("warnings", [])))


def plan(state: State, wanted: Wanted) -> Steps:
    """The least that leads from *state* to *wanted*."""
    if not state.record:
        foreign = [path for path in wanted.files if state.files.get(path) is not None]
        # Settings may well be there before we are: `syshax init` writes them.
        foreign = [path for path in foreign if path != syshax.CONFIG]
        if wanted.release and state.foreign_program:
            foreign.append(syshax.PROGRAM)
        if foreign:
            raise XpuError(
                f"{', '.join(foreign)}: there already, and not installed by us.",
                "move it away, or take that installation back first.",
            )
    files = tuple(path for path, text in wanted.files.items() if state.files.get(path) != text)
    release = bool(wanted.release) and (state.release != wanted.release or not state.complete)
    enable = tuple(unit for unit in wanted.units if not state.enabled[unit])
    stopped = {unit for unit in wanted.units if not state.runs[unit]}
    again = stopped | {unit for unit in wanted.units if unit_file(unit) in files}
    conductor = syshax.UNITS[syshax.CONDUCTOR]
    gpu, cpu = syshax.UNITS[syshax.GPU], syshax.UNITS[syshax.CPU]
    # A run that was killed or failed had written their files, and not restarted them.
    again |= set(state.record.get("pending", ())) & set(wanted.units)
    if release:
        again.add(conductor)
    if gpu in again and cpu in wanted.units:
        # It lives in the namespace of that container.
        again.add(cpu)
    reread = False
    if syshax.CONFIG in files and conductor not in again:
        moved = _address(state.files.get(syshax.CONFIG)) != _address(wanted.files[syshax.CONFIG])
        if moved or not wanted.release:
            again.add(conductor)
        else:
            reread = True
    restart = tuple(unit for unit in wanted.units if unit in again)
    return Steps(files, release, enable, restart, reread)


def _address(text: str | None) -> list[str]:
    """The conductor's own lines of our file; a file of somebody else's has others."""
    lines = (text or "").splitlines()
    if "  conductor:" not in lines:
        return []
    at = lines.index("  conductor:")
    return lines[at : at + 3]
