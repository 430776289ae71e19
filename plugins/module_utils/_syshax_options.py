# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Options of module syshax, which filter syshax_manifests takes too, and what they come to."""

from __future__ import annotations

import typing as t

from . import _syshax as syshax
from ._errors import XpuError

CONTAINERS = {syshax.GPU: "vllm_gpu", syshax.CPU: "vllm_cpu"}
PORTS = {syshax.GPU: 8001, syshax.CPU: 8002}


def _engine(role: str, params: t.Mapping[str, t.Any]) -> syshax.Engine:
    given = params[role] or {}
    if not given.get("image"):
        raise XpuError(
            f"syshax_{role}_image is empty.", "name the image of that engine, with its tag."
        )
    return syshax.Engine(
        role=role,
        image=given["image"],
        container=given.get("container") or CONTAINERS[role],
        port=given.get("port") or PORTS[role],
        shm_size=given.get("shm_size") or "64g",
        dtype=given.get("dtype") or "half",
        env={str(k): str(v) for k, v in (given.get("env") or {}).items()},
        args=tuple(given.get("args") or ()),
        command=tuple(given.get("command") or ()),
        volumes=tuple(given.get("volumes") or ()),
    )


def settings_of(params: t.Mapping[str, t.Any], runtime: str) -> syshax.Settings:
    gpu, cpu = (_engine(role, params) for role in (syshax.GPU, syshax.CPU))
    if not params["model"]:
        raise XpuError("syshax_model is empty.", "name the model, as `vllm serve` takes it.")
    kinds = {syshax.generation(params["generation"], engine.image) for engine in (gpu, cpu)}
    if len(kinds) > 1:
        raise XpuError(
            f"{gpu.image} and {cpu.image} hold engines of different generations.",
            "an engine hands over to one of its own kind only: take images of one release.",
        )
    return syshax.Settings(
        runtime=runtime,
        generation=kinds.pop(),
        served_name=params["served_name"] or params["model"].rstrip("/").rpartition("/")[2],
        start_timeout_s=params["start_timeout"],
        gpu=gpu,
        cpu=cpu,
        **{
            name: params[name]
            for name in (
                "accelerator", "devices", "network", "ipc", "listen", "privileged", "models_dir",
                "model", "max_model_len", "block_size", "tensor_parallel", "memory_utilization",
                "quantize", "nrc", "op_mode", "kv_transfer",
            )
        },
    )  # fmt: skip


def _engine_spec() -> dict[str, t.Any]:
    return {
        "type": "dict",
        "default": {},
        "options": {
            "image": {"type": "str", "default": ""},
            "container": {"type": "str", "default": ""},
            "port": {"type": "int"},
            "shm_size": {"type": "str", "default": "64g"},
            "dtype": {"type": "str", "default": "half"},
            "env": {"type": "dict", "default": {}},
            "args": {"type": "list", "elements": "str", "default": []},
            "command": {"type": "list", "elements": "str", "default": []},
            "volumes": {"type": "list", "elements": "str", "default": []},
        },
    }


def argument_spec() -> dict[str, t.Any]:
    def choice(*names: str) -> dict[str, t.Any]:
        return {"type": "str", "choices": list(names), "default": names[0]}

    return {
        "root": {"type": "path", "default": "/"},
        "state": choice("present", "absent"),
        "runtime": choice("auto", "docker", "podman"),
        "runtime_since": {"type": "str", "default": ""},
        "accelerator": choice("nvidia", "npu", "stand-in"),
        "need_cuda": {"type": "bool", "default": True},
        "devices": choice("cdi", "gpus"),
        "generation": choice("auto", "v0", "v1"),
        "network": choice("bridge", "host"),
        "ipc": choice("shareable", "host"),
        "listen": {"type": "str", "default": "127.0.0.1"},
        "privileged": {"type": "bool", "default": False},
        "models_dir": {"type": "path", "default": "/home/models"},
        "model": {"type": "str", "default": ""},
        "served_name": {"type": "str", "default": ""},
        "max_model_len": {"type": "int", "default": 8192},
        "block_size": {"type": "int", "default": 0},
        "tensor_parallel": {"type": "int", "default": 1},
        "memory_utilization": {"type": "float", "default": 0.8},
        "op_mode": choice("", "fused"),
        "quantize": choice("", "q8_0", "q4_0"),
        "nrc": {"type": "int", "choices": [0, 2, 4], "default": 0},
        "kv_transfer": {"type": "dict", "default": {}},
        "start_timeout": {"type": "int", "default": 900},
        "gpu": _engine_spec(),
        "cpu": _engine_spec(),
        "cpu_plan": {"type": "dict", "default": {}},
        "host": {"type": "str", "default": "0.0.0.0"},
        "port": {"type": "int", "default": 8010},
        "settings": {"type": "dict", "default": {}},
        "package": choice("bundle", "system"),
        "version": {"type": "str", "default": ""},
        "sha256": {"type": "str", "default": ""},
        "bundle": {"type": "path"},
    }
