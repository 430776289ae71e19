# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""How much memory a model needs on each GPU, and how it may be split over them (pure).

An estimate, and its formula is said with it: weights / (tp × pp), KV cache of the tokens that are
wanted, and an overhead. The weights are exact, the cache is exact for attention without windows,
the overhead is a rule of thumb: the CUDA context with libraries and graphs, activations of one
batch, and the logits of one step.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .models import Model
from .problem import Problem

GIB = 1 << 30
MIB = 1 << 20
# The CUDA context with cuBLAS, NCCL and captured graphs.
CONTEXT_BYTES = 512 * MIB
# Tokens of one prefill step (vLLM's max_num_batched_tokens of small models) and sequences whose
# logits one step makes (max_num_seqs): the engines profile with these at their start.
BATCHED_TOKENS = 2048
SAMPLED = 256
# Widths of hidden that are alive at once for a token in the MLP, which is the widest place.
_ALIVE_WIDTHS = 16
# The KV cache is kept in blocks.
BLOCK_TOKENS = 16
# An engine whose context is shorter than this serves nobody; a longer one is a matter of taste.
LEAST_CONTEXT = 256
MOST_UTILIZATION = 0.95

# Bytes of a quantised weight, its scales (one of 16 bits and one zero a group of 128) included.
QUANTISED_BYTES: t.Mapping[str, float] = {
    "fp8": 1.0,
    "int8": 1.0,
    "w8a8": 1.0,
    "compressed-tensors": 1.0,
    "awq": 0.5 + 2.5 / 128,
    "gptq": 0.5 + 2.5 / 128,
    "bitsandbytes": 0.5 + 4.0 / 64,
}


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU, and how they came about."""

    weights: int
    kv: int
    overhead: int
    total: int
    formula: str


@dataclass(frozen=True)
class Derived:
    """Settings for an engine; a ``max_model_len`` of 0 says that the model doesn't fit at all."""

    gpu_memory_utilization: float
    max_model_len: int
    warnings: tuple[str, ...] = ()


def gib(amount: float) -> str:
    """Bytes for a reader."""
    return f"{amount / GIB:.2f} GiB"


def _split(amount: int, parts: int) -> int:
    """The largest share: pipelines and heads don't always divide."""
    return -(-amount // parts)


def weights_bytes(model: Model, quantisation: str | None = None) -> int:
    """All weights. A quantised model keeps its embeddings as they are."""
    if not quantisation:
        return model.parameters * model.dtype_bytes
    quantised = model.parameters - model.embedding_parameters
    kept = model.embedding_parameters * model.dtype_bytes
    return int(quantised * QUANTISED_BYTES[quantisation]) + kept


def kv_bytes_per_token(model: Model, kv_dtype_bytes: int = 2) -> int:
    """One key and one value of each layer."""
    return 2 * model.layers * model.kv_heads * model.head_dim * kv_dtype_bytes


def _kv_on_a_gpu(model: Model, tp: int, pp: int, kv_dtype_bytes: int) -> int:
    """Where there are more GPUs than KV heads, each head is kept more than once."""
    heads = max(1, _split(model.kv_heads, tp))
    return 2 * _split(model.layers, pp) * heads * model.head_dim * kv_dtype_bytes


def _overhead(model: Model, tp: int) -> int:
    activations = BATCHED_TOKENS * _ALIVE_WIDTHS * model.hidden * model.dtype_bytes
    logits = 2 * SAMPLED * model.vocabulary * 4
    return CONTEXT_BYTES + _split(activations + logits, tp)


def need(
    model: Model,
    *,
    context: int,
    sequences: int = 1,
    tp: int = 1,
    pp: int = 1,
    quantisation: str | None = None,
    kv_dtype_bytes: int = 2,
) -> Need:
    """What each GPU needs for *sequences* of *context* tokens at once."""
    weights = _split(weights_bytes(model, quantisation), tp * pp)
    kv = _kv_on_a_gpu(model, tp, pp, kv_dtype_bytes) * context * sequences
    overhead = _overhead(model, tp)
    split = f" / (tp {tp} × pp {pp})" if tp * pp > 1 else ""
    formula = (
        f"weights {gib(weights)} ({model.parameters / 1e9:.2f} billion parameters"
        f"{', ' + quantisation if quantisation else f' × {model.dtype_bytes} bytes'}{split})"
        f" + KV cache {gib(kv)} ({sequences} × {context} tokens ×"
        f" {kv_bytes_per_token(model, kv_dtype_bytes)} bytes{split})"
        f" + overhead {gib(overhead)} (CUDA context, activations, logits)"
        f" = {gib(weights + kv + overhead)} on each GPU"
    )
    return Need(weights, kv, overhead, weights + kv + overhead, formula)


def fits(wanted: Need, memory_bytes: int) -> bool:
    return wanted.total <= memory_bytes


def memory_problems(path: str, model: Model, wanted: Need, memory_bytes: int) -> list[Problem]:
    """*path* names what gives the memory: the slice's size or the card."""
    if fits(wanted, memory_bytes):
        return []
    least = wanted.weights + wanted.overhead
    shorter = "shorten max_model_len, or " if least < memory_bytes else ""
    from_on = f" (from {_whole_gib(least)} GiB on with a shorter context)"
    return [
        Problem(
            path,
            gib(memory_bytes),
            f"at least what {model.name} needs, {wanted.formula}",
            f"{shorter}give each GPU's share {_whole_gib(wanted.total)} GiB"
            f"{from_on if _whole_gib(least) < _whole_gib(wanted.total) and not shorter else ''}, "
            "or take a smaller or quantised model, or more GPUs",
        )
    ]


def _whole_gib(amount: int) -> int:
    return -(-amount // GIB)


def derive(
    model: Model,
    slice_bytes: int,
    *,
    visible_bytes: int | None = None,
    tp: int = 1,
    pp: int = 1,
    sequences: int = 1,
    quantisation: str | None = None,
    kv_dtype_bytes: int = 2,
) -> Derived:
    """Settings with which the engine stays within *slice_bytes* on each GPU.

    *visible_bytes* is the memory that the engine sees as the card's, of which it takes a fraction:
    the slice's own with Flex:ai, the whole card's with NVIDIA's time slices. The CUDA context comes
    on top of that fraction, so it is left out of it.
    """
    visible = visible_bytes or slice_bytes
    share = max(0, slice_bytes - CONTEXT_BYTES) / visible
    utilization = min(MOST_UTILIZATION, int(share * 100) / 100)
    usable = min(slice_bytes, int(utilization * visible) + CONTEXT_BYTES)
    wanted = need(
        model, context=0, tp=tp, pp=pp, quantisation=quantisation, kv_dtype_bytes=kv_dtype_bytes
    )
    per_token = _kv_on_a_gpu(model, tp, pp, kv_dtype_bytes) * sequences
    tokens = max(0, usable - wanted.total) // per_token // BLOCK_TOKENS * BLOCK_TOKENS
    length = min(model.max_context, tokens)
    warnings = []
    if 0 < length < model.max_context:
        warnings.append(
            f"{model.name} has a context of {model.max_context} tokens, of which {gib(slice_bytes)}"
            f" hold {length}{f' for each of {sequences} sequences' if sequences > 1 else ''}"
        )
    if length < LEAST_CONTEXT:
        warnings.append(f"{gib(slice_bytes)} are too little for {model.name}: {wanted.formula}")
        length = 0
    return Derived(utilization, length, tuple(warnings))


# -- parallelism ---------------------------------------------------------------------------------


def parallel_problems(
    path: str,
    model: Model | None,
    engine: str,
    *,
    tp: int,
    pp: int,
    dp: int,
    pods: int,
    gpus_per_pod: int,
) -> list[Problem]:
    """*engine* is vllm, sglang or vllm-ascend; a *model* that isn't known isn't divided."""
    sizes = {"tp": tp, "pp": pp, "dp": dp, "pods": pods, "gpus_per_pod": gpus_per_pod}
    wrong = [
        Problem(f"{path}.{key}", value, "a whole number from 1 on", f"correct {key}")
        for key, value in sizes.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]
    if wrong:
        return wrong
    gpus = pods * gpus_per_pod
    have = f"{pods} pod{'s' if pods > 1 else ''} × {gpus_per_pod} GPU = {gpus}"
    problems = []
    if engine == "sglang":
        problems += _sglang(path, tp, pp, dp, gpus, have)
    elif tp * pp * dp != gpus:
        problems.append(
            Problem(
                path,
                f"tp {tp} × pp {pp} × dp {dp} = {tp * pp * dp}",
                f"a product of {gpus} ({have})",
                f"let tp be the GPUs of a pod ({gpus_per_pod}) and pp the pods ({pods}), or ask "
                f"for {tp * pp * dp} GPUs in all",
            )
        )
    elif dp > 1 and pods > 1 and dp % pods:
        problems.append(
            Problem(f"{path}.dp", dp, f"a multiple of the {pods} pods", "give each pod as many")
        )
    return problems + (_divided(path, model, tp, pp) if model else [])


def _sglang(path: str, tp: int, pp: int, dp: int, gpus: int, have: str) -> list[Problem]:
    """SGLang's tp counts all pods together, and its dp shares the GPUs of tp (DP attention)."""
    problems = []
    if tp * pp != gpus:
        problems.append(
            Problem(
                path,
                f"tp {tp} × pp {pp} = {tp * pp}",
                f"a product of {gpus} ({have}): SGLang's tp counts the GPUs of all pods",
                f"write tp {gpus // pp if gpus % pp == 0 else gpus}, or ask for {tp * pp} GPUs in "
                "all",
            )
        )
    if tp % dp:
        problems.append(
            Problem(
                f"{path}.dp",
                dp,
                f"a divisor of tp {tp}: with DP attention SGLang's dp shares tp's GPUs",
                "take one of " + ", ".join(str(one) for one in range(1, tp + 1) if tp % one == 0),
            )
        )
    return problems


def _divided(path: str, model: Model, tp: int, pp: int) -> list[Problem]:
    problems = []
    if model.heads % tp:
        good = [str(one) for one in range(1, model.heads + 1) if model.heads % one == 0]
        problems.append(
            Problem(
                f"{path}.tp",
                tp,
                f"a divisor of the {model.heads} attention heads of {model.name}",
                f"take one of {', '.join(good)}",
            )
        )
    elif model.kv_heads % tp and tp % model.kv_heads:
        problems.append(
            Problem(
                f"{path}.tp",
                tp,
                f"a divisor or a multiple of the {model.kv_heads} KV heads of {model.name}",
                f"take {model.kv_heads}, a divisor or a multiple of it",
            )
        )
    if pp > model.layers:
        problems.append(
            Problem(
                f"{path}.pp",
                pp,
                f"at most the {model.layers} layers of {model.name}",
                "take fewer stages, and more tp",
            )
        )
    return problems
