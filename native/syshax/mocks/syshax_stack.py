# SPDX-License-Identifier: Apache-2.0
"""A conductor on a real socket before mock engines, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import uvicorn
from mockengine import Blocks, Engine
from syshax import config, sse
from syshax.server import App, protocol

CHAT = "/v1/chat/completions"
PD = "/v1/chat/pd_disagg"
# Only a scenario that hangs comes near it, on a busy machine too.
DEADLINE_S = 180


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario; one that hangs fails."""

    async def limited() -> None:
        await asyncio.wait_for(scenario(), DEADLINE_S)

    asyncio.run(limited())


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Stack:
    """What a scenario talks to."""

    def __init__(self, app: App, gpu: Engine, cpu: Engine, client: aiohttp.ClientSession) -> None:
        self.app = app
        self.gpu = gpu
        self.cpu = cpu
        self.client = client
        self.url = ""

    async def ask(self, path: str = CHAT, **body: Any) -> tuple[int, bytes]:
        body = {"messages": [{"role": "user", "content": "介绍一下openEuler。"}], **body}
        async with self.client.post(self.url + path, json=body) as response:
            return response.status, await response.read()

    def idle(self) -> bool:
        """Nothing is held: no place, no run, no queue."""
        conductor = self.app.conductor
        held = sum(row["running"] for row in conductor.snapshot())
        return not held and not conductor.active and not conductor.dispatcher.queued

    async def becomes(self, condition: Callable[[], bool]) -> None:
        """Wait for *condition*; the scenario's deadline is the limit."""
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def stack(
    dialect: str = "nixl", watched: bool = True, **settings: dict[str, Any]
) -> AsyncIterator[Stack]:
    """GPU and CPU engine, conductor, client; on leaving, nothing may be left: no place that is
    held, and no connection to an engine, for one that was never given back would still be open."""
    blocks = Blocks()
    gpu = await Engine("gpu", blocks, dialect=dialect).start()
    cpu = await Engine("cpu", blocks, dialect=dialect).start()
    services = {"gpu": {"port": gpu.port}, "cpu": {"port": cpu.port}}
    tree = {
        "heartbeat": {"interval": 0.2, "timeout": 0.5, "fail_threshold": 2},
        **settings,
        "services": services,
    }
    loaded = config.validate(tree)
    app = App(loaded)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol(loaded), log_config=None, lifespan="on", ws="none")
    )
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    client = aiohttp.ClientSession()
    made = Stack(app, gpu, cpu, client)
    made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        await made.becomes(lambda: server.started)
        if watched:
            await made.becomes(lambda: app.watch.complete)
        gpu.requests.clear()
        cpu.requests.clear()
        yield made
        await made.becomes(made.idle)
    finally:
        await client.close()
        server.should_exit = True
        await serving
        await made.becomes(lambda: not gpu.connections and not cpu.connections)
        await gpu.stop()
        await cpu.stop()


def error_of(body: bytes) -> dict[str, Any]:
    """The one error object that *body* is."""
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def words_of(body: bytes) -> str:
    """The text that a stream says."""
    said = []
    for event in sse.events(body):
        data = sse.data_of(event)
        if data and data != b"[DONE]":
            for choice in json.loads(data).get("choices", []):
                said.append(choice.get("delta", {}).get("content") or "")
    return "".join(said)


def judge(status: int, body: bytes, whole: str) -> str:
    """``full`` or ``error``, where an answer is exactly one of them; anything else fails."""
    if status != 200:
        error_of(body)
        return "error"
    events = list(sse.events(body))
    assert b"".join(events) == body, "a torn event"
    assert [sse.data_of(event) for event in events].count(b"[DONE]") == 1
    assert events[-1] == sse.DONE
    last = json.loads(sse.data_of(events[-2]))
    if "error" in last:
        error_of(sse.data_of(events[-2]))
        return "error"
    assert words_of(body) == whole
    return "full"
