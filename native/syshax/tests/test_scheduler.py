# SPDX-License-Identifier: Apache-2.0
"""Who answers: sysHAX's gates, the breaker, and the predicted time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from syshax.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from syshax.dialects import DIALECTS
from syshax.dispatch import Dispatcher
from syshax.errors import Problem
from syshax.exchange import Route
from syshax.prompts import CHAT, Prompt
from syshax.scheduler import CPU, GPU, Busy, EngineState, Gates, Unserved, choose, reroute

NIXL = DIALECTS["nixl"]
PINS = {("gpu", "cpu"): NIXL}
HAND_OFF = Route("cpu", "gpu", NIXL)


def engine(name: str, running: int = 0, **known: Any) -> EngineState:
    state = EngineState(name, CPU if name.startswith("cpu") else GPU, Breaker(1, 10))
    state.running = running
    for key, value in known.items():
        setattr(state, key, value)
    return state


def prompt(forced: bool = False, **body: Any) -> Prompt:
    return Prompt(CHAT, b"x" * 100, {"messages": [], **body}, "id", forced)


AUTO: dict[str, Any] = {"auto_pd_offload": True}
FULL: dict[str, Any] = {"max_num_seqs": 4}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any]] = {
    # name: gates, what is known of the GPU, of the CPU, wanted
    "idle GPU answers alone": ({}, {}, {}, Route("gpu")),
    "full GPU, idle CPU answers alone": (FULL, {"running": 4}, {}, Route("cpu")),
    "full GPU, offload prefills there": ({**FULL, **AUTO}, {"running": 4}, {}, HAND_OFF),
    "cache over its gate counts as full": ({}, {"cache_usage": 0.91}, {}, Route("cpu")),
    "cache at its gate does not": ({}, {"cache_usage": 0.9}, {}, Route("gpu")),
    "no max_num_seqs: a queue means full": (
        {"max_num_seqs": None}, {"running": 1, "waiting": 1}, {}, Route("cpu"),
    ),
    "no max_num_seqs: without a queue it is not": (
        {"max_num_seqs": None}, {"running": 900}, {}, Route("gpu"),
    ),
    "slow CPU takes one": (FULL, {"running": 4}, {"tokens_per_s": 9.0}, Route("cpu")),
    "slow CPU takes no second": (FULL, {"running": 4}, {"tokens_per_s": 9.0, "running": 1}, Busy()),
    "fast CPU takes a second": (
        FULL, {"running": 4}, {"tokens_per_s": 11.0, "running": 1}, Route("cpu"),
    ),
    "both full": ({**FULL, "cpu_max_batch_size": 2}, {"running": 4}, {"running": 2}, Busy()),
    "offload: idle GPU is never left": (
        AUTO, {"tokens_per_s": 1.0}, {"tokens_per_s": 99.0}, Route("gpu"),
    ),
    "offload: faster CPU decodes": (
        AUTO, {"running": 1, "tokens_per_s": 10.0}, {"tokens_per_s": 30.0}, HAND_OFF,
    ),
    "offload: slower CPU does not": (
        AUTO, {"running": 1, "tokens_per_s": 30.0}, {"tokens_per_s": 10.0}, Route("gpu"),
    ),
    "offload: a long transfer eats the gain": (
        AUTO, {"running": 1, "tokens_per_s": 10.0},
        {"tokens_per_s": 12.0, "first_token_s": 60.0}, Route("gpu"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_choice(name: str) -> None:
    gates, gpu, cpu, wanted = CASES[name]
    engines = [engine("gpu", **gpu), engine("cpu", **cpu)]
    assert choose(Gates(**gates), engines, PINS, prompt(), 0) == wanted


def test_a_dead_engine_is_never_half_of_a_pair() -> None:
    gpu, cpu = engine("gpu", 4), engine("cpu")
    cpu.breaker.failed(0, "refused")
    assert choose(Gates(**FULL, **AUTO), [gpu, cpu], PINS, prompt(), 1) == Busy()
    gpu.breaker.failed(0, "reset")
    choice = choose(Gates(), [gpu, cpu], PINS, prompt(), 1)
    assert choice == Unserved("no engine is reachable; gpu: reset; cpu: refused")


def test_forcing_a_hand_off_waits_for_room_but_not_for_a_miracle() -> None:
    gates = Gates(cpu_max_batch_size=1)
    gpu, cpu = engine("gpu"), engine("cpu")
    assert choose(gates, [gpu, cpu], PINS, prompt(forced=True), 0) == HAND_OFF
    cpu.running = 1
    assert choose(gates, [gpu, cpu], PINS, prompt(forced=True), 0) == Busy()
    assert isinstance(choose(gates, [gpu, cpu], {}, prompt(forced=True), 0), Unserved)
    assert isinstance(choose(gates, [gpu, cpu], PINS, prompt(forced=True, n=2), 0), Unserved)


def test_pools_share_evenly() -> None:
    engines = [engine("gpu-0"), engine("gpu-1"), engine("gpu-2")]
    for _ in range(9):
        choice = choose(Gates(), engines, {}, prompt(), 0)
        assert isinstance(choice, Route)
        next(e for e in engines if e.name == choice.engine).running += 1
    assert [e.running for e in engines] == [3, 3, 3]


def test_reroute_prefers_accelerators_and_never_repeats() -> None:
    engines = [engine("gpu-0"), engine("gpu-1"), engine("cpu")]
    assert reroute(Gates(), engines, frozenset({"gpu-0"}), 0) == Route("gpu-1")
    assert reroute(Gates(), engines, frozenset({"gpu-0", "gpu-1"}), 0) == Route("cpu")
    assert isinstance(reroute(Gates(), engines, frozenset({"gpu-0", "gpu-1", "cpu"}), 0), Unserved)


def test_the_breaker_opens_closes_and_lets_one_try() -> None:
    breaker = Breaker(threshold=2, cooldown=10)
    breaker.failed(0, "a")
    assert breaker.state(0) is CLOSED
    breaker.failed(1, "b")
    assert breaker.state(10.9) is OPEN and not breaker.admits(10.9)
    assert breaker.state(11) is HALF_OPEN and breaker.admits(11)
    breaker.tried(11)
    assert not breaker.admits(12)
    breaker.failed(12, "c")
    assert breaker.state(21.9) is OPEN
    breaker.tried(22)
    breaker.succeeded()
    assert breaker.state(22) is CLOSED


def dispatcher(size: int = 2) -> Dispatcher:
    gates = Gates(max_num_seqs=1, cpu_max_batch_size=1)
    return Dispatcher(gates, [engine("gpu")], {}, size, lambda: 0.0)


def test_the_queue_is_first_come_first_served_and_bounded() -> None:
    async def talk() -> None:
        desk = dispatcher()
        assert await desk.acquire(prompt()) == Route("gpu")
        order: list[int] = []

        async def wait(number: int) -> None:
            await desk.acquire(prompt())
            order.append(number)

        waiters = [asyncio.create_task(wait(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        refused = await desk.acquire(prompt())
        assert isinstance(refused, Problem)
        assert (refused.status, refused.retry_after, refused.kind) == (429, 1, "rate_limit_error")
        for _ in waiters:
            desk.free(desk.engines["gpu"])
            await asyncio.sleep(0)
        await asyncio.gather(*waiters)
        assert order == [1, 2]
        assert desk.engines["gpu"].running == 1

    asyncio.run(talk())


@pytest.mark.parametrize("given_first", [False, True])
def test_who_leaves_the_queue_takes_no_place_along(given_first: bool) -> None:
    async def talk() -> None:
        desk = dispatcher()
        await desk.acquire(prompt())
        waiter = asyncio.create_task(desk.acquire(prompt()))
        await asyncio.sleep(0)
        if given_first:
            desk.free(desk.engines["gpu"])
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        if not given_first:
            desk.free(desk.engines["gpu"])
        assert (desk.queued, desk.engines["gpu"].running) == (0, 0)

    asyncio.run(talk())
