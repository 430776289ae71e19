# SPDX-License-Identifier: Apache-2.0
"""Who answers a request: a pure choice over what is known of the engines.

sysHAX's gates come first and mean what they meant; inside them the predicted time decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Union

from .breaker import Breaker
from .dialects import Dialect
from .exchange import Route
from .prompts import Prompt

GPU, CPU = "gpu", "cpu"
# What an answer is taken to be long where the client set no limit.
ASSUMED_TOKENS = 256
# The newest observation's weight in the running averages.
_WEIGHT = 0.2


class Gates(NamedTuple):
    """sysHAX's thresholds. ``max_num_seqs`` None: as many as the engine runs without a queue."""

    max_num_seqs: int | None = 256
    gpu_cache_threshold: float = 90.0
    cpu_throughput_threshold: float = 10.0
    cpu_max_batch_size: int = 20
    auto_pd_offload: bool = False
    min_prompt_chars: int = 0


class EngineState:
    """What the conductor knows of one engine: its own counts, and the last scrape."""

    __slots__ = (
        "breaker", "cache_usage", "first_token_s", "name", "role", "running", "tokens_per_s",
        "waiting",
    )  # fmt: skip

    def __init__(self, name: str, role: str, breaker: Breaker) -> None:
        self.name = name
        self.role = role
        self.breaker = breaker
        self.running = 0
        self.waiting = 0.0
        self.cache_usage = 0.0
        self.tokens_per_s: float | None = None
        self.first_token_s: float | None = None

    def learn(self, first_token_s: float | None, tokens_per_s: float | None) -> None:
        """Take one finished stream into the averages."""
        self.first_token_s = _average(self.first_token_s, first_token_s)
        self.tokens_per_s = _average(self.tokens_per_s, tokens_per_s)


def _average(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return old if new is None else new
    return old + _WEIGHT * (new - old)


class Busy(NamedTuple):
    """Engines live, but none has room now."""


class Unserved(NamedTuple):
    """No engine can answer, and waiting for room doesn't help."""

    reason: str


Choice = Union[Route, Busy, Unserved]
Pins = Mapping[tuple[str, str], Dialect]


def choose(
    gates: Gates, engines: Sequence[EngineState], pins: Pins, prompt: Prompt, now: float
) -> Choice:
    """A way for a new request. *pins* holds the dialect of each pair (gpu, cpu) that has one."""
    alive = [engine for engine in engines if engine.breaker.admits(now)]
    if not alive:
        return Unserved(_all_down(engines))
    gpus = [engine for engine in alive if engine.role == GPU]
    cpus = [engine for engine in alive if engine.role == CPU]
    splittable = (prompt.forced or len(prompt.raw) >= gates.min_prompt_chars) and any(
        dialect.accepts(prompt) for dialect in pins.values()
    )
    ready = [cpu for cpu in cpus if cpu_has_room(gates, cpu)]
    pair = _pair(gpus, ready, pins, prompt) if splittable else None
    if prompt.forced:
        return _forced(gpus, cpus, pins, prompt, pair)
    free = _least(gpu for gpu in gpus if gpu_has_room(gates, gpu))
    if free is not None:
        if pair is not None and gates.auto_pd_offload and _pays(pair, free, prompt):
            return pair.route
        return Route(free.name)
    if pair is not None and gates.auto_pd_offload:
        return pair.route
    cpu = _least(ready)
    return Route(cpu.name) if cpu is not None else Busy()


def reroute(
    gates: Gates, engines: Sequence[EngineState], avoid: frozenset[str], now: float
) -> Choice:
    """One engine for a request that others failed. It has waited already, so full ones count too:
    the engine's own queue takes it."""
    alive = [e for e in engines if e.breaker.admits(now) and e.name not in avoid]
    if not alive:
        return Unserved("no other engine is there to answer")
    for role, has_room in ((GPU, gpu_has_room), (CPU, cpu_has_room)):
        best = _least(e for e in alive if e.role == role and has_room(gates, e))
        if best is not None:
            return Route(best.name)
    best = _least(alive)
    assert best is not None
    return Route(best.name)


def gpu_has_room(gates: Gates, engine: EngineState) -> bool:
    if gates.max_num_seqs is None:
        if engine.running > 0 and engine.waiting > 0:
            return False
    elif engine.running >= gates.max_num_seqs:
        return False
    return engine.cache_usage * 100 <= gates.gpu_cache_threshold


def cpu_has_room(gates: Gates, engine: EngineState) -> bool:
    """A slow CPU takes one request at a time; one never measured is taken to be fast enough."""
    if engine.running >= gates.cpu_max_batch_size:
        return False
    rate = engine.tokens_per_s
    slow = rate is not None and rate < gates.cpu_throughput_threshold
    return not (slow and engine.running >= 1)


class _Pair(NamedTuple):
    route: Route
    gpu: EngineState
    cpu: EngineState


def _pair(
    gpus: Sequence[EngineState], cpus: Sequence[EngineState], pins: Pins, prompt: Prompt
) -> _Pair | None:
    """The least busy pair that speaks a dialect in which this prompt can be told."""
    best: _Pair | None = None
    for gpu in gpus:
        for cpu in cpus:
            dialect = pins.get((gpu.name, cpu.name))
            if dialect is None or not dialect.accepts(prompt):
                continue
            if best is None or (cpu.running, gpu.running) < (best.cpu.running, best.gpu.running):
                best = _Pair(Route(cpu.name, gpu.name, dialect), gpu, cpu)
    return best


def _forced(
    gpus: Sequence[EngineState],
    cpus: Sequence[EngineState],
    pins: Pins,
    prompt: Prompt,
    pair: _Pair | None,
) -> Choice:
    if pair is not None:
        return pair.route
    if _pair(gpus, cpus, pins, prompt) is not None:
        return Busy()
    if not pins:
        return Unserved("no pair of engines can hand over; /readyz says why")
    return Unserved("no living pair of engines can hand this request over")


def _pays(pair: _Pair, alone: EngineState, prompt: Prompt) -> bool:
    """Whether the answer is predicted to be complete sooner when the CPU decodes it.

    Both ways begin with a prefill on an accelerator, so what differs is the decoding. An idle
    accelerator is never left for a CPU, and rates not yet measured decide nothing.
    """
    if alone.running == 0 or alone.tokens_per_s is None or pair.cpu.tokens_per_s is None:
        return alone.running > 0 and pair.cpu.running == 0
    tokens = prompt.max_tokens or ASSUMED_TOKENS
    transfer = pair.cpu.first_token_s or 0.0
    return transfer + tokens / pair.cpu.tokens_per_s < tokens / alone.tokens_per_s


def _least(engines: Iterable[EngineState]) -> EngineState | None:
    return min(engines, key=lambda engine: engine.running, default=None)


def _all_down(engines: Sequence[EngineState]) -> str:
    causes = [f"{engine.name}: {engine.breaker.trouble or 'being tried'}" for engine in engines]
    return "no engine is reachable; " + "; ".join(causes)
