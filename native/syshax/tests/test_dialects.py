# SPDX-License-Identifier: Apache-2.0
"""What the two legs of a hand-off say, per dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from syshax import prompts
from syshax.dialects import DIALECTS, Complete, Decode, NoHandOff
from syshax.prompts import CHAT, Prompt

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "介绍一下openEuler。"}],
    "max_tokens": 64,
    "max_completion_tokens": 32,
    "min_tokens": 5,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def prompt(**changes: Any) -> Prompt:
    body = {**BODY, **changes}
    parsed = prompts.parse(CHAT, json.dumps(body).encode(), "id-1")
    assert isinstance(parsed, Prompt)
    return parsed


def reply(finish: str | None, **more: Any) -> dict[str, Any]:
    return {"id": "cmpl-9", "choices": [{"index": 0, "finish_reason": finish}], **more}


@pytest.mark.parametrize("name", ["nixl", "shared"])
def test_a_prefill_asks_for_one_token_and_no_stream(name: str) -> None:
    body = json.loads(DIALECTS[name].prefill(prompt()))
    assert (body["max_tokens"], body["max_completion_tokens"], body["stream"]) == (1, 1, False)
    assert "stream_options" not in body and "min_tokens" not in body


def test_nixl_hands_the_params_on_untouched() -> None:
    params = {"remote_block_ids": [[1], [2, 3]], "unknown_of_a_later_version": {"x": None}}
    meaning = DIALECTS["nixl"].read(prompt(), reply("length", kv_transfer_params=params))
    assert isinstance(meaning, Decode)
    assert json.loads(meaning.body) == {**BODY, "kv_transfer_params": params}


def test_syshax_relays_by_id_with_the_newer_limit() -> None:
    dialect = DIALECTS["syshax"]
    assert json.loads(dialect.prefill(prompt()))["num_decode_tokens"] == 1
    meaning = dialect.read(prompt(), reply("scheduled"))
    assert isinstance(meaning, Decode)
    body = json.loads(meaning.body)
    assert (body["request_id_inference"], body["num_decode_tokens"]) == ("cmpl-9", 32)


@pytest.mark.parametrize(
    ("dialect", "answer", "meaning"),
    [
        ("nixl", reply("stop", kv_transfer_params={"a": 1}), Complete(reply("stop"))),
        ("nixl", reply("length"), "the prefill's reply carries no kv_transfer_params"),
        ("nixl", {"choices": []}, "the prefill's reply has no finish_reason"),
        ("nixl", {"choices": [None]}, "the prefill's reply has no finish_reason"),
        ("syshax", reply("length"), Complete(reply("length"))),
        ("syshax", reply(None), "the prefill's reply has no finish_reason"),
        ("shared", reply("stop"), Complete(reply("stop"))),
        ("shared", {}, "the prefill's reply has no finish_reason"),
    ],
)
def test_replies_that_hand_nothing_over(dialect: str, answer: Any, meaning: Any) -> None:
    wanted = NoHandOff(meaning) if isinstance(meaning, str) else meaning
    assert DIALECTS[dialect].read(prompt(), answer) == wanted


@pytest.mark.parametrize(
    ("changes", "splittable"),
    [
        ({}, True),
        ({"n": 2}, False),
        ({"max_completion_tokens": 1}, False),
        ({"prompt_logprobs": 1}, False),
        ({"max_tokens": None, "max_completion_tokens": None}, True),
    ],
)
def test_what_two_engines_can_share(changes: dict[str, Any], splittable: bool) -> None:
    assert prompt(**changes).splittable is splittable


def test_syshax_needs_a_limit() -> None:
    assert not DIALECTS["syshax"].accepts(prompt(max_tokens=None, max_completion_tokens=None))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"[" * 200_000, "not valid JSON"),
        (b"{}", "no 'messages'"),
        (b'{"messages":[],"max_tokens":0}', "max_tokens must be a whole number from 1, not 0"),
        (b'{"messages":[],"max_tokens":"9"}', "from 1, not '9'"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_bad_bodies_are_the_clients_mistake(body: bytes, message: str) -> None:
    problem = prompts.parse(CHAT, body, "x")
    assert not isinstance(problem, Prompt)
    assert problem.status == 400 and message in problem.message
    assert problem.kind == "invalid_request_error"


def test_a_missing_model_and_only_that_is_put_in() -> None:
    parsed = prompts.parse(CHAT, b'{"messages":[]}', "x", model="ds-32b")
    assert isinstance(parsed, Prompt)
    assert json.loads(parsed.raw) == {"messages": [], "model": "ds-32b"}
