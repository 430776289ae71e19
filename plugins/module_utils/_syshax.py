# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""sysHAX on one host: what containers and units say. All pure; settings and facts in, texts out.

The engines are containers in the foreground of systemd units, not under the container engine's
restart policy: the CPU's container lives in the IPC namespace of the accelerator's, so when that
one starts anew the other has to, after it, and no restart policy can say that. systemd can, at boot
and after a crash alike, and waits for an engine's health before it starts what comes next.
"""

from __future__ import annotations

import json
import typing as t

from ._errors import XpuError

GPU, CPU, CONDUCTOR = "gpu", "cpu", "conductor"
UNITS = {GPU: "syshax-gpu.service", CPU: "syshax-cpu.service", CONDUCTOR: "syshax.service"}
HELPER = "/usr/local/libexec/flexai-syshax"
RELEASES = "/opt/flexai-syshax"
PROGRAM = "/usr/local/bin/syshax"
SYSTEM_PROGRAM = "/usr/bin/syshax"
CONFIG = "/etc/syshax/config.yaml"
# Where openEuler's package keeps the file; it deletes it when it is upgraded.
SYSTEM_CONFIG = "/usr/share/sysHAX/config/config.yaml"
# vLLM's P/D transfer from an accelerator to a CPU: both options are needed on both sides (0.27 on).
NIXL: dict[str, t.Any] = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cpu",
    "kv_connector_extra_config": {"enforce_handshake_compat": False},
}
_OURS = "# Written by flexai.xpu, role syshax; changes are lost."


class Engine(t.NamedTuple):
    """One container with a vLLM server in it."""

    role: str
    image: str
    container: str
    port: int
    shm_size: str
    dtype: str
    env: t.Mapping[str, str]
    args: tuple[str, ...]
    command: tuple[str, ...]
    volumes: tuple[str, ...]


class Settings(t.NamedTuple):
    """What the site wants, checked."""

    runtime: str  # docker | podman
    generation: str  # v0 | v1
    accelerator: str  # nvidia | npu | stand-in
    devices: str  # cdi | gpus
    network: str  # bridge | host
    ipc: str  # shareable | host
    listen: str
    privileged: bool
    models_dir: str
    model: str
    served_name: str
    max_model_len: int
    block_size: int
    tensor_parallel: int
    memory_utilization: float
    quantize: str
    nrc: int
    op_mode: str
    kv_transfer: t.Mapping[str, t.Any]
    start_timeout_s: int
    gpu: Engine
    cpu: Engine
    cpu_ranks: int = 1  # vLLM's own CPU backend has one for each NUMA node


def generation(asked: str, image: str) -> str:
    """Which flags an image's vLLM has: sysHAX's own 0.x images hold the V0 engine."""
    if asked != "auto":
        return asked
    name, _colon, tag = image.rpartition("/")[2].partition(":")
    return "v0" if name.startswith("syshax-vllm-") and tag.startswith("0.") else "v1"


def serve_args(settings: Settings, engine: Engine) -> list[str]:
    """The flags of ``vllm serve``; each generation refuses some of the other's."""
    accelerated = engine.role == GPU and settings.accelerator != "stand-in"
    args = [
        f"--served-model-name={settings.served_name}",
        "--host=0.0.0.0" if settings.network == "bridge" else f"--host={settings.listen}",
        f"--port={engine.port}",
        f"--dtype={engine.dtype}",
        f"--max-model-len={settings.max_model_len}",
    ]
    if settings.block_size:
        args.append(f"--block-size={settings.block_size}")
    if accelerated:
        args.append(f"--tensor-parallel-size={settings.tensor_parallel}")
        args.append(f"--gpu-memory-utilization={settings.memory_utilization:g}")
    elif engine.role == CPU and settings.cpu_ranks > 1:
        args.append(f"--tensor-parallel-size={settings.cpu_ranks}")
    if settings.generation == "v0":
        args.append("--preemption-mode=swap")
        if accelerated:
            args.append("--swap-space=16")
        args.append("--enable-auto-pd-offload")
    else:
        transfer = json.dumps(dict(settings.kv_transfer or NIXL), sort_keys=True)
        args.append(f"--kv-transfer-config={transfer}")
    return [*args, *engine.args]


def command(settings: Settings, engine: Engine) -> list[str]:
    if engine.command:
        return list(engine.command)
    return ["vllm", "serve", settings.model, *serve_args(settings, engine)]


def environment(settings: Settings, engine: Engine, binding: t.Mapping[str, str]) -> dict[str, str]:
    """Variables of the container; what the site sets itself comes last and wins."""
    env: dict[str, str] = {}
    if settings.generation == "v0":
        env["VLLM_USE_V1"] = "0"
    if engine.role == CPU:
        if settings.op_mode:
            env["INFERENCE_OP_MODE"] = settings.op_mode
        if settings.quantize:
            env["SYSHAX_QUANTIZE"] = settings.quantize
        if settings.nrc:
            env["NRC"] = str(settings.nrc)
        env.update(binding)
    return {**env, **engine.env}


def run_argv(settings: Settings, engine: Engine, binding: t.Mapping[str, str]) -> list[str]:
    """The container's start, in the foreground; the document's, but for what the README says."""
    argv = [
        *_program(settings.runtime), "run", "--rm", f"--name={engine.container}",
        f"--shm-size={engine.shm_size}", f"--volume={settings.models_dir}:{settings.models_dir}:ro",
        "--workdir=/home/",
    ]  # fmt: skip
    if settings.runtime == "podman":
        # The journal has it all through the unit; Podman would write it there a second time.
        argv.append("--log-driver=none")
    if settings.ipc == "host":
        argv = [word for word in argv if not word.startswith("--shm-size")] + ["--ipc=host"]
    elif engine.role == GPU:
        argv.append("--ipc=shareable")
    else:
        argv = [word for word in argv if not word.startswith("--shm-size")]
        argv.append(f"--ipc=container:{settings.gpu.container}")
    if settings.network == "host":
        argv.append("--network=host")
    else:
        argv.append(f"--publish={settings.listen}:{engine.port}:{engine.port}")
    argv += _privileges(settings, engine)
    argv += [f"--volume={volume}" for volume in engine.volumes]
    env = environment(settings, engine, binding)
    argv += [f"--env={name}={env[name]}" for name in sorted(env)]
    # An image with an entrypoint of its own (vllm/vllm-openai) would take the command for flags.
    words = command(settings, engine)
    return [*argv, f"--entrypoint={words[0]}", engine.image, *words[1:]]


def _program(runtime: str) -> list[str]:
    """The container engine. Podman's own events would stand in the units' journal between what the
    engines say."""
    if runtime == "podman":
        return ["/usr/bin/podman", "--events-backend=file"]
    return [f"/usr/bin/{runtime}"]


def _privileges(settings: Settings, engine: Engine) -> list[str]:
    if engine.role == CPU:
        # Binding threads and memory to NUMA nodes: the engine's filter of system calls lets mbind
        # and set_mempolicy through with this capability, and needs no more.
        return ["--privileged"] if settings.privileged else ["--cap-add=SYS_NICE"]
    if settings.accelerator == "npu":
        return ["--privileged"]
    if settings.accelerator == "stand-in":
        return ["--cap-add=SYS_NICE"]
    return ["--gpus=all"] if settings.devices == "gpus" else ["--device=nvidia.com/gpu=all"]


def quote(word: str) -> str:
    """One word of ExecStart, as systemd reads it back."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if word and not set(word) & set(" \t\"'\\;"):
        return word
    return '"' + word.replace('"', '\\"') + '"'


def _line(argv: t.Iterable[str]) -> str:
    return " ".join(quote(word) for word in argv)


def health_url(settings: Settings, engine: Engine) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.listen, settings.listen)
    return f"http://{host}:{engine.port}/health"


def engine_unit(settings: Settings, engine: Engine, binding: t.Mapping[str, str]) -> str:
    """The unit of one engine."""
    daemon = "docker.service" if settings.runtime == "docker" else ""
    program = _program(settings.runtime)
    leftovers = [engine.container]
    if engine.role == GPU:
        # Podman removes no container in whose namespaces another one is, dead or alive.
        leftovers.insert(0, settings.cpu.container)
        title = {"stand-in": "stand-in of an accelerator"}.get(settings.accelerator, "accelerator")
        lines = [f"Description=sysHAX: vLLM of the {title} (prefill)"]
        lines.append(f"After=network-online.target {daemon}".rstrip())
        # A start of this one, also the one after a crash, brings the other up behind it.
        lines.append(f"Wants=network-online.target {UNITS[CPU]}")
    else:
        lines = ["Description=sysHAX: vLLM of the CPU (decode)"]
        lines.append(f"After={UNITS[GPU]} {daemon}".rstrip())
        # Its IPC namespace is that container's, and is gone with it.
        lines.append(f"BindsTo={UNITS[GPU]}")
    if daemon:
        lines.append(f"Requires={daemon}")
    service = ["Type=exec"]
    service += [f"ExecStartPre=-{_line([*program, 'rm', '--force', name])}" for name in leftovers]
    service += [f"ExecStartPre=-{line}" for line in _sweeps(settings, engine)]
    service += [
        f"ExecStart={_line(run_argv(settings, engine, binding))}",
        f"ExecStartPost={_line([HELPER, 'wait', health_url(settings, engine)])} $MAINPID",
        f"ExecStop=-{_line([*program, 'stop', '--time=30', engine.container])}",
        # --rm alone leaves it where the client is killed before it has removed it.
        f"ExecStopPost=-{_line([*program, 'rm', '--force', engine.container])}",
        "Restart=always",
        "RestartSec=5s",
        f"TimeoutStartSec={settings.start_timeout_s}s",
        "TimeoutStopSec=60s",
    ]
    return _unit(lines, service)


def _sweeps(settings: Settings, engine: Engine) -> list[str]:
    """Segments that dead engines left. A namespace of its own takes its segments along when its
    last container ends, so the accelerator's start has some to remove in the host's alone."""
    if settings.ipc == "host":
        # The peer may live: what nobody holds any more, and no request waits for.
        return [_line([HELPER, "sweep", "/dev/shm", "--older-than=900"])]
    if engine.role == GPU:
        return []
    runtime = f"/usr/bin/{settings.runtime}"
    return [_line([HELPER, "sweep-container", runtime, settings.gpu.container, "--older-than=900"])]


def conductor_unit(package: str) -> str:
    """The conductor's unit: nobody's user, no way to write but its own state, no new privileges."""
    program = SYSTEM_PROGRAM if package == "system" else PROGRAM
    lines = [
        "Description=sysHAX: prefill on the accelerator, decode on the CPU",
        "After=network-online.target",
        # It answers with one engine as well, and takes the other in when that comes.
        f"Wants=network-online.target {UNITS[GPU]} {UNITS[CPU]}",
    ]
    service = ["Type=exec"]
    if package == "system":
        # The package's upgrade deletes its file; ours stays, and is the one that counts.
        service.append(f"ExecStartPre=+/usr/bin/install -m 0644 {CONFIG} {SYSTEM_CONFIG}")
        service += ["WorkingDirectory=/var/lib/syshax", f"ExecStart={program} run"]
    else:
        service += [f"ExecStart={program} --config {CONFIG} run", "ExecReload=kill -HUP $MAINPID"]
    service += [
        "Restart=always",
        "RestartSec=2s",
        # Longer than system.drain_timeout, in which running streams end.
        "TimeoutStopSec=90s",
        "DynamicUser=true",
        "StateDirectory=syshax",
        "LimitNOFILE=65536",
        "UMask=0077",
        "NoNewPrivileges=true",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=true",
        "PrivateTmp=true",
        "PrivateDevices=true",
        "ProtectClock=true",
        "ProtectKernelTunables=true",
        "ProtectKernelModules=true",
        "ProtectKernelLogs=true",
        "ProtectControlGroups=true",
        "ProtectHostname=true",
        "ProtectProc=invisible",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "RestrictNamespaces=true",
        "RestrictRealtime=true",
        "RestrictSUIDSGID=true",
        "LockPersonality=true",
        "MemoryDenyWriteExecute=true",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
    ]
    return _unit(lines, service)


def _unit(unit: list[str], service: list[str]) -> str:
    parts = [_OURS, "[Unit]", *unit, "", "[Service]", *service, "", "[Install]"]
    return "\n".join([*parts, "WantedBy=multi-user.target"]) + "\n"


def config_tree(
    settings: Settings, address: tuple[str, int], more: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """The conductor's settings; *more* are the site's own, by dotted name."""
    tree: dict[str, t.Any] = {}
    known = {
        "services.gpu.host": settings.listen,
        "services.gpu.port": settings.gpu.port,
        "services.cpu.host": settings.listen,
        "services.cpu.port": settings.cpu.port,
        "services.conductor.host": address[0],
        "services.conductor.port": address[1],
        "models.default": settings.served_name,
        "decider.auto_pd_offload": True,
    }
    for dotted, value in {**known, **more}.items():
        *parents, last = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise XpuError(
                    f"syshax_settings: {dotted} lies below a setting that has a value.",
                    "give the names of `syshax check-config`, such as decider.max_num_seqs.",
                )
        node[last] = value
    return tree


def config_text(tree: t.Mapping[str, t.Any]) -> str:
    """*tree* as YAML. Scalars in JSON's form are YAML too, and no library is needed on the host."""
    return "\n".join([_OURS, *_yaml(tree, "")]) + "\n"


def _yaml(tree: t.Mapping[str, t.Any], indent: str) -> t.Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"
