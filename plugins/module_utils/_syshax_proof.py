# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Whether a request was really handed over, judged by the engines' own counters. All pure."""

from __future__ import annotations

import json
import re
import typing as t

PROVEN, LIKELY, ONE_SIDED, BROKEN = "proven", "likely", "one-sided", "broken"
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")


class Counters(t.NamedTuple):
    """What an engine counted up to now. ``transferred``: prompt tokens whose blocks came from
    another engine; None where the engine has no such counter."""

    prompt: float = 0.0
    generated: float = 0.0
    transferred: float | None = None

    def since(self, before: Counters) -> Counters:
        moved = None
        if self.transferred is not None:
            # The counter appears with its first transfer in some versions.
            moved = self.transferred - (before.transferred or 0.0)
        return Counters(self.prompt - before.prompt, self.generated - before.generated, moved)


class Proof(t.NamedTuple):
    state: str
    reason: str


def read_counters(text: str) -> Counters:
    """An engine's /metrics; ranks and models are added up."""
    prompt = generated = moved = 0.0
    has_sources = False
    for line in text.split("\n"):
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match.group(1), match.group(2) or "", _number(match.group(3))
        if name == "vllm:prompt_tokens_total":
            prompt += value
        elif name == "vllm:generation_tokens_total":
            generated += value
        elif name == "vllm:prompt_tokens_by_source_total":
            has_sources = True
            if 'source="external_kv_transfer"' in labels:
                moved += value
    return Counters(prompt, generated, moved if has_sources else None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


class Answer(t.NamedTuple):
    """A streamed answer: its status, the engines that gave it, how many events held text."""

    status: int
    route: str
    pieces: int
    ends: int  # how many [DONE]
    error: str


def read_stream(status: int, route: str, body: str) -> Answer:
    """What a conductor's event stream says."""
    pieces = ends = 0
    error = "" if status == 200 else body[:300]
    # Not splitlines(): a model may say U+2028, which ends no line of an event stream.
    for line in body.split("\n"):
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            ends += 1
            continue
        try:
            event = json.loads(data)
        except ValueError:
            error = error or f"an event that is no JSON: {data[:80]}"
            continue
        if "error" in event:
            error = error or str(event["error"].get("message", event["error"]))
        for choice in event.get("choices", []):
            pieces += bool((choice.get("delta") or {}).get("content"))
    return Answer(status, route, pieces, ends, error)


def judge(answer: Answer, gpu: Counters, cpu: Counters) -> Proof:
    """*gpu* and *cpu* are what the engines counted while *answer* was given, and nothing else ran.

    An answer proves nothing: an engine that got no blocks computes the prompt itself and answers
    all the same.
    """
    if answer.error or answer.status != 200 or not answer.pieces or answer.ends != 1:
        what = answer.error or (
            f"status {answer.status}, {answer.pieces} pieces of text, {answer.ends} [DONE]"
        )
        return Proof(BROKEN, f"the request was not answered in full: {what}")
    if not cpu.generated:
        return Proof(
            ONE_SIDED,
            f"the accelerator's engine decoded everything ({gpu.generated:.0f} tokens), the CPU's "
            f"none (route {answer.route or 'not told'})",
        )
    if not gpu.prompt:
        return Proof(
            ONE_SIDED,
            f"the CPU's engine did everything ({cpu.prompt:.0f} prompt tokens, {cpu.generated:.0f} "
            f"generated), the accelerator's nothing (route {answer.route or 'not told'})",
        )
    if cpu.transferred is None:
        if cpu.prompt < gpu.prompt:
            # Engines of sysHAX's images resume a sequence, and count no prompt for it.
            return Proof(
                LIKELY,
                f"both engines worked, and the CPU's computed {cpu.prompt:.0f} of {gpu.prompt:.0f} "
                "prompt tokens; it has no counter of transfers",
            )
        return Proof(
            ONE_SIDED,
            f"the CPU's engine computed the whole prompt again ({cpu.prompt:.0f} tokens): nothing "
            "reached it from the accelerator's",
        )
    if cpu.transferred <= 0:
        return Proof(
            ONE_SIDED,
            f"the CPU's engine got no blocks and computed all {cpu.prompt:.0f} prompt tokens "
            "itself, after the accelerator's had",
        )
    return Proof(
        PROVEN,
        f"{cpu.transferred:.0f} of {gpu.prompt:.0f} prompt tokens came from the accelerator's "
        f"engine ({gpu.generated:.0f} token there), the CPU's decoded {cpu.generated:.0f}",
    )
