# SPDX-License-Identifier: Apache-2.0
"""What a client asked for, as far as routing it needs to know, and answers in both shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from . import sse
from .errors import Problem

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PD_DISAGG = "/v1/chat/pd_disagg"
# Fields whose answer one leg alone can't give: the prompt's own tokens are with the other one.
_ONE_ENGINE_FIELDS = ("prompt_logprobs", "echo", "best_of", "use_beam_search")


class Prompt(NamedTuple):
    """One parsed request. ``raw`` is what the client sent, and what a single engine gets."""

    path: str
    raw: bytes
    body: Mapping[str, Any]
    request_id: str
    forced: bool = False

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def include_usage(self) -> bool:
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))

    @property
    def choices(self) -> int:
        value = self.body.get("n")
        return value if isinstance(value, int) and value > 0 else 1

    @property
    def max_tokens(self) -> int | None:
        """The limit the client set; the newer name wins, as in vLLM."""
        for name in ("max_completion_tokens", "max_tokens"):
            value = self.body.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    @property
    def splittable(self) -> bool:
        """Whether two engines can answer this together at all."""
        if self.choices != 1 or any(self.body.get(name) for name in _ONE_ENGINE_FIELDS):
            return False
        if isinstance(self.body.get("prompt"), list) and self.path == COMPLETIONS:
            return False
        # The first token is the prefill's own: there is nothing left to decode.
        return self.max_tokens is None or self.max_tokens > 1


def parse(path: str, raw: bytes, request_id: str, model: str | None = None) -> Prompt | Problem:
    """Read a request body; the problem names what is wrong with it.

    *model* is put in where the client names none, and is the only thing ever put in.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Problem(400, "invalid_json", f"the body is not valid JSON: {error}")
    if not isinstance(body, dict):
        return Problem(400, "invalid_json", "the body must be a JSON object")
    wanted = "prompt" if path == COMPLETIONS else "messages"
    if wanted not in body:
        return Problem(400, "missing_field", f"the body has no {wanted!r}", wanted)
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            return Problem(
                400, "invalid_value", f"{name} must be a whole number from 1, not {value!r}", name
            )
    if model is not None and body.get("model") is None:
        body["model"] = model
        raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if path == PD_DISAGG:
        return Prompt(CHAT, raw, body, request_id, forced=True)
    return Prompt(path, raw, body, request_id)


def as_stream(answer: Mapping[str, Any], include_usage: bool) -> bytes:
    """A complete answer as the events a streaming client expects, ``[DONE]`` included."""
    chat = str(answer.get("object", "")).startswith("chat")
    head = {
        "id": answer.get("id"),
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": answer.get("created"),
        "model": answer.get("model"),
    }
    blocks = [{**head, "choices": [choice]} for choice in _chunks(answer, chat)]
    if include_usage:
        blocks.append({**head, "choices": [], "usage": answer.get("usage")})
    text = (json.dumps(block, ensure_ascii=False).encode() for block in blocks)
    return b"".join(map(sse.event, text)) + sse.DONE


def _chunks(answer: Mapping[str, Any], chat: bool) -> Iterator[Mapping[str, Any]]:
    for choice in answer.get("choices", []):
        if not isinstance(choice, dict):
            raise TypeError(f"a choice is {choice!r}")
        if not chat:
            yield choice
            continue
        delta = dict(choice.get("message") or {})
        # In a stream each call carries its place in the list; in a whole answer the list does.
        if delta.get("tool_calls"):
            delta["tool_calls"] = [
                {"index": index, **call} for index, call in enumerate(delta["tool_calls"])
            ]
        yield {
            "index": choice.get("index", 0),
            "delta": delta,
            "logprobs": choice.get("logprobs"),
            "finish_reason": choice.get("finish_reason"),
        }
