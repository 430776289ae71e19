# SPDX-License-Identifier: GPL-3.0-or-later
"""A model server of one pod: document 000's and 003's, mended, or refused with the reason."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.flexai.xpu.plugins.filter.manifest_problems import manifest_problems
from ansible_collections.flexai.xpu.plugins.filter.vllm_service import vllm_service

OPTIONS: dict[str, Any] = {
    "name": "qwen",
    "namespace": "inference",
    "model": "/data/models/Qwen2.5-0.5B-Instruct",
    "cores": 20,
    "memory_gib": 3,
    "scheduler": "volcano",
}
# Document 003's service on whole cards, which is what it wants.
CARDS = {
    "model": "/data/models/Qwen/Qwen2-7B-Instruct",
    "served_name": "qwen2-7b",
    "version": "0.6.3.post1",
    "device": "whole",
    "gpus": 2,
    "card_memory_gib": 24,
    "cores": 0,
    "memory_gib": 0,
    "tensor_parallel": 2,
}
SHARED = {**CARDS, "device": "shared", "gpus": 12, "shared_replicas": 10}
VERSIONS = sorted(
    {tuple(map(int, v.split(".")[:2])) for v in kubernetes_validate.utils.all_versions()}
)


def made(found: Any = None, **more: Any) -> dict[str, Any]:
    return vllm_service({**OPTIONS, **more}, **(found or {}))


def problems(found: Any = None, **more: Any) -> list[str]:
    plan = made(found, **more)
    assert bool(plan["problems"]) != bool(plan["objects"])
    return list(plan["problems"])


def pod(found: Any = None, **more: Any) -> dict[str, Any]:
    plan = made(found, **more)
    assert plan["problems"] == []
    spec: dict[str, Any] = plan["objects"][0]["spec"]["template"]["spec"]
    return spec


def engine(found: Any = None, **more: Any) -> dict[str, Any]:
    (container,) = pod(found, **more)["containers"]
    assert isinstance(container, dict)
    return container


# -- objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, CARDS, SHARED, {"device": "none", "cores": 0}, {"engine": "sglang", "version": "0.5.3"}],
)
def test_every_kubernetes_takes_the_objects_and_our_own_checker_finds_nothing(
    more: dict[str, Any],
) -> None:
    plan = made(**more)
    assert plan["problems"] == []
    for thing in plan["objects"]:
        for major, minor in VERSIONS:
            text = f"{major}.{minor}"
            assert kubernetes_validate.validate(thing, text, strict=True) == text
    found = manifest_problems(plan["objects"])
    # Twelve of ten time slices are document 003's own way, which the checker names all the same.
    assert len(found) == (more is SHARED)


def test_what_a_slice_asks_for_it_is_limited_to() -> None:
    resources = engine()["resources"]
    assert resources["requests"] == resources["limits"] == {
        "cpu": "4",
        "memory": "16Gi",
        "huawei.com/vgpu-number": "1",
        "huawei.com/vgpu-cores": "20",
        "huawei.com/vgpu-memory-1Gi": "3",
    }  # fmt: skip


def test_scheduler_runtime_class_and_nodes_are_those_of_slices() -> None:
    spec = pod(scheduler="flexai-volcano", nodes=["gpu2", "gpu1"])
    assert spec["schedulerName"] == "flexai-volcano"
    assert spec["runtimeClassName"] == "flexai-xpu"
    assert spec["nodeSelector"] == {"gpupool.com/gpu-ready": "true"}
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [t["matchFields"][0]["values"] for t in terms["nodeSelectorTerms"]] == [
        ["gpu1"],
        ["gpu2"],
    ]
    whole = pod(**CARDS)
    assert "schedulerName" not in whole and whole["runtimeClassName"] == "nvidia"


def test_what_is_not_given_is_derived_from_the_slice() -> None:
    command = " ".join(engine()["command"])
    assert command == (
        "vllm serve /data/models/Qwen2.5-0.5B-Instruct --host 0.0.0.0 --port 8000 "
        "--served-model-name Qwen2.5-0.5B-Instruct --tensor-parallel-size 1 --max-model-len 32768 "
        "--gpu-memory-utilization 0.83"
    )
    given = " ".join(engine(max_model_len=512, memory_utilization=0.5)["command"])
    assert given.endswith("--max-model-len 512 --gpu-memory-utilization 0.5")


def test_a_fraction_that_was_given_leaves_the_less_to_the_context() -> None:
    assert made(memory_utilization=0.5)["max_model_len"] < made()["max_model_len"]


def test_on_time_slices_the_fraction_is_of_the_whole_card() -> None:
    more = {"device": "shared", "cores": 0, "memory_gib": 3, "card_memory_gib": 24}
    assert made(**more)["memory_utilization"] == 0.1


def test_loading_is_waited_for_by_a_startup_probe() -> None:
    container = engine(start_timeout_s=601)
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 610
    names = ("startupProbe", "readinessProbe", "livenessProbe")
    assert not any("initialDelaySeconds" in container[name] for name in names)


def test_shared_memory_is_memory_and_grows_with_the_gpus() -> None:
    for more, size in (({}, "2Gi"), (CARDS, "4Gi"), ({"shm_gib": 6}, "6Gi")):
        (shm,) = [v for v in pod(**more)["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": size}
    assert {"name": "shm", "mountPath": "/dev/shm"} in engine()["volumeMounts"]


def test_clients_call_the_port_that_the_engine_says() -> None:
    service = made(port=9000)["objects"][1]
    assert service["spec"]["ports"] == [
        {"name": "http", "protocol": "TCP", "port": 9000, "targetPort": "http"}
    ]
    assert engine(port=9000)["ports"] == [{"name": "http", "containerPort": 9000}]
    labels = made()["objects"][0]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("gpu_class", "tensor_parallel", "wanted"),
    [("consumer", 2, True), ("consumer", 1, False), ("datacenter", 2, False)],
)
def test_nccls_switches_are_for_several_geforce_cards(
    gpu_class: str, tensor_parallel: int, wanted: bool
) -> None:
    more = {**CARDS, "gpus": tensor_parallel, "tensor_parallel": tensor_parallel}
    env = engine(**more, gpu_class=gpu_class).get("env", [])
    names = {one["name"] for one in env}
    assert ({"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} <= names) == wanted


def test_the_sites_variables_win_and_are_texts() -> None:
    env = engine(**CARDS, env={"NCCL_P2P_DISABLE": 0})["env"]
    assert {"name": "NCCL_P2P_DISABLE", "value": "0"} in env


def test_image_and_command_can_be_somebody_elses() -> None:
    container = engine(
        image="python:3.12", command=["python3", "/m/stub.py"], volumes=["/opt/a:/a"]
    )
    assert container["image"] == "python:3.12"
    assert container["command"] == ["python3", "/m/stub.py"]
    assert container["volumeMounts"][-1] == {
        "name": "volume-0",
        "mountPath": "/a",
        "readOnly": True,
    }


# -- driver and CUDA -----------------------------------------------------------------------------


def test_an_image_that_the_nodes_driver_cannot_run_is_refused() -> None:
    found = {"drivers": {"gpu1": "535.183.06", "gpu2": "580.95.05"}}
    (problem,) = problems(found, version="0.33.0")
    assert problem.startswith('vllm_service_version: "0.33.0"; allowed: an engine whose image runs')
    assert "on node gpu1: CUDA 13.0 needs driver 580.65.06 or newer, 535.183.06 is older" in problem
    assert "or take an image of CUDA 12.9 or older" in problem


def test_document_003s_trap_is_named_instead_of_linked_away() -> None:
    found = {"drivers": {"gpu1": "535.183.01"}, "toolkits": {"gpu1": "1.16.1"}}
    (problem,) = problems(found, **CARDS)
    assert "do: install container toolkit 1.17.4 or newer" in problem
    plan = made({**found, "toolkits": {"gpu1": "1.17.8"}}, **CARDS)
    assert plan["problems"] == []
    assert any("node gpu1: driver 535.183.01 does not compile PTX" in w for w in plan["warnings"])


def test_forward_compatibility_is_switched_on_where_it_is_needed() -> None:
    found = {"drivers": {"gpu1": "535.183.06"}}
    env = engine(found, version="0.33.0", gpu_class="datacenter")["env"]
    assert env == [{"name": "VLLM_ENABLE_CUDA_COMPATIBILITY", "value": "1"}]
    assert "env" not in engine({"drivers": {"gpu1": "580.95.05"}}, version="0.33.0")


# -- refusals ------------------------------------------------------------------------------------


def test_document_000s_model_is_refused_with_the_memory_it_needs() -> None:
    (problem,) = problems(model="/models/DeepSeek-R1-Distill-Llama-8B")
    assert problem.startswith(
        'vllm_service_memory_gib: "3.00 GiB"; allowed: at least what DeepSeek'
    )
    assert "weights 14.96 GiB" in problem and "give each GPU's share 16 GiB" in problem


def test_the_models_own_config_goes_before_its_name() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 256,
    }
    plan = made({"config": config}, model="/models/DeepSeek-R1-Distill-Llama-8B")
    assert plan["problems"] == [] and plan["max_model_len"] == 256


LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


@pytest.mark.parametrize(
    ("quantised", "fits"),
    [
        ({}, False),
        ({"quant_method": "awq", "bits": 4}, True),
        ({"quant_method": "gptq", "bits": 8}, False),
    ],
)
def test_a_model_that_was_published_quantised_is_counted_so(
    quantised: dict[str, Any], fits: bool
) -> None:
    config = {**LLAMA_8B, **({"quantization_config": quantised} if quantised else {})}
    plan = made({"config": config}, memory_gib=8)
    assert (plan["problems"] == []) == fits
    # Engines see it by themselves.
    assert "--quantization" not in str(plan["objects"])


def test_a_model_that_cannot_be_counted_is_served_and_said() -> None:
    plan = made({"config": {"model_type": "deepseek_v3"}})
    assert plan["problems"] == [] and plan["max_model_len"] == 0
    assert "memory is not checked" in plan["warnings"][0]
    assert "memory is not checked" in made(model="/models/mine")["warnings"][0]
    odd = {**LLAMA_8B, "quantization_config": {"quant_method": "mxfp4"}}
    assert "quant_method mxfp4 isn't known here" in made({"config": odd})["warnings"][0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "Qwen_1"}, 'vllm_service_name: "Qwen_1"; allowed: a DNS label'),
        ({"model": "{path/to/model}"}, "allowed: the path of a directory on the nodes"),
        ({"model": "Qwen/Qwen2-7B"}, "put the model there"),
        ({"version": "latest"}, 'vllm_service_version: "latest"; allowed: a release of vllm'),
        ({"device": "mig"}, "slice or shared or whole or none"),
        ({"cores": 0, "memory_gib": 0}, "say how large the slice is"),
        ({"device": "whole"}, "only slices limit compute"),
        ({"device_class": "best-effort"}, "which reserves no compute"),
        ({"device_class": "elastic", "cores": 0}, "give vllm_service_cores"),
        ({"engine": "vllm-ascend"}, 'vllm_service_engine: "vllm-ascend"; allowed: vllm or sglang'),
        ({"max_model_len": 40000}, "at most the 32768 tokens of Qwen2.5-0.5B"),
        ({"memory_utilization": 0.3}, 'vllm_service_memory_utilization: "1.40 GiB"'),
        ({"memory": "16 GB"}, "an amount such as 16Gi"),
        (
            {"memory": "2Gi"},
            "vllm_service_shm_gib: 2; allowed: less than vllm_service_memory (2Gi)",
        ),
        ({"volumes": ["/opt/a"]}, 'vllm_service_volumes[0]: "/opt/a"'),
        ({"quantisation": "q4"}, "empty or fp8 or int8"),
        ({"memory_utilization": 1.5}, "vllm_service_memory_utilization: 1.5"),
        ({"args": ["--port", "1"]}, "vllm_service_args[0]"),
        ({"tensor_parallel": 2}, "vllm_service_gpus: "),
        (
            {**SHARED, "gpus": 10},
            "allowed: with tensor_parallel 2 on time slices: more than one card",
        ),
        ({**SHARED, "gpus": 10}, "and at least 11 slices"),
        ({**SHARED, "shared_replicas": 0}, "take whole cards (device whole)"),
        (
            {**CARDS, "tensor_parallel": 8, "gpus": 8, "shm_gib": 2},
            "a divisor of the 28 attention heads",
        ),
    ],
)
def test_what_is_refused(more: dict[str, Any], said: str) -> None:
    found = problems(**more)
    assert len(found) == 1 and said in found[0]


def test_a_secret_is_refused_and_not_shown() -> None:
    (problem,) = problems(env={"HF_TOKEN": "hf_abc"})
    assert "hf_abc" not in problem
    assert problem.startswith("vllm_service_env.HF_TOKEN: (not shown); allowed: no secret")
    assert (
        problems(env={"OPENAI_API_KEY": "x", "TOKENIZERS_PARALLELISM": 0, "MAX_TOKENS": 1})[1:]
        == []
    )
    assert engine(secret="qwen")["envFrom"] == [{"secretRef": {"name": "qwen"}}]


def test_all_is_said_at_once() -> None:
    assert len(problems(name="", device="mig", replicas=-1)) == 3


def test_document_003s_twelve_of_ten_is_allowed_and_its_price_said() -> None:
    plan = made(**SHARED)
    assert plan["problems"] == []
    assert any("12 time slices are taken to be sure of 2 cards" in one for one in plan["warnings"])


def test_an_option_that_is_none_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="gpu unknown; known are name"):
        vllm_service({**OPTIONS, "gpu": 1})
    with pytest.raises(AnsibleFilterError, match="cores is 'x', which is no int"):
        vllm_service({**OPTIONS, "cores": "x"})


def test_numbers_may_come_as_texts() -> None:
    assert made(cores="20", memory_gib="3", memory_utilization="0.5") == made(
        memory_utilization=0.5
    )
