# SPDX-License-Identifier: Apache-2.0
"""Many streams through one conductor's process: its memory and its open files stay flat."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from mockengine import Blocks, Engine
from syshax_process import answers, started
from syshax_stack import CHAT, PD, free_port, judge, words_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

AT_ONCE = 32
# The allocator's own breathing; 100,000 streams that each left 1 KiB would be 100 MiB.
GROWTH_KIB = 8 << 10
# A client that leaves is noticed when something is written to it.
LEAVES_EVERY = 17


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def stream(client: aiohttp.ClientSession, url: str, number: int) -> None:
    """One request: whole, or left by its client in the middle."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{number} 介绍一下openEuler。"}],
        "stream": True,
        "max_tokens": 8,
    }
    way = PD if number % 2 else CHAT
    async with client.post(url + way, json=body) as response:
        if number % LEAVES_EVERY == 0:
            await response.content.readany()
            response.close()
            return
        said = await response.read()
    assert response.status == 200
    assert said.endswith(b"data: [DONE]\n\n")
    if number % 100 == 1:  # looked through from end to end, of some
        assert judge(200, said, words_of(said)) == "full"


async def many(client: aiohttp.ClientSession, url: str, numbers: Any) -> None:
    async def worker() -> None:
        for number in numbers:
            await stream(client, url, number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def pair_is_known(client: aiohttp.ClientSession, url: str) -> None:
    """Until it knows how the pair hands over; a forced hand-off is refused before."""
    while True:
        async with client.get(f"{url}/readyz") as response:
            if (await response.json())["connectivity_test"] == "done":
                return
        await asyncio.sleep(0.05)


async def settled(client: aiohttp.ClientSession, url: str) -> None:
    """Until the conductor holds nothing."""
    while True:
        async with client.get(f"{url}/metrics?format=json") as response:
            rows = await response.json()
        queued = rows.pop("queued")
        if not queued and not any(row["running"] for row in rows.values()):
            return
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "count", [4_000, pytest.param(100_000, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_memory_and_open_files_are_flat_over_many_streams(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        blocks = Blocks()
        engines = [await Engine(n, blocks, dialect="nixl").start() for n in ("gpu", "cpu")]
        for engine in engines:
            engine.keep = False
        port = free_port()
        path, url = tmp_path / "config.yaml", f"http://127.0.0.1:{port}"
        services: dict[str, Any] = {e.name: {"host": "127.0.0.1", "port": e.port} for e in engines}
        services["conductor"] = {"host": "127.0.0.1", "port": port}
        path.write_text(yaml.safe_dump({"services": services}))
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        async with started(path) as process, aiohttp.ClientSession(connector=connector) as client:
            # What it says of clients that left would fill the pipe.
            assert process.stderr is not None
            drained = asyncio.ensure_future(process.stderr.read())
            await answers(client, url)
            await pair_is_known(client, url)
            numbers = itertools.count(1)
            points = []
            for _ in range(4):
                await many(client, url, itertools.islice(numbers, count // 4))
                await settled(client, url)
                points.append((rss_kib(process.pid), open_files(process.pid)))
                # As many as ever asked at once are kept, and those of heartbeats and scrapes.
                for engine in engines:
                    assert len(engine.connections) <= AT_ONCE + 2
            print(f"after each quarter of {count} streams, (RSS in KiB, open files): {points}")
            # Pools, caches and the allocator's arenas fill in the first quarter.
            assert max(rss for rss, _ in points[1:]) - points[0][0] < GROWTH_KIB, points
            assert max(files for _, files in points[1:]) - points[0][1] <= AT_ONCE, points
            process.terminate()
            await process.wait()
            with contextlib.suppress(asyncio.CancelledError):
                await drained
        for engine in engines:
            await engine.stop()

    asyncio.run(scenario())
