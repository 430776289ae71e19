# SPDX-License-Identifier: Apache-2.0
"""vLLM's metrics, of both engine generations and in every spelling of a number."""

from __future__ import annotations

from syshax.scrape import parse

V1 = """\
# TYPE vllm:kv_cache_usage_perc gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 2.0
vllm:num_requests_running{engine="1",model_name="a}b"} 3.0
vllm:num_requests_waiting{engine="0"} 1
vllm:kv_cache_usage_perc{engine="0"} 3.4e-05
vllm:kv_cache_usage_perc{engine="1"} 1.25E-01 1700000000
vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} 640.0
vllm:prompt_tokens_by_source_total{source="local_compute"} 81.0
vllm:generation_tokens_total NaN
nonsense
"""


def test_v1_with_ranks_labels_and_exponents() -> None:
    assert parse(V1) == (5.0, 1.0, 0.125, None, 640.0)


def test_v0_names() -> None:
    text = "vllm:gpu_cache_usage_perc 0.5\nvllm:num_requests_running 1\n"
    assert parse(text) == (1.0, None, 0.5, None, None)


def test_a_transfer_is_shown_not_shown_or_unknowable() -> None:
    nothing, some = parse(""), parse(V1)
    assert nothing.shows_transfer_since(some) is None
    assert some.shows_transfer_since(nothing) is True
    assert some.shows_transfer_since(some) is False
