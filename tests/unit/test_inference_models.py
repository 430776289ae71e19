# SPDX-License-Identifier: GPL-3.0-or-later
"""Models, the memory they need, and how they may be split: published numbers, then properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._inference import models, sizing
from ansible_collections.flexai.xpu.plugins.module_utils._inference.models import MODELS
from ansible_collections.flexai.xpu.plugins.module_utils._inference.sizing import GIB, need
from hypothesis import given
from hypothesis import strategies as st

R1_8B = MODELS["DeepSeek-R1-Distill-Llama-8B"]
TINY = MODELS["Qwen2.5-0.5B"]

# What the publishers' safetensors files hold, counted by Hugging Face.
PUBLISHED = {
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.3-70B": 70_553_706_496,
    "Qwen2-7B": 7_615_616_512,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
}

a_model = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)
contexts = st.integers(1, 200_000)
splits = st.sampled_from([1, 2, 4, 8, 16])
memories = st.integers(1 << 28, 200 << 30)


# -- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_published(name: str) -> None:
    assert MODELS[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("DeepSeek-R1-Distill-Llama-8B", "DeepSeek-R1-Distill-Llama-8B"),
        ("/home/gandalf/DeepSeek-R1-Distill-llama-8B-main", "DeepSeek-R1-Distill-Llama-8B"),
        ("/model/meta-llama/Llama-3.2-1B-Instruct/", "Llama-3.2-1B"),
        ("/data/models/Qwen/Qwen2-7B-Instruct", "Qwen2-7B"),
        ("qwen2-7b", "Qwen2-7B"),
    ],
)
def test_models_of_the_documents_are_found_by_what_the_documents_write(
    said: str, name: str
) -> None:
    found = models.find(said)
    assert found is not None and found.name == name


@pytest.mark.parametrize("said", ["", "/", "gpt-2", "/models/mine", "-instruct"])
def test_a_stranger_is_not_guessed(said: str) -> None:
    assert models.find(said) is None


LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def test_a_config_gives_the_model_that_the_table_has() -> None:
    assert models.from_config(LLAMA_8B, R1_8B.name) == R1_8B


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "deepseek_v3"}, "model_type 'deepseek_v3' is none whose memory is known"),
        ({"num_local_experts": 8}, "without experts"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', not a whole number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"torch_dtype": "int3"}, "torch_dtype is 'int3'"),
    ],
)
def test_a_config_that_cannot_be_counted_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(XpuError) as error:
        models.from_config({**LLAMA_8B, **changes})
    assert said in error.value.msg


# -- memory --------------------------------------------------------------------------------------


def test_the_8b_model_of_document_000_needs_more_than_its_slice() -> None:
    wanted = need(R1_8B, context=4096)
    (problem,) = sizing.memory_problems("slice", R1_8B, wanted, 3 * GIB)
    assert str(problem) == (
        'slice: "3.00 GiB"; allowed: at least what DeepSeek-R1-Distill-Llama-8B needs, weights '
        "14.96 GiB (8.03 billion parameters × 2 bytes) + KV cache 0.50 GiB (1 × 4096 tokens × "
        "131072 bytes) + overhead 0.99 GiB (CUDA context, activations, logits) = 16.45 GiB on each "
        "GPU; do: give each GPU's share 17 GiB (from 16 GiB on with a shorter context), or take a "
        "smaller or quantised model, or more GPUs"
    )


def test_a_model_that_fits_3_gib() -> None:
    derived = sizing.derive(TINY, 3 * GIB)
    assert derived == sizing.Derived(0.83, 32768)
    assert sizing.fits(need(TINY, context=32768), 3 * GIB)


def test_a_published_awq_model_weighs_what_its_files_do() -> None:
    files = 5_570_000_000  # Qwen2-7B-Instruct-AWQ
    assert sizing.weights_bytes(MODELS["Qwen2-7B"], "awq") == pytest.approx(files, rel=0.02)


@given(a_model, contexts, contexts, splits)
def test_need_grows_with_the_context(model: models.Model, one: int, more: int, tp: int) -> None:
    assert need(model, context=one + more, tp=tp).total > need(model, context=one, tp=tp).total


@given(a_model, contexts, splits, splits)
def test_a_split_never_adds_and_all_shares_hold_the_whole(
    model: models.Model, context: int, tp: int, pp: int
) -> None:
    whole, share = need(model, context=context), need(model, context=context, tp=tp, pp=pp)
    assert share.total <= whole.total
    assert share.weights * tp * pp >= whole.weights > (share.weights - 1) * tp * pp
    assert share.kv * tp * pp >= whole.kv


@given(a_model, contexts, memories)
def test_refused_exactly_when_the_total_is_more_than_the_memory(
    model: models.Model, context: int, memory: int
) -> None:
    wanted = need(model, context=context)
    assert wanted.total == wanted.weights + wanted.kv + wanted.overhead
    assert bool(sizing.memory_problems("x", model, wanted, memory)) == (wanted.total > memory)
    assert not sizing.memory_problems("x", model, wanted, wanted.total)
    assert sizing.memory_problems("x", model, wanted, wanted.total - 1)


@given(a_model, memories, splits, st.sampled_from([None, "awq", "fp8"]))
def test_what_is_derived_fits(
    model: models.Model, memory: int, tp: int, quantisation: str | None
) -> None:
    derived = sizing.derive(model, memory, tp=tp, quantisation=quantisation)
    assert 0 <= derived.gpu_memory_utilization <= sizing.MOST_UTILIZATION
    assert derived.gpu_memory_utilization * memory <= memory - sizing.CONTEXT_BYTES or (
        derived.gpu_memory_utilization == 0
    )
    assert derived.max_model_len <= model.max_context
    if derived.max_model_len:
        wanted = need(model, context=derived.max_model_len, tp=tp, quantisation=quantisation)
        assert sizing.fits(wanted, memory)
    else:
        least = need(model, context=sizing.LEAST_CONTEXT, tp=tp, quantisation=quantisation)
        assert least.total > memory * 0.95 and "too little" in derived.warnings[-1]


def test_on_a_time_slice_the_fraction_is_of_the_card_that_the_engine_sees() -> None:
    derived = sizing.derive(TINY, 3 * GIB, visible_bytes=24 * GIB)
    assert derived.gpu_memory_utilization == 0.1
    assert derived.gpu_memory_utilization * 24 * GIB + sizing.CONTEXT_BYTES <= 3 * GIB


# -- parallelism ---------------------------------------------------------------------------------


def problems(engine: str, model: str = "", **sizes: int) -> list[str]:
    wanted = {"tp": 1, "pp": 1, "dp": 1, "pods": 1, "gpus_per_pod": 1, **sizes}
    found = sizing.parallel_problems("p", models.find(model), engine, **wanted)
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("engine", "model", "sizes"),
    [
        ("vllm", "Llama-3.2-1B", {"tp": 2, "pp": 2, "pods": 2, "gpus_per_pod": 2}),
        ("vllm", "Qwen2-7B", {"tp": 2, "gpus_per_pod": 2}),
        ("vllm", "Qwen2-7B", {"dp": 4, "pods": 2, "gpus_per_pod": 2}),
        ("vllm-ascend", "mine", {"tp": 3, "gpus_per_pod": 3}),
        ("sglang", "Llama-3.2-1B", {"tp": 2, "pods": 2}),
        ("sglang", "Llama-3.2-1B", {"tp": 4, "dp": 2, "pods": 2, "gpus_per_pod": 2}),
    ],
)
def test_what_adds_up(engine: str, model: str, sizes: dict[str, int]) -> None:
    assert problems(engine, model, **sizes) == []


def test_document_004s_vllm_command_needs_two_gpus_in_each_pod() -> None:
    assert problems("vllm", "Llama-3.2-1B", tp=2, pp=2, pods=2) == [
        'p: "tp 2 × pp 2 × dp 1 = 4"; allowed: a product of 2 (2 pods × 1 GPU = 2); do: let tp be '
        "the GPUs of a pod (1) and pp the pods (2), or ask for 4 GPUs in all"
    ]


def test_sglangs_tp_counts_all_pods() -> None:
    assert problems("sglang", tp=2, pods=2, gpus_per_pod=2) == [
        'p: "tp 2 × pp 1 = 2"; allowed: a product of 4 (2 pods × 2 GPU = 4): SGLang\'s tp counts '
        "the GPUs of all pods; do: write tp 4, or ask for 2 GPUs in all"
    ]


@pytest.mark.parametrize(
    ("engine", "model", "sizes", "said"),
    [
        ("vllm", "Qwen2-7B", {"tp": 8, "gpus_per_pod": 8}, "p.tp: 8; allowed: a divisor of the 28"),
        ("vllm", "Qwen2-7B", {"tp": 7, "gpus_per_pod": 7}, "multiple of the 4 KV heads"),
        ("vllm", "Llama-3.2-1B", {"pp": 17, "pods": 17}, "p.pp: 17; allowed: at most the 16"),
        ("vllm", "", {"dp": 3, "pods": 2, "gpus_per_pod": 1}, "a product of 2"),
        ("vllm", "", {"tp": 2, "dp": 3, "pods": 2, "gpus_per_pod": 3}, "a multiple of the 2 pods"),
        ("sglang", "", {"tp": 4, "dp": 3, "gpus_per_pod": 4}, "take one of 1, 2, 4"),
        ("vllm", "", {"tp": 0}, "p.tp: 0; allowed: a whole number from 1 on"),
    ],
)
def test_what_does_not(engine: str, model: str, sizes: dict[str, int], said: str) -> None:
    found = problems(engine, model, **sizes)
    assert len(found) == 1 and said in found[0]


def test_more_gpus_than_kv_heads_keep_each_head_more_than_once() -> None:
    assert problems("vllm", "DeepSeek-R1-Distill-Qwen-1.5B", tp=4, gpus_per_pod=4) == []
    model = MODELS["DeepSeek-R1-Distill-Qwen-1.5B"]
    assert need(model, context=1000, tp=4).kv == need(model, context=1000, tp=2).kv
    assert (
        need(replace(model, kv_heads=4), context=1000, tp=4).kv
        == need(model, context=1000, tp=2).kv
    )
