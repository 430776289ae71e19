# SPDX-License-Identifier: GPL-3.0-or-later
"""What the conductor's benchmarks share: processes on loopback, their CPU time, and a load.

The mock engine answers at once, so what is measured is what stands between it and the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml
from xpubuild.cache import Cache
from xpubuild.recipes import syshax

ROOT = Path(__file__).resolve().parents[2]
PROXY_CORE, OTHERS_CORE = 0, 1
_TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment() -> dict[str, str]:
    """The conductor's own packages and no others of this project's."""
    site = syshax.build(Cache()) / "site"
    paths = [ROOT / "native/syshax/src", ROOT / "native/syshax/mocks", ROOT / "tests", site]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


@dataclass(frozen=True)
class Process:
    """A server on loopback and the CPU time it has used."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """User and system time so far; clock ticks are 10 ms, so spans must be long."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / _TICKS

    def memory_mib(self) -> float:
        """Resident memory now."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def served(
    words: Sequence[str], port: int, core: int, variables: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run a Python program that listens on *port*, on one core, until the block is left."""
    core = min(core, (os.cpu_count() or 1) - 1)
    with subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, *words],
        env=variables or environment(),
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            _await_port(process, port)
            yield Process(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} exited with {process.returncode}")
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on port {port} after 30 s")


@contextlib.contextmanager
def mock(*knobs: str, port: int | None = None) -> Iterator[Process]:
    """One mock engine."""
    port = port or free_port()
    with served(["-m", "mockengine", "--port", str(port), *knobs], port, OTHERS_CORE) as process:
        yield process


@contextlib.contextmanager
def conductor(
    directory: Path, gpus: Sequence[str], cpus: Sequence[str], **settings: object
) -> Iterator[Process]:
    """The conductor as `syshax run` starts it."""
    port = free_port()

    def pool(urls: Sequence[str]) -> list[dict[str, object]]:
        return [{"host": "127.0.0.1", "port": int(url.rpartition(":")[2])} for url in urls]

    services = {
        "gpu": pool(gpus), "cpu": pool(cpus), "conductor": {"host": "127.0.0.1", "port": port},
    }  # fmt: skip
    path = directory / f"syshax-{port}.yaml"
    tree = {**settings, "services": services, "log": {"level": "error"}}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with served(["-m", "syshax", "--config", str(path), "run"], port, PROXY_CORE) as process:
        yield process


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield session


async def wait_ready(session: aiohttp.ClientSession, url: str) -> None:
    """Until the connectivity test of the conductor at *url* is done."""
    for _ in range(200):
        async with session.get(f"{url}/readyz") as response:
            if (await response.json())["connectivity_test"] == "done":
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{url}/readyz: the connectivity test did not end within 20 s")
