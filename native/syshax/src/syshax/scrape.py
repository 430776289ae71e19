# SPDX-License-Identifier: Apache-2.0
"""What vLLM's /metrics says, under the names of its V0 and V1 engines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# A label's value may hold any character, so the labels end at the last brace of the line.
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})?[ \t]+(\S+)")
_EXTERNAL = 'source="external_kv_transfer"'


class Load(NamedTuple):
    """One scrape. A name that the engine doesn't have is None, never zero."""

    running: float | None
    waiting: float | None
    cache_usage: float | None
    generated: float | None
    transferred: float | None

    def shows_transfer_since(self, before: Load) -> bool | None:
        """Whether blocks came from elsewhere since *before*; None where the engine can't tell."""
        if self.transferred is None:
            return None
        return self.transferred > (before.transferred or 0.0)


def parse(text: str) -> Load:
    """Read a Prometheus exposition. Several samples of a name are ranks or models of one engine:
    counts add up, and of usages the fullest counts."""
    samples: dict[str, list[float]] = {}
    external: list[float] = []
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, number = match.groups()
        try:
            value = float(number)
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        samples.setdefault(name, []).append(value)
        if name == "vllm:prompt_tokens_by_source_total" and labels and _EXTERNAL in labels:
            external.append(value)
    usage = _first(samples, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    return Load(
        running=_sum(_first(samples, "vllm:num_requests_running")),
        waiting=_sum(_first(samples, "vllm:num_requests_waiting")),
        cache_usage=max(usage) if usage else None,
        generated=_sum(_first(samples, "vllm:generation_tokens_total", "vllm:generation_tokens")),
        transferred=_sum(external) if external else None,
    )


def _first(samples: Mapping[str, Sequence[float]], *names: str) -> Sequence[float] | None:
    return next((samples[name] for name in names if name in samples), None)


def _sum(values: Sequence[float] | None) -> float | None:
    return sum(values) if values else None
