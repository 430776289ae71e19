# SPDX-License-Identifier: GPL-3.0-or-later
"""A hand-off is believed when the engines' counters say so, and an answer proves nothing."""

from __future__ import annotations

import json

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _syshax_proof as proof
from ansible_collections.flexai.xpu.plugins.module_utils._syshax_proof import Answer, Counters

FULL = Answer(200, "gpu>cpu", pieces=16, ends=1, error="")


@pytest.mark.parametrize(
    ("answer", "gpu", "cpu", "state"),
    [
        (FULL, Counters(300, 1, 0), Counters(300, 16, 288), "proven"),
        # The V0 engines of sysHAX's images count no transfers.
        (FULL, Counters(300, 1), Counters(0, 16), "likely"),
        (FULL, Counters(300, 1), Counters(300, 16), "one-sided"),
        (FULL, Counters(300, 1, 0), Counters(300, 16, 0), "one-sided"),
        (FULL._replace(route="gpu"), Counters(300, 16, 0), Counters(0, 0, 0), "one-sided"),
        (FULL._replace(route="cpu"), Counters(0, 0, 0), Counters(300, 16, 0), "one-sided"),
        (FULL._replace(ends=0), Counters(300, 1, 0), Counters(300, 16, 288), "broken"),
        (FULL._replace(pieces=0), Counters(300, 1, 0), Counters(300, 16, 288), "broken"),
        (FULL._replace(status=503), Counters(), Counters(), "broken"),
        (FULL._replace(error="died"), Counters(300, 1, 0), Counters(300, 16, 288), "broken"),
    ],
)
def test_the_counters_decide(answer: Answer, gpu: Counters, cpu: Counters, state: str) -> None:
    assert proof.judge(answer, gpu, cpu).state == state


def test_a_deployment_that_decodes_on_one_side_is_told_in_words() -> None:
    found = proof.judge(FULL._replace(route="gpu"), Counters(300, 16, 0), Counters(0, 0, 0))
    assert "the accelerator's engine decoded everything (16 tokens)" in found.reason


def test_counters_of_ranks_add_up_and_a_missing_counter_is_not_zero() -> None:
    page = (
        "# HELP vllm:prompt_tokens_total x\n"
        'vllm:prompt_tokens_total{engine="0",model_name="a}b"} 1e2\n'
        'vllm:prompt_tokens_total{engine="1"} 20\n'
        'vllm:generation_tokens_total{engine="0"} 3.0\n'
    )
    assert proof.read_counters(page) == Counters(120, 3, None)
    page += 'vllm:prompt_tokens_by_source_total{source="local_compute"} 5\n'
    assert proof.read_counters(page).transferred == 0
    page += 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} 96\n'
    assert proof.read_counters(page).transferred == 96
    # It may appear with the first transfer.
    assert Counters(1, 1, 96).since(Counters(0, 0, None)).transferred == 96


def test_a_stream_is_read_to_its_end() -> None:
    def event(**fields: object) -> str:
        return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"

    said = event(choices=[{"delta": {"role": "assistant"}}])
    said += event(choices=[{"delta": {"content": "开\u2028"}}]) * 2 + event(choices=[])
    whole = proof.read_stream(200, "gpu>cpu", said + "data: [DONE]\n\n")
    assert whole == Answer(200, "gpu>cpu", 2, 1, "")
    assert proof.read_stream(200, "", said).ends == 0
    broken = proof.read_stream(200, "", event(error={"message": "engine died"}))
    assert broken.error == "engine died"
    assert proof.read_stream(503, "", '{"error": 1}').error == '{"error": 1}'
