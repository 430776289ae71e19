# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Language models as numbers: what sizing and parallelism are worked out from (pure).

The table holds what each model's published ``config.json`` says; :func:`from_config` reads the same
keys from a model that isn't in it. Parameters are counted from these, not typed in.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .._errors import XpuError


@dataclass(frozen=True)
class Model:
    """A dense transformer with grouped-query attention."""

    name: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context: int
    dtype_bytes: int
    # Parameters of the embeddings (and of the output's, where these are not the same): a quantised
    # model keeps them as they are.
    embedding_parameters: int = 0
    vocabulary: int = 0


_DTYPE_BYTES = {
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "float32": 4,
    "float": 4,
    "float8_e4m3fn": 1,
}
# Architectures whose parameters the formula of _parameters counts, by config's model_type: whether
# projections of query, key and value have a bias, and whether query and key have a norm each.
_KNOWN_TYPES = {"llama": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _whole(config: t.Mapping[str, t.Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise XpuError(
            f"config.json: {key} is {value!r}, not a whole number from 1 on",
            "give the config.json that was published with the model",
        )
    return value


def from_config(config: t.Mapping[str, t.Any], name: str = "") -> Model:
    """A model by its Hugging Face ``config.json``; XpuError where it can't be counted."""
    kind = config.get("model_type")
    if kind not in _KNOWN_TYPES or "num_experts" in config or "num_local_experts" in config:
        raise XpuError(
            f"config.json: model_type {kind!r} is none whose memory is known "
            f"({', '.join(_KNOWN_TYPES)}, without experts)",
            "leave the check of memory off for this model and give max_model_len and "
            "gpu_memory_utilization yourself",
        )
    hidden, inner, layers, heads, vocabulary, context = (_whole(config, key) for key in _NEEDED)
    kv_heads = _whole(config, "num_key_value_heads") if "num_key_value_heads" in config else heads
    head_dim = _whole(config, "head_dim") if config.get("head_dim") else hidden // heads
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if dtype not in _DTYPE_BYTES:
        raise XpuError(
            f"config.json: torch_dtype is {dtype!r}, none of {', '.join(_DTYPE_BYTES)}",
            "give the config.json that was published with the model",
        )
    bias, norms = _KNOWN_TYPES[kind]
    width, kv_width = heads * head_dim, kv_heads * head_dim
    layer = (
        2 * hidden * width  # query and output
        + 2 * hidden * kv_width  # key and value
        + 3 * hidden * inner  # gate, up and down
        + 2 * hidden  # the norms before attention and before the MLP
        + (width + 2 * kv_width if bias else 0)
        + (2 * head_dim if norms else 0)
    )
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return Model(
        name=name or str(config.get("_name_or_path") or kind),
        parameters=layers * layer + hidden + embeddings,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_context=context,
        dtype_bytes=_DTYPE_BYTES[dtype],
        embedding_parameters=embeddings,
        vocabulary=vocabulary,
    )


class _Row(t.NamedTuple):
    kind: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    tied: bool = False
    head_dim: int = 0


# Contexts are those of the -Instruct models where a base model has a longer one.
_ROWS = {
    "DeepSeek-R1-Distill-Llama-8B": _Row("llama", 32, 4096, 14336, 32, 8, 128256, 131072),
    "DeepSeek-R1-Distill-Llama-70B": _Row("llama", 80, 8192, 28672, 64, 8, 128256, 131072),
    "DeepSeek-R1-Distill-Qwen-1.5B": _Row("qwen2", 28, 1536, 8960, 12, 2, 151936, 131072),
    "DeepSeek-R1-Distill-Qwen-7B": _Row("qwen2", 28, 3584, 18944, 28, 4, 152064, 131072),
    "DeepSeek-R1-Distill-Qwen-14B": _Row("qwen2", 48, 5120, 13824, 40, 8, 152064, 131072),
    "DeepSeek-R1-Distill-Qwen-32B": _Row("qwen2", 64, 5120, 27648, 40, 8, 152064, 131072),
    "Llama-3.1-8B": _Row("llama", 32, 4096, 14336, 32, 8, 128256, 131072),
    "Llama-3.1-70B": _Row("llama", 80, 8192, 28672, 64, 8, 128256, 131072),
    "Llama-3.2-1B": _Row("llama", 16, 2048, 8192, 32, 8, 128256, 131072, True, 64),
    "Llama-3.2-3B": _Row("llama", 28, 3072, 8192, 24, 8, 128256, 131072, True, 128),
    "Llama-3.3-70B": _Row("llama", 80, 8192, 28672, 64, 8, 128256, 131072),
    "Qwen2-0.5B": _Row("qwen2", 24, 896, 4864, 14, 2, 151936, 32768, True),
    "Qwen2-1.5B": _Row("qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, True),
    "Qwen2-7B": _Row("qwen2", 28, 3584, 18944, 28, 4, 152064, 32768),
    "Qwen2.5-0.5B": _Row("qwen2", 24, 896, 4864, 14, 2, 151936, 32768, True),
    "Qwen2.5-1.5B": _Row("qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, True),
    "Qwen2.5-7B": _Row("qwen2", 28, 3584, 18944, 28, 4, 152064, 32768),
    "Qwen2.5-14B": _Row("qwen2", 48, 5120, 13824, 40, 8, 152064, 32768),
    "Qwen2.5-32B": _Row("qwen2", 64, 5120, 27648, 40, 8, 152064, 32768),
    "Qwen3-0.6B": _Row("qwen3", 28, 1024, 3072, 16, 8, 151936, 40960, True, 128),
    "Qwen3-8B": _Row("qwen3", 36, 4096, 12288, 32, 8, 151936, 40960, False, 128),
    "Qwen3-32B": _Row("qwen3", 64, 5120, 25600, 64, 8, 151936, 40960, False, 128),
}


def _config(row: _Row) -> dict[str, t.Any]:
    return {
        "model_type": row.kind,
        "num_hidden_layers": row.layers,
        "hidden_size": row.hidden,
        "intermediate_size": row.inner,
        "num_attention_heads": row.heads,
        "num_key_value_heads": row.kv_heads,
        "vocab_size": row.vocabulary,
        "max_position_embeddings": row.context,
        "tie_word_embeddings": row.tied,
        "torch_dtype": "bfloat16",
        **({"head_dim": row.head_dim} if row.head_dim else {}),
    }


MODELS: t.Mapping[str, Model] = {
    name: from_config(_config(row), name) for name, row in _ROWS.items()
}

# What a publisher or a download adds to a model's name without another architecture behind it.
_ENDINGS = ("-instruct", "-main", "-chat", "-base")
_BY_LOWER = {name.lower(): model for name, model in MODELS.items()}


def find(name_or_path: str) -> Model | None:
    """By name or a path's last component, without case; -Instruct and -main make no difference."""
    name = name_or_path.strip().rstrip("/").rpartition("/")[2].lower()
    while name not in _BY_LOWER:
        ending = next((end for end in _ENDINGS if name.endswith(end)), "")
        if not ending:
            return None
        name = name[: -len(ending)]
    return _BY_LOWER[name]
