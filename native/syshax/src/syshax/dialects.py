# SPDX-License-Identifier: Apache-2.0
"""How two engines are told to share one request.

A dialect writes the prefill's body, and reads its reply: either the decode's body follows from it,
or the reply is the whole answer already, or no hand-off happened. All pure; what a dialect returns
goes out through ``exchange``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Union

from .prompts import Prompt


class Decode(NamedTuple):
    """The prefill is done: send *body* to the decoding engine."""

    body: bytes


class Complete(NamedTuple):
    """The prefill's reply is the whole answer (it ended on its first token)."""

    answer: Mapping[str, Any]


class NoHandOff(NamedTuple):
    """The prefilling engine did not hand anything over."""

    reason: str


Reply = Union[Decode, Complete, NoHandOff]


class Dialect(Protocol):
    """One way of handing over."""

    @property
    def name(self) -> str:
        """As the configuration spells it."""

    def prefill(self, prompt: Prompt) -> bytes:
        """The body for the prefilling engine."""

    def read(self, prompt: Prompt, reply: Mapping[str, Any]) -> Reply:
        """What the prefill's reply means."""

    def accepts(self, prompt: Prompt) -> bool:
        """Whether this request can be told in the dialect."""


def _one_token(prompt: Prompt) -> dict[str, Any]:
    """The client's body, cut to a prefill: one token, not streamed."""
    body = dict(prompt.body)
    body.update(stream=False, max_tokens=1)
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = 1
    # vLLM refuses stream_options without stream, and min_tokens above max_tokens.
    body.pop("stream_options", None)
    body.pop("min_tokens", None)
    return body


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _finish_reason(reply: Mapping[str, Any]) -> str | None:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    reason = choices[0].get("finish_reason")
    return reason if isinstance(reason, str) else None


class Nixl:
    """vLLM's own: the reply's ``kv_transfer_params`` go to the decoding engine as they came.

    The object is opaque on purpose; its fields changed with 0.9.2, 0.13 and 0.32.
    """

    name = "nixl"

    def accepts(self, prompt: Prompt) -> bool:
        return prompt.splittable

    def prefill(self, prompt: Prompt) -> bytes:
        body = _one_token(prompt)
        body["kv_transfer_params"] = {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
        return _encode(body)

    def read(self, prompt: Prompt, reply: Mapping[str, Any]) -> Reply:
        reason = _finish_reason(reply)
        if reason is None:
            return NoHandOff("the prefill's reply has no finish_reason")
        if reason != "length":
            return Complete({k: v for k, v in reply.items() if k != "kv_transfer_params"})
        params = reply.get("kv_transfer_params")
        if not isinstance(params, dict) or not params:
            return NoHandOff("the prefill's reply carries no kv_transfer_params")
        return Decode(_encode({**prompt.body, "kv_transfer_params": params}))


class SysHax:
    """The private dialect of sysHAX's own engines (0.2.x images)."""

    name = "syshax"

    def accepts(self, prompt: Prompt) -> bool:
        # num_decode_tokens is a number, and only the client's limit can be it.
        return prompt.splittable and prompt.max_tokens is not None

    def prefill(self, prompt: Prompt) -> bytes:
        body = dict(prompt.body)
        body.update(stream=False, num_decode_tokens=1)
        body.pop("stream_options", None)
        return _encode(body)

    def read(self, prompt: Prompt, reply: Mapping[str, Any]) -> Reply:
        reason = _finish_reason(reply)
        if reason is None:
            return NoHandOff("the prefill's reply has no finish_reason")
        if reason != "scheduled":
            # A stock engine ignores num_decode_tokens and has answered everything already.
            return Complete(reply)
        body = dict(prompt.body)
        body.update(request_id_inference=reply.get("id"), num_decode_tokens=prompt.max_tokens)
        return Decode(_encode(body))


class Shared:
    """Engines that find each other's blocks by the prompt's hash; nothing is said but the prompt.

    vLLM 0.8 connectors, ExampleConnector (SharedStorageConnector), LMCache, Mooncake store.
    """

    name = "shared"

    def accepts(self, prompt: Prompt) -> bool:
        return prompt.splittable

    def prefill(self, prompt: Prompt) -> bytes:
        return _encode(_one_token(prompt))

    def read(self, prompt: Prompt, reply: Mapping[str, Any]) -> Reply:
        reason = _finish_reason(reply)
        if reason is None:
            return NoHandOff("the prefill's reply has no finish_reason")
        return Decode(prompt.raw) if reason == "length" else Complete(reply)


DIALECTS: Mapping[str, Dialect] = {d.name: d for d in (Nixl(), SysHax(), Shared())}
