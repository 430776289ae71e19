# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-conductor``: the conductor's own CPU time beside a bare pass-through's.

Both stand before the same mock engine and take turns within one run: rounds of whole answers, of
streams, and of hand-offs. ``BASELINE=sglang-router`` (or ``vllm-router``) starts that router as a
third and measures it as the others. ``BASELINE_URL=`` adds one that runs already, by wall time
only, for its processes are not ours to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench import routers
from bench import syshaxlib as lib
from bench.benchlib import Figure, Report, publish

ROUNDS = int(os.environ.get("ROUNDS", "5"))
REQUESTS, CLIENTS = 1500, 8
STREAMS, TOKENS, PACE_S = 64, 150, 0.02
PACED, PACED_TOKENS = 128, 200
RATE, RATE_S = 500, 4.0
PROMPT = "sysHAX splits prefill and decode between an accelerator and a CPU. " * 14
CHAT, PD = "/v1/chat/completions", "/v1/chat/pd_disagg"


@dataclass
class Series:
    """One contestant's figures, a value a round."""

    request_us: list[float] = field(default_factory=list)
    chunk_us: list[float] = field(default_factory=list)
    handoff_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    paced_us: list[float] = field(default_factory=list)


def body(tokens: int, stream: bool = False) -> dict[str, Any]:
    return {
        "model": "mock", "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens, "stream": stream,
    }  # fmt: skip


async def burst(session: aiohttp.ClientSession, url: str, path: str, count: int) -> None:
    """*count* whole answers, CLIENTS at a time."""
    left = iter(range(count))

    async def one_client() -> None:
        for _ in left:
            async with session.post(url + path, json=body(8)) as response:
                await response.read()
                if response.status != 200:
                    raise RuntimeError(f"{url}{path} answered {response.status}")

    await asyncio.gather(*(one_client() for _ in range(CLIENTS)))


async def stream(session: aiohttp.ClientSession, url: str, tokens: int) -> None:
    async with session.post(url + CHAT, json=body(tokens, stream=True)) as response:
        said = await response.read()
    if response.status != 200 or said.count(b"data: ") != tokens + 1:
        raise RuntimeError(f"{url}{CHAT}: a stream of {tokens} tokens came as {said[-300:]!r}")


async def streams(session: aiohttp.ClientSession, url: str, count: int, tokens: int) -> None:
    await asyncio.gather(*(stream(session, url, tokens) for _ in range(count)))


async def latencies(session: aiohttp.ClientSession, url: str) -> list[float]:
    """Milliseconds of requests that arrive evenly, RATE a second, answered or not."""
    found: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        async with session.post(url + CHAT, json=body(8)) as response:
            await response.read()
        found.append((time.perf_counter() - began) * 1e3)

    began, tasks = time.perf_counter(), []
    for number in range(int(RATE * RATE_S)):
        await asyncio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return found


async def cpu_us(
    server: lib.Process, work: Callable[[], Coroutine[Any, Any, None]], units: int
) -> float:
    """Microseconds of the server's CPU a unit of *work*."""
    before = server.cpu_s()
    await work()
    return (server.cpu_s() - before) / units * 1e6


async def measure(
    session: aiohttp.ClientSession, engine: str, servers: dict[str, list[lib.Process]]
) -> tuple[dict[str, Series], list[float]]:
    found = {name: Series() for name in servers}
    direct: list[float] = []
    for number in range(ROUNDS + 1):
        for name, (plain, slow) in servers.items():
            series = Series() if number == 0 else found[name]  # the first round warms up
            await one_round(session, plain, slow, series, hands_over=name == "conductor")
        if number:
            direct.append(_p99(await latencies(session, engine)))
        print(f"  round {number} of {ROUNDS}", file=sys.stderr, flush=True)
    return found, direct


async def one_round(
    session: aiohttp.ClientSession,
    plain: lib.Process,
    slow: lib.Process,
    series: Series,
    hands_over: bool,
) -> None:
    series.request_us.append(
        await cpu_us(plain, lambda: burst(session, plain.url, CHAT, REQUESTS), REQUESTS)
    )
    chunks = STREAMS * (TOKENS + 1)
    series.chunk_us.append(
        await cpu_us(slow, lambda: streams(session, slow.url, STREAMS, TOKENS), chunks)
    )
    if hands_over:
        series.handoff_us.append(
            await cpu_us(plain, lambda: burst(session, plain.url, PD, REQUESTS), REQUESTS)
        )
    share, token_us = await paced(session, slow)
    series.share.append(share)
    series.paced_us.append(token_us)
    waits = await latencies(session, plain.url)
    series.p50_ms.append(statistics.median(waits))
    series.p99_ms.append(_p99(waits))


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def until_it_answers(session: aiohttp.ClientSession, url: str) -> None:
    """A router that listens may still be looking for its engine."""
    for _ in range(300):
        async with session.post(url + CHAT, json=body(8)) as response:
            await response.read()
            if response.status == 200:
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{url}{CHAT} still answers {response.status} after 30 s")


async def paced(session: aiohttp.ClientSession, server: lib.Process) -> tuple[float, float]:
    """What PACED streams at PACE_S a token take: percent of one core, and microseconds a token.

    On a machine that others use, tokens come late and the share is small; the time is not.
    """
    before, began = server.cpu_s(), time.perf_counter()
    await streams(session, server.url, PACED, PACED_TOKENS)
    used = server.cpu_s() - before
    share = used / (time.perf_counter() - began) * 100
    return share, used / (PACED * (PACED_TOKENS + 1)) * 1e6


async def baseline(session: aiohttp.ClientSession, url: str) -> dict[str, Figure]:
    """Another router, as its client sees it."""
    waits = await latencies(session, url)
    return {
        "p50 latency": Figure(statistics.median(waits), "ms"),
        "p99 latency": Figure(_p99(waits), "ms"),
    }


async def run(directory: Path) -> Report:
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        gpu = enter(lib.mock("dialect=nixl"))
        cpu = enter(lib.mock("dialect=nixl", "trusting=1"))
        paced = enter(lib.mock(f"itl_s={PACE_S}"))
        port, slow_port = lib.free_port(), lib.free_port()
        floor = ["-m", "bench.passthrough"]
        gates: dict[str, Any] = {
            "decider": {"max_num_seqs": 4096, "cpu_max_batch_size": 4096},
        }
        servers = {
            "pass-through": [
                enter(lib.served([*floor, str(port), gpu.url], port, lib.PROXY_CORE)),
                enter(lib.served([*floor, str(slow_port), paced.url], slow_port, lib.PROXY_CORE)),
            ],
            "conductor": [
                enter(lib.conductor(directory, [gpu.url], [cpu.url], **gates)),
                enter(lib.conductor(directory, [paced.url], [], **gates)),
            ],
        }
        if rival := os.environ.get("BASELINE"):
            servers[routers.chosen(rival)] = [
                enter(routers.started(rival, gpu.url)), enter(routers.started(rival, paced.url)),
            ]  # fmt: skip
        async with lib.client() as session:
            for server in servers["conductor"]:
                await lib.wait_ready(session, server.url)
            for plain, slow in servers.values():
                await until_it_answers(session, plain.url)
                await until_it_answers(session, slow.url)
            found, direct = await measure(session, gpu.url, servers)
            other = os.environ.get("BASELINE_URL")
            others = {other: await baseline(session, other)} if other else {}
    return report(found, direct, others)


def beside(series: Series, direct: list[float]) -> dict[str, Figure]:
    """Another contestant's column of the table."""
    return {
        "one leg, CPU": Figure(statistics.median(series.request_us), "us"),
        "SSE chunk, CPU": Figure(statistics.median(series.chunk_us), "us"),
        "p99 added": Figure(
            statistics.median(a - b for a, b in zip(series.p99_ms, direct, strict=True)), "ms"
        ),
        f"{PACED} paced streams": Figure(statistics.median(series.share), "% of a core"),
        "paced token, CPU": Figure(statistics.median(series.paced_us), "us"),
    }


def report(
    found: dict[str, Series],
    direct: list[float],
    others: dict[str, dict[str, Figure]],
) -> Report:
    ours, floor = found["conductor"], found["pass-through"]

    def ratio(above: list[float], below: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    figures = {
        "one leg, CPU of the pass-through's": Figure(
            ratio(ours.request_us, floor.request_us), "x", 1.3
        ),
        "SSE chunk, CPU of the pass-through's": Figure(
            ratio(ours.chunk_us, floor.chunk_us), "x", 1.3
        ),
        "hand-off, CPU of the pass-through's": Figure(
            ratio(ours.handoff_us, floor.request_us), "x", 2.5
        ),
        f"p99 added at {RATE}/s": Figure(
            statistics.median(a - b for a, b in zip(ours.p99_ms, direct, strict=True)), "ms", 2.0
        ),
        f"{PACED} paced streams": Figure(statistics.median(ours.share), "% of a core", 20.0),
        "paced token, CPU": Figure(statistics.median(ours.paced_us), "us"),
        "one leg, CPU": Figure(statistics.median(ours.request_us), "us"),
        "one leg, CPU, spread": Figure(max(ours.request_us) - min(ours.request_us), "us"),
        "SSE chunk, CPU": Figure(statistics.median(ours.chunk_us), "us"),
        "hand-off, CPU": Figure(statistics.median(ours.handoff_us), "us"),
        "p50 latency": Figure(statistics.median(ours.p50_ms), "ms"),
        "p99 latency": Figure(statistics.median(ours.p99_ms), "ms"),
    }
    baselines = {
        name: beside(series, direct) for name, series in found.items() if name != "conductor"
    }
    method = (
        f"median of {ROUNDS} interleaved rounds: {REQUESTS} answers by {CLIENTS} clients, "
        f"{STREAMS} streams of {TOKENS} tokens at {PACE_S * 1e3:.0f} ms, {PACED} of "
        f"{PACED_TOKENS}, {RATE}/s for {RATE_S:g} s; CPU time of the proxy's process from /proc"
    )
    return Report("conductor", method, "mock engines", figures, {**baselines, **others})


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-conductor-") as directory:
        return publish(asyncio.run(run(Path(directory))))


if __name__ == "__main__":
    sys.exit(main())
