# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The judgement of a host: its own tools are asked what is in force.

Shares no knowledge with the plan (only ``Host``, which reads files and runs programs, and the form
of a verdict), so that an error in the plan can't hide itself here.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import typing as t

from ._host import NOT_FOUND, Host
from ._verdict import Component, build

TOOL_LIMIT_S = 20
RUNTIME_PROGRAMS = {
    "nvidia": "/usr/bin/nvidia-container-runtime",
    "nvidia-cdi": "/usr/bin/nvidia-container-runtime.cdi",
}


# -- driver ----------------------------------------------------------------------------------


def _ask_driver(host: Host) -> tuple[str, int, str]:
    """(version, cards, complaint) as `nvidia-smi` says."""
    query = ["nvidia-smi", "--query-gpu=driver_version,uuid", "--format=csv,noheader"]
    done = host.run(query, timeout_s=TOOL_LIMIT_S)
    if done.rc != 0:
        said = (done.err or done.out).strip().splitlines()[-1:] or ["nothing"]
        return "", 0, f"nvidia-smi: rc {done.rc}, {said[0]}"
    cards = [line.split(",") for line in done.out.splitlines() if "GPU-" in line]
    versions = sorted({card[0].strip() for card in cards})
    return "/".join(versions), len(cards), "" if cards else "nvidia-smi shows no card"


def _kernel_side(host: Host) -> str:
    for line in (host.read("/proc/driver/nvidia/version") or "").splitlines():
        if line.startswith("NVRM version:"):
            numbers = [word for word in line.split() if re.match(r"^[0-9]+[.][0-9.]+$", word)]
            return numbers[0] if numbers else ""
    return ""


def _loaded_by_linker(host: Host) -> str:
    """Version of the file that a program gets who opens libcuda.so.1."""
    if not host.is_real:
        # Another root has no dynamic loader to ask: follow the link as it would.
        links = host.glob("/usr/lib/*/libcuda.so.1") + host.glob("/usr/lib*/libcuda.so.1")
        return host.link(links[0]).rsplit("libcuda.so.", 1)[-1] if links else ""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if "/libcuda.so" in line:
                return os.path.realpath(line.split()[-1]).rsplit("libcuda.so.", 1)[-1]
    return ""


def _fabric_complaint(host: Host) -> str:
    """What keeps CUDA from starting on a board with NVSwitches, although the driver answers."""
    switches = [
        device
        for device in host.glob("/sys/bus/pci/devices/*")
        if (host.read(f"{device}/vendor") or "").strip() == "0x10de"
        and (host.read(f"{device}/class") or "").startswith("0x0680")
    ]
    if not switches:
        return ""
    unit = "nvidia-fabricmanager.service"
    active = host.run(["systemctl", "is-active", unit], timeout_s=TOOL_LIMIT_S)
    if active.out.strip() == "active":
        return ""
    said = active.out.strip() or active.err.strip()[-200:]
    return f"{len(switches)} NVSwitches, and {unit} is {said}: no CUDA program starts"


def judge_driver(host: Host, wanted: str) -> Component:
    name = "nvidia_driver"
    kernel, library = _kernel_side(host), _loaded_by_linker(host)
    if not library and not kernel and host.exists("/sys/module/nouveau"):
        reason = "nouveau drives the cards; reboot the host, then run again"
        barred = "blacklist nouveau" in (host.read("/etc/modprobe.d/flexai-xpu-nouveau.conf") or "")
        return Component(name, wanted, "nouveau", "pending-reboot" if barred else "absent", reason)
    if not library and not kernel:
        return Component(name, wanted, "", "absent", "neither kernel module nor library")
    if library == wanted and kernel != wanted:
        reason = f"kernel module {kernel or 'not loaded'}; reboot the host"
        return Component(name, wanted, kernel or library, "pending-reboot", reason)
    version, cards, complaint = _ask_driver(host)
    found = version or library
    complaint = complaint or _fabric_complaint(host)
    if complaint:
        return Component(name, wanted, found, "failed", complaint)
    if not version == library == kernel == wanted:
        reason = (
            f"nvidia-smi {version}, library {library or 'none'}, kernel module {kernel or 'none'}"
        )
        return Component(name, wanted, found, "failed", reason)
    return Component(name, wanted, found, "ok", f"{cards} card{'' if cards == 1 else 's'}")


# -- CUDA toolkit ------------------------------------------------------------------------------


def judge_cuda(host: Host, wanted: str) -> Component:
    """The release that its compiler says; `nvcc` knows no more of the toolkit's version."""
    name, release = "cuda_toolkit", ".".join(wanted.split(".")[:2])
    compiler = f"/usr/local/cuda-{release}/bin/nvcc"
    done = host.run([compiler, "-V"], timeout_s=TOOL_LIMIT_S)
    if done.rc == NOT_FOUND:
        return Component(name, wanted, "", "absent", f"{compiler} is not installed")
    said = re.search(r"release ([0-9.]+), V([0-9.]+)", done.out)
    found = said.group(2) if said else ""
    if done.rc != 0 or not said or said.group(1) != release:
        return Component(name, wanted, found, "failed", f"{compiler} -V: rc {done.rc}")
    return Component(name, wanted, found, "ok", f"nvcc of release {release}")


# -- toolkit ---------------------------------------------------------------------------------


def _unsafe_setting(host: Host) -> str:
    """The switch that lets a pod's own environment ask for cards, when it isn't off."""
    text = host.read("/etc/nvidia-container-runtime/config.toml") or ""
    safe = re.search(
        r"^accept-nvidia-visible-devices-envvar-when-unprivileged *= *false", text, re.MULTILINE
    )
    return "" if safe else "unprivileged containers may ask for cards by an environment variable"


def judge_toolkit(host: Host, wanted: str, driver: str, allow_envvar: bool) -> Component:
    name = "container_toolkit"
    done = host.run(["nvidia-ctk", "--version"], timeout_s=TOOL_LIMIT_S)
    if done.rc == NOT_FOUND:
        return Component(name, wanted, "", "absent", "nvidia-ctk is not installed")
    said = re.search(r"version ([0-9][0-9.]*)", done.out)
    found = said.group(1) if said else ""
    if done.rc != 0 or found != wanted:
        return Component(name, wanted, found, "failed", f"nvidia-ctk --version: rc {done.rc}")
    unsafe = "" if allow_envvar else _unsafe_setting(host)
    if unsafe:
        return Component(name, wanted, found, "failed", unsafe)
    specification = host.read("/etc/cdi/nvidia.yaml") or ""
    if f"libcuda.so.{driver}" not in specification:
        pending = _kernel_side(host) != driver
        reason = f"/etc/cdi/nvidia.yaml does not describe driver {driver}"
        return Component(name, wanted, found, "pending-reboot" if pending else "failed", reason)
    return Component(name, wanted, found, "ok")


# -- container engine ------------------------------------------------------------------------

# Each says the version of what serves, not only of the program that asks.
ENGINE_QUESTIONS = {
    "containerd": ["ctr", "version"],
    "crio": ["crio", "--version"],
    "docker": ["docker", "version", "--format", "{{.Server.Version}}"],
    "cri-dockerd": ["cri-dockerd", "--version"],
}


def judge_engine(host: Host, engine: str, since: str) -> Component:
    name, wanted = "container_engine", f"{engine} {since} or newer"
    question = ENGINE_QUESTIONS[engine]
    done = host.run(question, timeout_s=TOOL_LIMIT_S)
    if done.rc == NOT_FOUND:
        return Component(name, wanted, "", "absent", f"{question[0]} is not installed")
    said = re.findall(r"(?<![0-9.])v?([0-9]+)[.]([0-9]+)(?:[.]([0-9]+))?", done.out)
    if done.rc != 0 or not said:
        words = (done.err or done.out).strip()[-200:]
        return Component(name, wanted, "", "failed", f"{' '.join(question)}: rc {done.rc}, {words}")
    numbers = [int(number or 0) for number in said[-1]]  # the server's comes last
    found = ".".join(map(str, numbers))
    old = numbers < [int(number) for number in since.split(".")]
    return Component(name, wanted, f"{engine} {found}", "failed" if old else "ok")


# -- container runtime -----------------------------------------------------------------------


def _containerd_programs(dump: str) -> dict[str, str]:
    """Runtime → program, read out of containerd's effective configuration."""
    programs: dict[str, str] = {}
    runtime = ""
    for line in dump.splitlines():
        header = re.match(r"""^ *\[.*runtimes[.]["']?([A-Za-z0-9_-]+)["']?[.]options\] *$""", line)
        if header or line.lstrip().startswith("["):
            runtime = header.group(1) if header else ""
        elif runtime and line.strip().startswith("BinaryName"):
            programs[runtime] = line.split("=", 1)[1].strip().strip("\"'")
    return programs


def _crio_programs(config: str) -> dict[str, str]:
    """Runtime → program, read out of what CRI-O says that it runs with."""
    section = re.compile(
        r"""^ *\[crio[.]runtime[.]runtimes[.]["']?([A-Za-z0-9_-]+)["']?\]$(.*?)(?=^ *\[|\Z)""",
        re.MULTILINE | re.DOTALL,
    )
    programs = {}
    for name, body in section.findall(config):
        path = re.search(r"""^ *runtime_path *= *["']([^"']+)""", body, re.MULTILINE)
        programs[name] = path.group(1) if path else ""
    return programs


def _not_restarted(host: Host) -> bool:
    """The daemon started before its configuration was last written."""
    socket = host.stat("/run/containerd/containerd.sock")
    files = ["/etc/containerd/config.toml", *host.glob("/etc/containerd/conf.d/*.toml")]
    states = [host.stat(path) for path in files]
    written = [state.st_mtime for state in states if state]
    return bool(socket and written and max(written) > socket.st_mtime)


def _docker_programs(host: Host, of_pods: bool) -> tuple[dict[str, str], str]:
    """(runtime → program, complaint); pods get Docker's default runtime, and no other."""
    done = host.run(["docker", "info", "--format", "{{json .}}"], timeout_s=TOOL_LIMIT_S)
    try:
        said = json.loads(done.out)
        programs = {name: str(value.get("path")) for name, value in said["Runtimes"].items()}
        default = said["DefaultRuntime"]
    except (ValueError, AttributeError, KeyError, TypeError):
        return {}, f"docker info: rc {done.rc}, {done.err.strip()[-200:]}"
    if of_pods and programs and default != "nvidia-cdi":
        return programs, f"Docker's default runtime is {default}; pods with slices need nvidia-cdi"
    return programs, ""


def _effective_programs(host: Host, engine: str) -> tuple[dict[str, str], str]:
    """(runtime → program, complaint)"""
    if engine in ("docker", "cri-dockerd"):
        return _docker_programs(host, of_pods=engine == "cri-dockerd")
    if engine == "crio":
        done = host.run(["crio", "status", "config"], timeout_s=TOOL_LIMIT_S)
        if done.rc != 0:
            return {}, f"crio status config: rc {done.rc}, {done.err.strip()[-200:]}"
        return _crio_programs(done.out), ""
    for distribution in ("k3s", "rke2"):  # with a containerd of their own, and no dump of it
        text = host.read(f"/var/lib/rancher/{distribution}/agent/etc/containerd/config.toml")
        if text is not None:
            return _containerd_programs(text), ""
    done = host.run(["containerd", "config", "dump"], timeout_s=TOOL_LIMIT_S)
    if done.rc != 0:
        return {}, f"containerd config dump: rc {done.rc}, {done.err.strip()[-200:]}"
    complaint = "containerd runs with an older configuration" if _not_restarted(host) else ""
    return _containerd_programs(done.out), complaint


def judge_runtime(host: Host, engine: str) -> Component:
    name = "container_runtime"
    programs, complaint = _effective_programs(host, engine)
    wrong = [
        runtime
        for runtime, program in RUNTIME_PROGRAMS.items()
        # The bare name, as a site may have written it, is found on the daemon's PATH.
        if programs.get(runtime) not in (program, os.path.basename(program))
    ]
    absent = [program for program in RUNTIME_PROGRAMS.values() if not host.program(program)]
    found = f"{engine}: {', '.join(sorted(programs))}" if programs else ""
    if complaint:
        return Component(name, engine, found, "failed", complaint)
    if wrong:
        state = "absent" if len(wrong) == len(RUNTIME_PROGRAMS) else "failed"
        return Component(name, engine, found, state, f"no runtime {', '.join(wrong)} in force")
    if absent:
        return Component(name, engine, found, "failed", f"{', '.join(absent)} is not installed")
    return Component(name, engine, found, "ok")


# -- xpu runtime -----------------------------------------------------------------------------


def _hash(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def judge_xpu(host: Host, wanted: str) -> Component:
    """The release that /opt/xpu/lib leads to, and each file of it against the release's record."""
    name = "xpu_runtime"
    library = os.path.realpath(host.path("/opt/xpu/lib"))
    release = os.path.dirname(library)
    found = os.path.basename(release)
    if not os.path.isdir(library):
        return Component(name, wanted, "", "absent", "/opt/xpu/lib leads nowhere")
    try:
        with open(os.path.join(release, "SHA256SUMS"), encoding="utf-8") as stream:
            lines = [line.rstrip("\n").partition("  ") for line in stream]
        altered = [
            file for digest, _gap, file in lines if _hash(os.path.join(release, file)) != digest
        ]
    except OSError as error:
        return Component(name, wanted, found, "failed", f"{error.filename}: {error.strerror}")
    if altered:
        return Component(name, wanted, found, "failed", f"altered: {', '.join(altered)}")
    state = "ok" if found == wanted else "failed"
    return Component(name, wanted, found, state, f"{len(lines)} files as recorded")


# -- agent -----------------------------------------------------------------------------------


def judge_agent(host: Host, wanted: str) -> Component:
    """The program's digest, what systemd says of its unit, and whether it reads the ledger."""
    name, program = "xpu_agent", "/usr/local/bin/gpu-device-plugin"
    if not wanted:
        return Component(name, "none", "none", "ok", "none wanted here")
    digest = host.digest(program)
    version, _dash, start = wanted.rpartition("-")
    found = f"{version}-{digest[:12]}" if digest[:12] == start else digest[:12]
    if not digest:
        return Component(name, wanted, "", "absent", f"{program} is not installed")
    active = host.run(["systemctl", "is-active", "xpu-agent.service"], timeout_s=TOOL_LIMIT_S)
    if active.out.strip() != "active":
        said = active.out.strip() or active.err.strip()[-200:]
        return Component(name, wanted, found, "failed", f"xpu-agent.service: {said}")
    listed = host.run([program, "slice", "list"], timeout_s=TOOL_LIMIT_S)
    if listed.rc != 0:
        reason = f"slice list: rc {listed.rc}, {listed.err.strip()[-200:]}"
        return Component(name, wanted, found, "failed", reason)
    return Component(name, wanted, found, "ok" if found == wanted else "failed")


# -- images ----------------------------------------------------------------------------------


def _docker_has(host: Host, image: str, digest: str) -> bool:
    """Docker names an image by its configuration; which manifest that belongs to is recorded."""
    done = host.run(["docker", "image", "inspect", "--format", "{{.Id}}", image], timeout_s=30)
    identity = done.out.strip()
    try:
        record = json.loads(host.read("/var/lib/flexai-xpu/docker_images.json") or "{}")
    except ValueError:
        record = {}
    return done.rc == 0 and record.get(identity, identity) == digest


def judge_images(host: Host, wanted: t.Mapping[str, str], engine: str) -> Component:
    name, total = "images", f"{len(wanted)} images"
    if not wanted:
        return Component(name, total, total, "ok", "none wanted here")
    if engine == "cri-dockerd":
        lacking = [
            image
            for image, digest in sorted(wanted.items())
            if not _docker_has(host, image, digest)
        ]
    else:
        done = host.run(["ctr", "-n", "k8s.io", "images", "ls"], timeout_s=TOOL_LIMIT_S)
        if done.rc != 0:
            reason = f"ctr: rc {done.rc}, {done.err.strip()[-200:]}"
            return Component(name, total, "", "failed", reason)
        lines = [line.split() for line in done.out.splitlines()]
        lacking = [
            image
            for image, digest in sorted(wanted.items())
            if not any(words[:1] == [image] and digest in words for words in lines)
        ]
    found = f"{len(wanted) - len(lacking)} images"
    if not lacking:
        return Component(name, total, found, "ok")
    state = "absent" if len(lacking) == len(wanted) else "failed"
    return Component(name, total, found, state, f"missing: {', '.join(lacking)}")


# -- all -------------------------------------------------------------------------------------


def _after_change(component: Component, action: str) -> Component:
    """A component that was changed in this run and is right now is `changed`."""
    if component.state == "ok" and action not in ("", "ok"):
        return Component(
            component.name, component.wanted, component.found, "changed", component.reason
        )
    return component


def judge_transaction(host: Host) -> list[Component]:
    """A change of the node that has not come to its end; nothing where none is open."""
    text = host.read("/var/lib/flexai-xpu/transaction.json")
    if text is None:
        return []
    try:
        note = json.loads(text)
        step, reason = str(note.get("step", "")), str(note.get("reason", ""))
    except (ValueError, AttributeError):
        step, reason = "unknown", "its note can't be read"
    state = "pending-reboot" if step == "reboot" else "blocked"
    told = f"cordoned since step {step}" + (f": {reason}" if reason else "")
    return [Component("node_transaction", "finished", step, state, told)]


Wanted = t.Mapping[str, t.Any]


def _ask_toolkit(host: Host, wanted: Wanted) -> Component:
    # Asked about the toolkit alone, what its CDI file should describe is the driver that runs.
    driver = wanted.get("nvidia_driver") or _kernel_side(host)
    allow_envvar = bool(wanted.get("accept_envvar_unprivileged"))
    return judge_toolkit(host, wanted["container_toolkit"], driver, allow_envvar)


JUDGES: dict[str, t.Callable[[Host, Wanted], Component]] = {
    "nvidia_driver": lambda host, wanted: judge_driver(host, wanted["nvidia_driver"]),
    "cuda_toolkit": lambda host, wanted: judge_cuda(host, wanted["cuda_toolkit"]),
    "container_engine": lambda host, wanted: judge_engine(
        host, wanted["container_engine"]["name"], wanted["container_engine"]["since"]
    ),
    "container_toolkit": _ask_toolkit,
    "container_runtime": lambda host, wanted: judge_runtime(host, wanted["container_runtime"]),
    "xpu_runtime": lambda host, wanted: judge_xpu(host, wanted["xpu_runtime"]),
    "xpu_agent": lambda host, wanted: judge_agent(host, wanted["xpu_agent"]),
    "images": lambda host, wanted: judge_images(
        host, wanted["images"], wanted.get("container_runtime", "containerd")
    ),
}


def judge(
    host: Host,
    name: str,
    wanted: Wanted,
    planned: t.Mapping[str, str],
    components: t.Iterable[str] | None = None,
    transaction: bool = False,
) -> dict[str, t.Any]:
    """The verdict of one host, of all that is wanted of it unless ``components`` says which.
    ``planned`` maps a component to the action of this run; an open
    ``transaction`` is part of it unless the one that is under way asks for itself.
    """
    asked = [name for name in JUDGES if name in wanted] if components is None else components
    judged = [JUDGES[component](host, wanted) for component in asked]
    if transaction:
        judged += judge_transaction(host)
    after = [_after_change(component, planned.get(component.name, "")) for component in judged]
    return build(name, after)
