# SPDX-License-Identifier: Apache-2.0
"""The program as a process: signals, drain, the strict start."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import yaml
from mockengine import Blocks, Engine
from syshax import config
from syshax_process import answers, started
from syshax_stack import CHAT, free_port, run

BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10, "stream": True}


def settings(gpu: int, own: int) -> str:
    services = {"gpu": [{"port": gpu}], "cpu": [], "conductor": {"host": "127.0.0.1", "port": own}}
    return yaml.safe_dump({"services": services, "heartbeat": {"interval": 0.2}})


def test_sigterm_ends_streams_first_and_sighup_changes_engines(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = await Engine("first", Blocks()).start()
        second = await Engine("second", Blocks(), itl_s=0.05).start()
        path, port = tmp_path / "config.yaml", free_port()
        url = f"http://127.0.0.1:{port}"
        path.write_text(settings(first.port, port))
        async with started(path) as process, aiohttp.ClientSession() as client:
            await answers(client, url)
            config.write(path, "services: [")
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.1)
            async with client.post(url + CHAT, json=BODY) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            path.write_text(settings(second.port, port))
            process.send_signal(signal.SIGHUP)
            while True:
                async with client.get(f"{url}/readyz") as response:
                    if str(second.port) in await response.text():
                        break
                await asyncio.sleep(0.02)
            async with client.post(url + CHAT, json=BODY) as response:
                await response.content.readany()
                process.send_signal(signal.SIGTERM)
                said = await response.read()
            assert said.endswith(b"data: [DONE]\n\n") and b'"error"' not in said
            assert len(second.requests) == 1
            await process.wait()
        await first.stop()
        await second.stop()

    run(scenario)


def test_a_strict_start_without_its_engine_says_why_and_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "config.yaml"
        path.write_text(settings(free_port(), free_port()))
        async with started(path, "--strict") as process:
            _, said = await process.communicate()
            assert process.returncode == 1
            assert b"connectivity test: gpu-0: /health" in said

    run(scenario)
