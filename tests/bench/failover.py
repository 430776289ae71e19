# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-failover``: requests while engines die and come back at random.

Four engines; one at a time is killed (SIGKILL: its connections are reset) and started again, so
one always lives. Half of the requests are streamed. Each is judged by its own answer: complete with
exactly one ``[DONE]``, or one error object; anything else, or nothing, is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from bench import syshaxlib as lib
from bench.benchlib import Figure, Report, publish

REQUESTS = int(os.environ.get("REQUESTS", "10000"))
CLIENTS, TOKENS = 16, 4
PATIENCE_S = 30.0
KILL_EVERY_S = 1.0
SEED = 20261121


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> str:
    """One request; ``full``, ``error`` or why it is lost."""
    streamed = number % 2 == 0
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"number {number}"}],
        "max_tokens": TOKENS, "stream": streamed,
    }  # fmt: skip
    try:
        limit = aiohttp.ClientTimeout(total=PATIENCE_S)
        path = f"{url}/v1/chat/completions"
        async with session.post(path, json=body, timeout=limit) as response:
            said = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"lost: {type(error).__name__}"
    return judge(response.status, said, streamed)


def judge(status: int, said: bytes, streamed: bool) -> str:
    """What an answer is worth; pure."""
    try:
        if status != 200:
            return "error" if json.loads(said)["error"]["message"] else "lost: empty error"
        if not streamed:
            whole = json.loads(said)["usage"]["completion_tokens"] == TOKENS
            return "full" if whole else "lost: short answer"
        events = [event for event in said.split(b"\n\n") if event]
        if said.count(b"data: [DONE]\n\n") != 1 or events[-1] != b"data: [DONE]":
            return "lost: not one [DONE]"
        blocks = [json.loads(event[len(b"data: ") :]) for event in events[:-1]]
    except (ValueError, LookupError, TypeError) as error:
        return f"lost: {type(error).__name__}"
    if "error" in blocks[-1]:
        return "error"
    return "full" if len(blocks) == TOKENS else "lost: short stream"


class Engines:
    """Mock engines on fixed ports, that can be killed and started again."""

    def __init__(self, count: int) -> None:
        self.ports = [lib.free_port() for _ in range(count)]
        self._running: dict[int, tuple[contextlib.ExitStack, lib.Process]] = {}
        self.deaths = 0

    def start(self, port: int) -> None:
        stack = contextlib.ExitStack()
        self._running[port] = (stack, stack.enter_context(lib.mock("itl_s=0.005", port=port)))

    def kill(self, port: int) -> None:
        stack, process = self._running.pop(port)
        os.kill(process.pid, signal.SIGKILL)
        stack.close()
        self.deaths += 1

    def stop(self) -> None:
        for stack, _ in self._running.values():
            stack.close()


async def reaper(engines: Engines, chance: random.Random, over: asyncio.Event) -> None:
    """Kill one engine after another until it is *over*; each is back before the next dies.

    Never cancelled: an engine that is being started then would outlive us.
    """
    while not over.is_set():
        await asyncio.sleep(KILL_EVERY_S * chance.uniform(0.5, 1.5))
        victim = chance.choice(engines.ports)
        engines.kill(victim)
        await asyncio.sleep(KILL_EVERY_S * chance.uniform(0.1, 0.5))
        await asyncio.to_thread(engines.start, victim)


async def load(url: str) -> Counter[str]:
    found: Counter[str] = Counter()
    left = iter(range(REQUESTS))
    async with lib.client() as session:

        async def one_client() -> None:
            for number in left:
                found[await ask(session, url, number)] += 1

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
        async with session.get(f"{url}/readyz") as response:
            held = sum(row["running"] for row in (await response.json())["engines"])
    if held:
        found[f"leaked: {held} places"] += held
    return found


async def run(directory: Path) -> Report:
    engines = Engines(4)
    for port in engines.ports:
        engines.start(port)
    urls = [f"http://127.0.0.1:{port}" for port in engines.ports]
    settings: dict[str, object] = {
        "heartbeat": {"interval": 0.5, "timeout": 0.5},
        "handoff": {"dialect": "none"},
    }
    with lib.conductor(directory, urls[:2], urls[2:], **settings) as server:
        before = server.memory_mib()
        over = asyncio.Event()
        killing = asyncio.create_task(reaper(engines, random.Random(SEED), over))
        try:
            found = await load(server.url)
        finally:
            over.set()
            await killing
            engines.stop()
        grown = server.memory_mib() - before
    for outcome, count in found.most_common():
        print(f"  {outcome}: {count}", file=sys.stderr)
    lost = sum(count for name, count in found.items() if name not in ("full", "error"))
    figures = {
        "lost, or places leaked": Figure(lost, "requests", 0),
        "answered fully": Figure(found["full"] / REQUESTS * 100, "%", 99.5, "higher"),
        "one error object": Figure(found["error"], "requests"),
        "engine deaths": Figure(engines.deaths, "times", 5, "higher"),
        "memory grown": Figure(grown, "MiB"),
    }
    method = (
        f"{REQUESTS} requests by {CLIENTS} clients, half streamed, {TOKENS} tokens; of 4 engines "
        f"one is killed about every {KILL_EVERY_S:g} s and comes back; seed {SEED}"
    )
    return Report("failover", method, "mock engines", figures)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-failover-") as directory:
        return publish(asyncio.run(run(Path(directory))))


if __name__ == "__main__":
    sys.exit(main())
