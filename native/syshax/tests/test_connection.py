# SPDX-License-Identifier: Apache-2.0
"""Connections to engines: what an engine may write, and what becomes of the connection after it.

The engine is a few bytes on a socket, since a server that knows HTTP could not send most of these.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from syshax import connection as wire
from syshax.connection import Lost, Pool
from syshax_stack import run

HEADERS = {"Content-Type": "application/json", "X-Request-Id": "id-1"}
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"
)


class Script:
    """A server that answers each request with the next of *answers*, in *size* bytes a write.

    None: the connection is closed without a word. ``hangs_up``: closed behind the answer.
    """

    def __init__(self, *answers: bytes | None, size: int = 0, hangs_up: bool = False) -> None:
        self.answers = list(answers)
        self.size = size
        self.hangs_up = hangs_up
        self.requests: list[bytes] = []
        self.connections = 0
        self.gone = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                for start in range(0, len(answer), self.size or len(answer)):
                    writer.write(answer[start : start + (self.size or len(answer))])
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.hangs_up:
                    break
        self.gone += 1
        writer.close()


@contextlib.asynccontextmanager
async def served(script: Script) -> AsyncIterator[Pool]:
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    pool = Pool("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield pool
    finally:
        pool.close()
        server.close()


async def asked(pool: Pool) -> tuple[int, str, bytes]:
    """Status, media type and body of one request; its connection is given back."""
    connection = await pool.post("/v1/x", b"{}", HEADERS, 5.0)
    try:
        body = b""
        while data := await connection.read():
            body += data
        return connection.status, connection.media, body
    finally:
        connection.release()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_request_says_what_a_leg_needs_and_its_length() -> None:
    async def scenario() -> None:
        script = Script(WHOLE)
        async with served(script) as pool:
            await asked(pool)
            head, _, body = script.requests[0].partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            assert (first, body) == (b"POST /v1/x HTTP/1.1", b"{}")
            assert {line.partition(b":")[0] for line in lines} == {
                b"Host", b"Content-Type", b"X-Request-Id", b"Content-Length",
            }  # fmt: skip

    run(scenario)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 31])
@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE])
def test_an_answer_cut_anywhere_is_the_same_and_the_connection_is_used_again(
    answer: bytes, size: int
) -> None:
    async def scenario() -> None:
        script = Script(answer, answer, answer, size=size)
        async with served(script) as pool:
            for _ in range(3):
                assert await asked(pool) == (200, "a/b", b"hello")
            assert script.connections == 1

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
        b"HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\nhello",  # its end is the connection's
    ],
)
def test_a_connection_that_ends_with_its_answer_is_not_used_again(answer: bytes) -> None:
    async def scenario() -> None:
        script = Script(answer, answer, hangs_up=True)
        async with served(script) as pool:
            for _ in range(2):
                assert await asked(pool) == (200, "a/b", b"hello")
            assert script.connections == 2

    run(scenario)


def test_what_follows_an_answer_is_never_taken_for_the_next() -> None:
    async def scenario() -> None:
        script = Script(WHOLE + WHOLE.replace(b"hello", b"wrong"), WHOLE)
        async with served(script) as pool:
            assert (await asked(pool))[2] == b"hello"
            assert (await asked(pool))[2] == b"hello"
            assert script.connections == 2

    run(scenario)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (None, "connect", "ended before an answer"),
        (WHOLE[:-1], "broken", "ended within the answer"),
        (CHUNKED[:-9], "broken", "ended within the answer"),
        (WHOLE[:20], "broken", "ended within the answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "broken", "no HTTP"),
        (WHOLE.replace(b"5", b"5x"), "broken", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 12_000, "broken", "a head over 65536 bytes"),
    ],
)
def test_what_is_no_answer_is_told_in_kind_and_words(
    answer: bytes | None, kind: str, words: str
) -> None:
    async def scenario() -> None:
        async with served(Script(answer, hangs_up=True)) as pool:
            with pytest.raises(Lost) as caught:
                await asked(pool)
            assert caught.value.kind == kind
            assert words in caught.value.text

    run(scenario)


def test_a_kept_connection_that_ends_just_then_is_no_fault_of_the_engine() -> None:
    async def scenario() -> None:
        script = Script(WHOLE, None, WHOLE, None)
        async with served(script) as pool:
            for _ in range(2):
                assert (await asked(pool))[2] == b"hello"
            assert (script.connections, len(script.requests)) == (2, 3)

    run(scenario)


def test_a_new_connection_that_ends_without_a_word_is() -> None:
    async def scenario() -> None:
        script = Script(WHOLE, None, None, WHOLE)
        async with served(script) as pool:
            await asked(pool)
            with pytest.raises(Lost) as caught:
                await asked(pool)
            assert (caught.value.kind, len(script.requests)) == ("connect", 3)

    run(scenario)


def test_who_is_not_there_is_told() -> None:
    async def scenario() -> None:
        async with served(Script()) as pool:
            gone = pool
        with pytest.raises(Lost, match="no connection") as caught:
            await asked(gone)
        assert caught.value.kind == "connect"

    run(scenario)


@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_what_a_relay_takes_is_not_read_and_nothing_overtakes_what_it_leaves(size: int) -> None:
    """The relay takes what comes in order until it refuses one; what comes behind that is read."""

    async def scenario() -> None:
        words = [b"%d," % number for number in range(200)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(word), word) for word in words) + b"0\r\n\r\n"
        async with served(Script(CHUNKED.partition(b"2\r\n")[0] + body, size=size)) as pool:
            came: list[bytes] = []

            def relay(data: bytes) -> bool:
                taken = not data.startswith((b"7", b"1"))
                if taken:
                    came.append(data)
                return taken

            connection = await pool.post("/v1/x", b"{}", HEADERS, 5.0)
            reads = 0
            while data := await connection.read(relay):
                came.append(data)
                reads += 1
            connection.release()
            assert b"".join(came) == b"".join(words)
            assert size == 0 or reads < len(came)

    run(scenario)


def test_a_half_read_answer_takes_its_connection_along() -> None:
    async def scenario() -> None:
        script = Script(WHOLE[:-1], WHOLE)
        async with served(script) as pool:
            connection = await pool.post("/v1/x", b"{}", HEADERS, 5.0)
            assert await connection.read() == b"hell"
            connection.release()
            await until(lambda: script.gone == 1)
            assert (await asked(pool))[2] == b"hello"

    run(scenario)


def test_who_stops_waiting_for_a_head_closes_the_connection() -> None:
    async def scenario() -> None:
        script = Script(b"HTTP/1.1 ")
        async with served(script) as pool:
            asking = asyncio.ensure_future(asked(pool))
            await until(lambda: len(script.requests) == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: script.gone == 1)

    run(scenario)


def test_connections_that_idled_too_long_are_closed_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        script = Script(WHOLE, WHOLE)
        async with served(script) as pool:
            await asked(pool)
            monkeypatch.setattr(wire, "KEEP_S", -1.0)
            await asked(pool)
            assert script.connections == 2
            await until(lambda: script.gone >= 1)

    run(scenario)


def test_an_answer_nobody_reads_holds_the_engine_back() -> None:
    async def scenario() -> None:
        size = 64 << 20
        script = Script(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size), size=1 << 20
        )
        async with served(script) as pool:
            connection = await pool.post("/v1/x", b"{}", HEADERS, 5.0)
            first = await connection.read()
            held = 0
            # Everything the kernel will take has come once two looks are alike.
            while connection.held != held or not held:
                held = connection.held
                await asyncio.sleep(0.2)
            assert held < 4 * wire.HIGH_WATER
            got = len(first)
            while data := await connection.read():
                got += len(data)
            assert got == size
            connection.release()

    run(scenario)
