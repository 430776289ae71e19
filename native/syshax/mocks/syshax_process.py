# SPDX-License-Identifier: Apache-2.0
"""The conductor as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp


@contextlib.asynccontextmanager
async def started(path: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`syshax run` with the file *path*; killed in the end, if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "syshax", "--config", str(path), "run", *words,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answers(client: aiohttp.ClientSession, url: str) -> None:
    """Wait until it serves."""
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with client.get(f"{url}/livez") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.05)
