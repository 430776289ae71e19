# SPDX-License-Identifier: GPL-3.0-or-later
"""sysHAX on a host: what containers and units say, what is restarted, what comes and goes."""

from __future__ import annotations

import configparser
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils import _syshax as syshax
from ansible_collections.flexai.xpu.plugins.module_utils import _syshax_host as look
from ansible_collections.flexai.xpu.plugins.module_utils import _syshax_options as options
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import syshax as module

GPU_IMAGE = "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-gpu:0.2.0"
CPU_IMAGE = "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-cpu:0.2.0"
MODEL = "/home/models/DeepSeek-R1-Distill-Qwen-32B"
RELEASE = "0.1.0-" + "a" * 12
DOCUMENT = {
    "gpu": {"image": GPU_IMAGE},
    "cpu": {"image": CPU_IMAGE},
    "model": MODEL,
    "served_name": "ds-32b",
    "tensor_parallel": 2,
    "block_size": 16,
    "op_mode": "fused",
    "quantize": "q8_0",
    "version": "0.1.0",
    "sha256": "a" * 64,
}
# Document 002's machine: 160 cores on 4 nodes, no SMT.
KUNPENG = {
    "cpus": [
        {"cpu": n, "node": n // 40, "socket": n // 80, "core": n, "online": True}
        for n in range(160)
    ]
}
MACHINE = look.Machine(
    versions={"docker": "28.3.0"},
    docker_config="",
    has_cdi=True,
    driver="580.95.05",
    cuda="12.8",
    topology=KUNPENG,
    allowed=None,
    python="/usr/bin/python3",
)


def params(**more: Any) -> dict[str, Any]:
    spec = options.argument_spec()
    return {**{name: option.get("default") for name, option in spec.items()}, **DOCUMENT, **more}


def settings(runtime: str = "docker", **more: Any) -> syshax.Settings:
    return options.settings_of(params(**more), runtime)


def argv(role: str, binding: dict[str, str] | None = None, **more: Any) -> list[str]:
    made = settings(**more)
    engine = made.gpu if role == "gpu" else made.cpu
    return syshax.run_argv(made, engine, binding or {})


def wanted(**more: Any) -> look.Wanted:
    given = params(**more)
    made = options.settings_of(given, "docker")
    binding = look.bind(made, MACHINE, given["cpu_plan"])
    return module.wanted_of(made, binding.env, given)


def in_force(target: look.Wanted) -> look.State:
    return look.State(
        record={"release": target.release},
        files=dict(target.files),
        enabled=dict.fromkeys(target.units, True),
        runs=dict.fromkeys(target.units, True),
        release=target.release,
        complete=True,
        foreign_program=False,
    )


NOTHING = look.State(
    record={},
    files={},
    enabled=dict.fromkeys(syshax.UNITS.values(), False),
    runs=dict.fromkeys(syshax.UNITS.values(), False),
    release="",
    complete=False,
    foreign_program=False,
)


def test_the_documents_containers() -> None:
    gpu = argv("gpu")
    assert gpu[:4] == ["/usr/bin/docker", "run", "--rm", "--name=vllm_gpu"]
    for word in ("--ipc=shareable", "--shm-size=64g", "--device=nvidia.com/gpu=all"):
        assert word in gpu
    assert "--gpus=all" in argv("gpu", devices="gpus")
    served = gpu[gpu.index(GPU_IMAGE) :]
    assert gpu[gpu.index(GPU_IMAGE) - 1] == "--entrypoint=vllm"
    assert served[1:3] == ["serve", MODEL]
    for word in (
        "--served-model-name=ds-32b", "--port=8001", "--dtype=half", "--swap-space=16",
        "--block-size=16", "--preemption-mode=swap", "--max-model-len=8192",
        "--tensor-parallel-size=2", "--gpu-memory-utilization=0.8", "--enable-auto-pd-offload",
    ):  # fmt: skip
        assert word in served
    binding = look.bind(settings(), MACHINE, {})
    cpu = argv("cpu", dict(binding.env))
    assert binding.warnings == []
    for word in (
        "--ipc=container:vllm_gpu", "--env=INFERENCE_OP_MODE=fused", "--env=OMP_NUM_THREADS=160",
        "--env=CUSTOM_CPU_AFFINITY=0-159", "--env=SYSHAX_QUANTIZE=q8_0", "--env=VLLM_USE_V1=0",
        "--cap-add=SYS_NICE",
    ):  # fmt: skip
        assert word in cpu
    assert not {"--privileged", "--shm-size=64g"} & set(cpu)
    assert "--privileged" in argv("cpu", privileged=True)


def test_newer_engines_get_their_own_flags_and_none_that_they_refuse() -> None:
    images = {"gpu": {"image": "vllm/vllm-openai:v0.27.0"}, "cpu": {"image": "vllm-cpu:v0.27.0"}}
    for role in ("gpu", "cpu"):
        words = argv(role, **images)
        assert not [w for w in words if "swap" in w or "auto-pd" in w or "VLLM_USE_V1" in w]
        (transfer,) = [w for w in words if w.startswith("--kv-transfer-config=")]
        given = json.loads(transfer.partition("=")[2])
        assert given["kv_buffer_device"] == "cpu"
        assert given["kv_connector_extra_config"] == {"enforce_handshake_compat": False}
    with pytest.raises(XpuError, match="different generations"):
        settings(gpu=images["gpu"])


@pytest.mark.parametrize(
    ("accelerator", "privileges"),
    [
        ("nvidia", {"--device=nvidia.com/gpu=all"}),
        ("npu", {"--privileged"}),
        ("stand-in", {"--cap-add=SYS_NICE"}),
    ],
)
def test_each_accelerator_gets_its_devices_and_no_other(
    accelerator: str, privileges: set[str]
) -> None:
    words = set(argv("gpu", accelerator=accelerator))
    every = {"--device=nvidia.com/gpu=all", "--privileged", "--cap-add=SYS_NICE", "--gpus=all"}
    assert words & every == privileges
    assert ("--tensor-parallel-size=2" in words) == (accelerator != "stand-in")


def test_the_npus_container_is_upstreams_310p_form() -> None:
    """Its own start script, privileged, on the host's network; the CPU's joins its memory."""
    image = "hub.oepkgs.net/neocopilot/syshax/syshax-vllm-310p:0.2.1"
    more: dict[str, Any] = {
        "accelerator": "npu",
        "network": "host",
        "gpu": {
            "image": image,
            "container": "vllm-mindspore-310p-share",
            "command": ["bash", "run_mcore.sh"],
        },
    }
    words = argv("gpu", **more)
    assert {"--privileged", "--network=host", "--ipc=shareable"} <= set(words)
    assert words[-3:] == ["--entrypoint=bash", image, "run_mcore.sh"]
    assert not [word for word in words if "nvidia" in word or word.startswith("--gpus")]
    cpu = argv("cpu", **more)
    assert "--ipc=container:vllm-mindspore-310p-share" in cpu
    # Of one generation with the CPU's image of that release, by their names and tags.
    assert settings(**more).generation == "v0"
    # And neither nvidia-smi nor nvcc is asked for.
    bare = MACHINE._replace(driver="", cuda="", has_cdi=False)
    look.check_accelerator(settings(**more), bare, need_cuda=True)


def test_the_hosts_network_and_memory_by_choice() -> None:
    words = argv("gpu", network="host", ipc="host")
    assert {"--network=host", "--ipc=host", "--host=127.0.0.1"} <= set(words)
    assert not [w for w in words if w.startswith(("--publish", "--shm-size"))]
    unit = syshax.engine_unit(settings(ipc="host"), settings(ipc="host").gpu, {})
    assert f"ExecStartPre=-{syshax.HELPER} sweep /dev/shm --older-than=900" in unit


def read(unit: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes="#")
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit)
    return parsed


def test_units_start_in_order_each_behind_a_health_check_and_follow_a_restart() -> None:
    made = settings()
    gpu = read(syshax.engine_unit(made, made.gpu, {}))
    cpu = read(syshax.engine_unit(made, made.cpu, {}))
    assert cpu["Unit"]["BindsTo"] == "syshax-gpu.service"
    assert cpu["Unit"]["After"].split()[0] == "syshax-gpu.service"
    # What was stopped with the accelerator's engine comes back with it.
    assert "syshax-cpu.service" in gpu["Unit"]["Wants"]
    for unit, port in ((gpu, 8001), (cpu, 8002)):
        gate = f"{syshax.HELPER} wait http://127.0.0.1:{port}/health $MAINPID"
        assert unit["Service"]["ExecStartPost"] == gate
        assert unit["Service"]["Restart"] == "always"
        assert unit["Unit"]["Requires"] == "docker.service"
    assert "Requires" not in read(syshax.engine_unit(settings("podman"), made.gpu, {}))["Unit"]
    conductor = read(syshax.conductor_unit("bundle"))
    assert not {"BindsTo", "Requires"} & set(conductor["Unit"])  # it outlives its engines


def test_podmans_units_keep_the_journal_to_what_engines_say_and_start_over_any_leftover() -> None:
    """Podman removes no container that another one's namespaces are in, as after a power loss."""
    made = settings("podman")
    unit = syshax.engine_unit(made, made.gpu, {})
    podman = "/usr/bin/podman --events-backend=file"
    lines = [line for line in unit.splitlines() if line.startswith("ExecStartPre")]
    assert lines == [f"ExecStartPre=-{podman} rm --force {c}" for c in ("vllm_cpu", "vllm_gpu")]
    assert f"ExecStart={podman} run --rm --name=vllm_gpu" in unit
    assert f"ExecStopPost=-{podman} rm --force vllm_gpu" in unit.splitlines()
    assert "--log-driver=none" in unit
    docker = syshax.engine_unit(settings(), settings().gpu, {})
    assert "--log-driver" not in docker and "--events-backend" not in docker


def test_words_of_a_unit_are_what_the_program_gets() -> None:
    for word in ('{"a": "b c"}', "100%", "$HOME", "a\\b", "介绍", ""):
        (back,) = shlex.split(syshax.quote(word).replace("%%", "%").replace("$$", "$"))
        assert back == word


def test_the_packaged_conductor_keeps_its_configuration_through_upgrades() -> None:
    unit = read(syshax.conductor_unit("system"))
    assert unit["Service"]["ExecStart"] == "/usr/bin/syshax run"
    copy = f"+/usr/bin/install -m 0644 {syshax.CONFIG} {syshax.SYSTEM_CONFIG}"
    assert unit["Service"]["ExecStartPre"] == copy
    assert wanted(package="system").release == ""


def test_the_conductors_settings() -> None:
    text = wanted(settings={"decider.max_num_seqs": 8, "models.default": "名"}).files[syshax.CONFIG]
    tree = yaml.safe_load(text)
    assert tree["services"]["gpu"] == {"host": "127.0.0.1", "port": 8001}
    assert tree["services"]["conductor"] == {"host": "0.0.0.0", "port": 8010}
    assert tree["decider"] == {"auto_pd_offload": True, "max_num_seqs": 8}
    assert tree["models"]["default"] == "名"
    with pytest.raises(XpuError, match="lies below a setting"):
        wanted(settings={"models.default.x": 1})


@pytest.mark.parametrize(
    ("asked", "versions", "chosen"),
    [
        ("auto", {"docker": "28.3.0", "podman": "5.0"}, "docker"),
        ("auto", {"docker": "20.10.24", "podman": "4.3.1"}, "podman"),
        ("podman", {"docker": "28.3.0", "podman": "4.3.1"}, "podman"),
        ("auto", {"docker": "20.10.24"}, None),
        ("docker", {"docker": "25.0.2", "podman": "4.3.1"}, None),
        ("auto", {}, None),
    ],
)
def test_docker_from_25_0_3_or_podman(
    asked: str, versions: dict[str, str], chosen: str | None
) -> None:
    if chosen:
        assert look.choose_runtime(asked, versions, "") == chosen
    else:
        with pytest.raises(XpuError, match=r"Docker from 25\.0\.3 on"):
            look.choose_runtime(asked, versions, "")


@pytest.mark.parametrize(
    ("machine", "more", "complaint"),
    [
        ({"driver": ""}, {}, "nvidia-smi names no card"),
        ({"cuda": ""}, {}, "nvcc -V names no release"),
        ({"has_cdi": False}, {}, "names nvidia.com/gpu"),
        ({"versions": {"docker": "25.0.3"}}, {}, r'"features": \{"cdi": true\}'),
        ({"driver": "", "cuda": ""}, {"accelerator": "stand-in"}, None),
        ({"has_cdi": False}, {"devices": "gpus"}, None),
        (
            {"versions": {"docker": "25.0.3"}, "docker_config": '{"features": {"cdi": true}}'},
            {},
            None,
        ),
        ({"versions": {"podman": "4.3.1"}}, {"runtime": "podman"}, None),
    ],
)
def test_a_host_that_cannot_give_the_accelerator_is_refused_before_any_change(
    machine: dict[str, Any], more: dict[str, Any], complaint: str | None
) -> None:
    made = settings(more.pop("runtime", "docker"), **more)
    found = MACHINE._replace(**machine)
    if complaint is None:
        look.check_accelerator(made, found, need_cuda=True)
        return
    with pytest.raises(XpuError, match=complaint):
        look.check_accelerator(made, found, need_cuda=True)


def test_the_binding_is_the_plans_or_a_refusal_or_left_out() -> None:
    assert look.bind(settings(), MACHINE, {"reserve_per_node": 8}).env == {
        "OMP_NUM_THREADS": "128",
        "CUSTOM_CPU_AFFINITY": "0-31,40-71,80-111,120-151",
    }
    assert look.bind(settings(), MACHINE, {"enabled": False}).env == {}
    # vLLM's own backend has one rank a node, and must be told how many.
    made = settings(op_mode="")
    stock = look.bind(made, MACHINE, {})
    assert stock.env == {"VLLM_CPU_OMP_THREADS_BIND": "0-39|40-79|80-119|120-159"}
    made = made._replace(cpu_ranks=stock.ranks)
    assert "--tensor-parallel-size=4" in syshax.serve_args(made, made.cpu)
    lopsided = {"cpus": [{**row, "node": row["cpu"] % 2} for row in KUNPENG["cpus"]]}
    with pytest.raises(XpuError):
        look.bind(settings(), MACHINE._replace(topology=lopsided), {"max_stranded": 0.1})


def test_what_is_in_force_is_left_alone_and_the_first_run_starts_in_order() -> None:
    target = wanted()
    assert not look.plan(in_force(target), target)
    steps = look.plan(NOTHING, target)
    assert steps.restart == ("syshax-gpu.service", "syshax-cpu.service", "syshax.service")
    assert steps.release
    assert not steps.reload


def test_the_least_is_restarted() -> None:
    state = in_force(wanted())

    def restarted(**more: Any) -> tuple[str, ...]:
        return look.plan(state, wanted(**more)).restart

    assert restarted(quantize="q4_0") == ("syshax-cpu.service",)
    # The CPU's container lives in the other's namespace.
    assert restarted(tensor_parallel=4) == ("syshax-gpu.service", "syshax-cpu.service")
    assert restarted(version="0.2.0") == ("syshax.service",)
    changed = look.plan(state, wanted(settings={"decider.max_num_seqs": 8}))
    assert (changed.restart, changed.reload) == ((), True)
    assert restarted(port=8011) == ("syshax.service",)
    dead = state._replace(runs={**state.runs, "syshax-gpu.service": False})
    assert look.plan(dead, wanted()).restart == ("syshax-gpu.service", "syshax-cpu.service")


def test_what_an_interrupted_run_left_to_restart_is_restarted() -> None:
    state = in_force(wanted())
    left = state._replace(record={**state.record, "pending": ["syshax-cpu.service"]})
    assert look.plan(left, wanted()).restart == ("syshax-cpu.service",)


def test_an_unfinished_installation_is_made_again() -> None:
    target = wanted()
    steps = look.plan(in_force(target)._replace(complete=False), target)
    assert steps.release
    assert steps.restart == ("syshax.service",)


def test_a_unit_of_somebody_else_stops_the_role_and_settings_of_before_do_not() -> None:
    with pytest.raises(XpuError, match="not installed by us"):
        look.plan(NOTHING._replace(files={"/etc/systemd/system/syshax.service": "x"}), wanted())
    with pytest.raises(XpuError, match="/usr/local/bin/syshax: there already"):
        look.plan(NOTHING._replace(foreign_program=True), wanted())
    assert look.plan(NOTHING._replace(files={syshax.CONFIG: "services: {}"}), wanted())


@pytest.mark.parametrize("missing", ["model", "gpu", "cpu"])
def test_what_has_to_be_given_is_named(missing: str) -> None:
    with pytest.raises(XpuError, match=f"syshax_{missing}"):
        options.settings_of(params() | {missing: "" if missing == "model" else {}}, "docker")


# -- a host under a directory: files come, stay and go ---------------------------------------
def tree(root: Path) -> dict[str, str]:
    """Every file and link, with what it says, and every empty directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[name] = "nothing in it"
    return found


@pytest.mark.parametrize("libexec", [False, True])
def test_check_predicts_a_second_run_is_silent_and_uninstall_leaves_nothing(
    tmp_path: Path, libexec: bool
) -> None:
    def answer(words: Any, _limit_s: float) -> Completed:
        name = Path(words[0]).name
        if name == "docker":
            return Completed(0, "28.3.0\n")
        if name == "lscpu":
            return Completed(0, json.dumps(KUNPENG))
        return Completed(0)

    for program in ("usr/bin/docker", "usr/bin/lscpu", "usr/bin/python3"):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.chmod(0o755)
    # A bundle needs a real Python; the packaged conductor has the same path through the module.
    (tmp_path / "usr/bin/syshax").write_text("")
    (tmp_path / "usr/bin/syshax").chmod(0o755)
    host = Host(str(tmp_path), answer)
    with pytest.raises(XpuError, match="/home/models does not exist"):
        module.converge(host, params(accelerator="stand-in"), check=True)
    (tmp_path / MODEL[1:]).mkdir(parents=True)
    # Debian 13 has the last of them, and nothing in it; Debian 12 has not.
    there = ["etc/systemd/system/multi-user.target.wants", "var/lib", "usr/local/bin"]
    for directory in [*there, "usr/local/libexec"] if libexec else there:
        (tmp_path / directory).mkdir(parents=True)
    before = tree(tmp_path)
    given = params(accelerator="stand-in", package="system")
    predicted = module.converge(host, given, check=True)
    assert predicted["changed"] and tree(tmp_path) == before
    done = module.converge(host, given, check=False)
    assert (done["diff"], done["restarted"]) == (predicted["diff"], predicted["restarted"])
    assert module.converge(host, given, check=False)["changed"] is False
    assert module.converge(host, given, check=True)["changed"] is False
    gone = {"state": "absent"}
    assert module.converge(host, gone, check=True)["changed"]
    assert module.converge(host, gone, check=False)["changed"]
    assert module.converge(host, gone, check=False)["changed"] is False
    assert tree(tmp_path) == before
