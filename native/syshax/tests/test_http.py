# SPDX-License-Identifier: Apache-2.0
"""The conductor over sockets: hand-offs in every dialect, faults in every phase, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mockengine import answer_words
from syshax import conductor, config, sse
from syshax.server import Chunks
from syshax_stack import CHAT, PD, Stack, error_of, judge, run, stack, words_of

PROMPT = {"messages": [{"role": "user", "content": "介绍一下openEuler。"}]}


def answer(count: int) -> str:
    return "".join(answer_words(PROMPT, count))


@pytest.mark.parametrize("dialect", ["nixl", "syshax", "shared"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_hand_off_gives_the_answer_of_one_engine(dialect: str, stream: bool) -> None:
    async def scenario() -> None:
        async with stack(dialect) as here:
            found = here.app.watch.findings["gpu", "cpu"]
            assert (found.dialect, found.proven) == (dialect, True)
            fetched = here.cpu.blocks.fetched
            status, body = await here.ask(PD, max_tokens=5, stream=stream)
            said = (
                words_of(body) if stream else json.loads(body)["choices"][0]["message"]["content"]
            )
            assert (status, said) == (200, answer(5))
            assert (here.cpu.blocks.fetched, here.cpu.blocks.missed) == (fetched + 1, 0)
            assert len(here.gpu.requests) == len(here.cpu.requests) == 1
            ids = {engine.requests[0]["headers"]["x-request-id"] for engine in (here.gpu, here.cpu)}
            assert len(ids) == 1

    run(scenario)


def test_engines_that_cannot_hand_over_are_told_so_and_still_answer() -> None:
    async def scenario() -> None:
        async with stack("plain") as here:
            found = here.app.watch.findings["gpu", "cpu"]
            assert found.dialect is None and "carries no kv_transfer_params" in found.detail
            assert (await here.ask(max_tokens=5, stream=True))[0] == 200
            status, body = await here.ask(PD, max_tokens=5)
            assert status == 503 and "no pair of engines can hand over" in error_of(body)["message"]

    run(scenario)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_writes_of_any_size_come_through_whole(size: int) -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.write_size = here.cpu.knobs.write_size = size
            for path in (CHAT, PD):
                status, body = await here.ask(path, max_tokens=4, stream=True)
                assert judge(status, body, answer(4)) == "full"

    run(scenario)


def test_coalesced_events_and_usage_come_through() -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.coalesce = 3
            options = {"include_usage": True}
            _, body = await here.ask(max_tokens=8, stream=True, stream_options=options)
            assert words_of(body) == answer(8) and body.count(b'"usage":{') == 1
            assert here.app.conductor.stats.completion_tokens == 8

    run(scenario)


@pytest.mark.parametrize("phase", ["single", "prefill", "decode"])
def test_an_engine_dying_at_every_byte_leaves_one_answer_or_one_error(phase: str) -> None:
    async def scenario() -> None:
        async with stack(heartbeat={"interval": 0.2, "fail_threshold": 1_000_000}) as here:
            victim = here.cpu if phase == "decode" else here.gpu
            path = CHAT if phase == "single" else PD
            outcomes = set()
            for byte in range(0, 620, 5 if phase == "single" else 13):
                victim.knobs.die_at = byte
                status, body = await here.ask(path, max_tokens=3, stream=True)
                outcomes.add(judge(status, body, answer(3)))
                assert here.idle()
            # A lost prefill is repaired by the other engine; a stream that began is not.
            assert outcomes == ({"full"} if phase == "prefill" else {"full", "error"})

    run(scenario)


def test_an_answer_not_streamed_survives_its_engine_at_every_byte() -> None:
    async def scenario() -> None:
        async with stack(heartbeat={"interval": 0.2, "fail_threshold": 1_000_000}) as here:
            for byte in range(0, 300, 17):
                here.gpu.knobs.die_at = byte
                status, body = await here.ask(max_tokens=3)
                assert status == 200
                assert json.loads(body)["choices"][0]["message"]["content"] == answer(3)

    run(scenario)


def test_one_engine_down_is_not_noticed_and_both_down_is_one_error() -> None:
    async def scenario() -> None:
        async with stack() as here:
            await here.gpu.stop()
            assert (await here.ask(max_tokens=3))[0] == 200
            await here.cpu.stop()
            status, body = await here.ask(max_tokens=3)
            assert status == 503 and error_of(body)["type"] == "server_error"
            await here.becomes(
                lambda: all(row["breaker"] != "closed" for row in here.app.conductor.snapshot())
            )
            await here.gpu.start(here.gpu.port)
            await here.becomes(lambda: here.app.conductor.snapshot()[0]["breaker"] == "closed")
            assert (await here.ask(max_tokens=3))[0] == 200

    run(scenario)


def test_an_engine_that_takes_a_stream_and_never_answers_is_left() -> None:
    async def scenario() -> None:
        limits = {"first_byte_timeout": 0.2}
        async with stack(system=limits) as here:
            here.gpu.knobs.silent = True
            status, body = await here.ask(max_tokens=3, stream=True)
            assert judge(status, body, answer(3)) == "full"
            await here.becomes(lambda: here.gpu.aborted == 1)

    run(scenario)


def test_whoever_waits_for_an_engine_held_dead_is_served_by_another() -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.silent = True
            asking = asyncio.ensure_future(here.ask(max_tokens=3))
            await here.becomes(lambda: len(here.gpu.requests) == 1)
            here.gpu.knobs.healthy = False
            assert (await asking)[0] == 200

    run(scenario)


def test_time_over_is_a_504() -> None:
    async def scenario() -> None:
        async with stack(system={"request_timeout": 1}) as here:
            here.gpu.knobs.silent = True
            status, body = await here.ask(max_tokens=3)
            assert (status, error_of(body)["code"]) == (504, "timeout")

    run(scenario)


def test_tokens_go_from_one_socket_to_the_other_and_an_engine_that_falls_silent_is_told() -> None:
    """What is relayed is no send of the application, but moves the limit of time as one would."""

    async def scenario() -> None:
        written: list[bytes] = []
        skew = 0.0
        write = Chunks.write

        def counted(chunks: Chunks, part: bytes) -> None:
            written.append(part)
            write(chunks, part)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Chunks, "write", counted)
            patch.setattr(conductor, "_now", lambda: time.monotonic() + skew)
            async with stack(system={"idle_timeout": 100, "request_timeout": 9999}) as here:
                here.gpu.knobs.itl_s = 0.1
                asking = asyncio.ensure_future(here.ask(max_tokens=500, stream=True))
                # The conductor looks at its limits every second: 12 tokens are longer.
                for count in (1, 13, 25):
                    await here.becomes(lambda count=count: len(written) > count)  # type: ignore[misc]
                    skew += 60
                assert not asking.done()
                here.gpu.knobs.itl_s = 3600
                before = -1
                while len(written) != before:
                    before = len(written)
                    await asyncio.sleep(0.3)
                skew += 200
                status, body = await asking
                events = list(sse.events(body))
                assert (status, events[-1]) == (200, sse.DONE)
                assert error_of(sse.data_of(events[-2]))["code"] == "engine_timeout"
                # But for the first, before which the head has to be written.
                assert events[1:-2] == written

    run(scenario)


async def leave(here: Stack, path: str, stream: bool, when: Any) -> None:
    asking = asyncio.ensure_future(here.ask(path, max_tokens=50, stream=stream))
    await here.becomes(when)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await here.becomes(here.idle)


@pytest.mark.parametrize("phase", ["single", "prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engines(phase: str, stream: bool) -> None:
    async def scenario() -> None:
        async with stack() as here:
            slow = here.cpu if phase == "decode" else here.gpu
            slow.knobs.ttft_s, slow.knobs.itl_s = 0.05, 0.05
            path = CHAT if phase == "single" else PD
            await leave(here, path, stream, lambda: slow.running == 1)
            await here.becomes(lambda: slow.running == 0 and slow.aborted == 1)
            assert here.app.conductor.stats.requests[CHAT, "client_gone"] == 1

    run(scenario)


def test_a_client_that_leaves_the_queue_gives_its_turn_up() -> None:
    async def scenario() -> None:
        gates = {"max_num_seqs": 1, "cpu_max_batch_size": 1}
        async with stack(decider=gates, system={"max_queue_size": 1}) as here:
            here.gpu.knobs.ttft_s = here.cpu.knobs.ttft_s = 0.3
            running = [asyncio.ensure_future(here.ask(max_tokens=2)) for _ in range(2)]
            await here.becomes(lambda: here.gpu.running + here.cpu.running == 2)
            dispatcher = here.app.conductor.dispatcher
            leaving = asyncio.ensure_future(here.ask(max_tokens=2))
            await here.becomes(lambda: dispatcher.queued == 1)
            status, body = await here.ask(max_tokens=2)
            assert (status, error_of(body)["type"]) == (429, "rate_limit_error")
            leaving.cancel()
            await here.becomes(lambda: dispatcher.queued == 0)
            assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]

    run(scenario)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refusal_is_passed_on_and_costs_the_engine_nothing(status: int) -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.status = status
            for stream in (False, True):
                got, body = await here.ask(max_tokens=2, stream=stream)
                assert got == status and json.loads(body)["error"]["message"] == "as told"
            assert here.app.conductor.snapshot()[0]["breaker"] == "closed"

    run(scenario)


def test_a_500_is_answered_by_the_other_engine() -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.status = 500
            assert (await here.ask(max_tokens=2))[0] == 200

    run(scenario)


@pytest.mark.parametrize("metrics", ["v0", "scientific", "ranks", "none"])
def test_every_kind_of_metrics_leaves_the_gpu_in_use(metrics: str) -> None:
    async def scenario() -> None:
        async with stack(monitor={"interval": 0.1}) as here:
            here.gpu.knobs.metrics = metrics
            await asyncio.sleep(0.25)
            await here.ask(max_tokens=2)
            assert len(here.gpu.requests) == 1

    run(scenario)


def test_a_body_over_the_bound_is_one_error_told_or_untold() -> None:
    async def scenario() -> None:
        async with stack(system={"max_body_bytes": 100_000}) as here:
            status, body = await here.ask(padding="x" * 200_000)
            assert (status, error_of(body)["code"]) == (413, "body_too_long")

            async def pieces() -> AsyncIterator[bytes]:  # in chunks: no length is told before
                for _ in range(200):
                    yield b"x" * 1000

            async with here.client.post(here.url + CHAT, data=pieces()) as response:
                assert response.status == 413
                assert error_of(await response.read())["code"] == "body_too_long"

    run(scenario)


def test_a_flood_of_headers_is_one_error_also_when_it_never_ends() -> None:
    async def scenario() -> None:
        async with stack(system={"max_header_bytes": 4096}) as here:
            headers = {f"x-flood-{number}": "y" * 100 for number in range(100)}
            async with here.client.post(here.url + CHAT, headers=headers) as response:
                assert response.status == 431
                assert error_of(await response.read())["code"] == "headers_too_long"
            port = int(here.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n")
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof() and not writer.is_closing():
                    writer.write(b"x-flood: " + b"y" * 500 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
            writer.close()
            assert (await here.ask(max_tokens=2))[0] == 200

    run(scenario)


def test_a_client_gone_while_it_sends_its_body_reaches_no_engine() -> None:
    async def scenario() -> None:
        async with stack() as here:
            port = int(here.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 999\r\n\r\n{")
            await writer.drain()
            writer.close()
            assert (await here.ask(max_tokens=2))[0] == 200
            assert len(here.gpu.requests) == 1

    run(scenario)


@pytest.mark.parametrize(
    ("malformed", "words"),
    [
        ("data: nonsense\n\n", "not valid JSON"),
        ("data: [7]\n\n", "not a JSON object"),
        ('data: {"choices": [\n\n', "not valid JSON"),
        ('data: {"error": {"message": "out of blocks"}}\n\n', "out of blocks"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, PD])
def test_malformed_events_end_in_one_error_object(malformed: str, words: str, path: str) -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.insert = here.cpu.knobs.insert = malformed
            status, body = await here.ask(path, max_tokens=4, stream=True)
            assert judge(status, body, answer(4)) == "error"
            assert words in body.decode()
            await here.becomes(here.idle)

    run(scenario)


def test_an_overflowing_queue_answers_429_at_once_and_serves_whom_it_took() -> None:
    async def scenario() -> None:
        gates = {"max_num_seqs": 1, "cpu_max_batch_size": 1}
        async with stack(decider=gates, system={"max_queue_size": 3}) as here:
            here.gpu.knobs.silent = here.cpu.knobs.silent = True
            taken = [asyncio.ensure_future(here.ask(max_tokens=2)) for _ in range(2)]
            await here.becomes(lambda: len(here.gpu.requests) + len(here.cpu.requests) == 2)
            here.gpu.knobs.silent = here.cpu.knobs.silent = False
            queued = [asyncio.ensure_future(here.ask(max_tokens=2)) for _ in range(3)]
            await here.becomes(lambda: here.app.conductor.dispatcher.queued == 3)
            for _ in range(5):
                status, body = await here.ask(max_tokens=2)
                assert (status, error_of(body)["code"]) == (429, "queue_full")
            for task in taken:  # both leave, and their places go to those who wait
                task.cancel()
            assert [status for status, _ in await asyncio.gather(*queued)] == [200, 200, 200]

    run(scenario)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_both_engines_refusing_is_one_error_object(status: int) -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.status = here.cpu.knobs.status = status
            for stream in (False, True):
                got, body = await here.ask(max_tokens=2, stream=stream)
                assert got == (status if status in (429, 503) else 502)
                assert error_of(body)["type"]

    run(scenario)


def test_paths_and_methods_that_are_not_served_are_one_error_object() -> None:
    async def scenario() -> None:
        async with stack() as here:
            async with here.client.get(here.url + "/v1/secret") as response:
                assert response.status == 404 and error_of(await response.read())
            async with here.client.get(here.url + CHAT) as response:
                assert response.status == 405 and error_of(await response.read())

    run(scenario)


def test_ten_megabytes_go_through() -> None:
    async def scenario() -> None:
        async with stack() as here:
            status, _ = await here.ask(max_tokens=2, padding="x" * 10_000_000)
            assert status == 200
            assert len(here.gpu.requests[0]["body"]["padding"]) == 10_000_000

    run(scenario)


def test_keys_are_asked_for_and_not_passed_on(tmp_path: Path) -> None:
    keys, own = tmp_path / "keys", tmp_path / "own"
    keys.write_text("sk-client\n")
    own.write_text("sk-engine\n")

    async def scenario() -> None:
        auth = {"keys_file": str(keys), "upstream_key_file": str(own)}
        async with stack(auth=auth) as here:
            status, body = await here.ask(max_tokens=2)
            assert (status, error_of(body)["type"]) == (401, "authentication_error")
            here.client.headers["Authorization"] = "Bearer sk-client"
            assert (await here.ask(max_tokens=2))[0] == 200
            assert here.gpu.requests[0]["headers"]["authorization"] == "Bearer sk-engine"

    run(scenario)


def test_a_reload_drops_no_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stack() as here:
            here.gpu.knobs.itl_s = 0.02
            asking = asyncio.ensure_future(here.ask(max_tokens=10, stream=True))
            await here.becomes(lambda: here.gpu.running == 1)
            tree = {"services": {"gpu": [], "cpu": {"port": here.cpu.port}}}
            here.app.conductor.reload(config.validate(tree))
            status, body = await asking
            assert judge(status, body, answer(10)) == "full"
            assert (await here.ask(max_tokens=2))[0] == 200
            assert len(here.gpu.requests) == 1

    run(scenario)


def test_metrics_and_readiness_say_what_happened() -> None:
    async def scenario() -> None:
        async with stack() as here:
            await here.ask(PD, max_tokens=3)
            async with here.client.get(here.url + "/metrics") as response:
                text = await response.text()
            assert "syshax_handoffs_total 1.0" in text
            assert f'syshax_requests_total{{outcome="answered",path="{CHAT}"}} 1.0' in text
            async with here.client.get(here.url + "/readyz") as response:
                ready = await response.json()
            assert ready["ready"] and ready["handoff"]["gpu>cpu"]["dialect"] == "nixl"

    run(scenario)


def test_a_slow_reader_holds_the_engine_back_not_the_memory() -> None:
    """More than the kernel's own buffers of both hops can take (32 MiB each way at most)."""

    async def scenario() -> None:
        async with stack() as here:

            def sent() -> int:
                return sum(connection.sent for connection in here.gpu.connections)

            async def until_it_stalls() -> int:
                before = -1
                while sent() != before:
                    before = sent()
                    await asyncio.sleep(0.3)
                return before

            body = {**PROMPT, "max_tokens": 600_000, "stream": True}
            async with here.client.post(here.url + CHAT, json=body) as response:
                await response.content.readany()
                stalled = await until_it_stalls()
                assert here.gpu.running == 1  # stopped by the wire, not at its end
                while sent() == stalled:
                    await response.content.readany()
            await here.becomes(here.idle)

    run(scenario)
