# SPDX-License-Identifier: Apache-2.0
"""Requests to engines on kept connections: as much of HTTP/1.1 as a leg needs, parsed by llhttp.

A general client builds, for every request, a URL, a case-insensitive table of headers, a response
with cookies and history; that was more than half of what a request cost here. A leg needs none of
it: one method, four headers, a status, a media type, and the body as it comes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import httptools

from .exchange import BROKEN, CONNECT

# An engine's server closes connections that idle for some seconds; one that idled for longer than
# any would is not trusted to be still there.
KEEP_S = 30.0
# How much of an answer may wait for its reader before the engine is held back.
HIGH_WATER = 256 << 10
MAX_HEAD_BYTES = 64 << 10


class Lost(Exception):
    """What went wrong on the wire: its kind, for the exchange, and in words."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Connection(asyncio.Protocol):
    """One connection to an engine. One request at a time is on it, and one task reads the answer.

    ``status`` is 0 until the answer's head is there. Whoever asked gives the connection back with
    :meth:`release`, in whatever state it is.
    """

    __slots__ = (
        "_delimited", "_ended", "_head_bytes", "_keep", "_loop", "_lost", "_parser", "_parts",
        "_paused", "_pool", "_relay", "_transport", "_used", "_waiter", "held", "idle_since",
        "media", "status",
    )  # fmt: skip

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._relay: Callable[[bytes], bool] | None = None
        self._lost: Lost | None = None
        self._used = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self.status, self.media = 0, ""
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self.held = 0  # bytes of it that nobody has read yet
        self._paused = False
        self._delimited = False  # the head says where the body ends
        self._ended = False
        self._keep = False

    # -- who asks ---------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes) -> None:
        """Put one request on the wire; the former's answer was read to its end."""
        self._begin()
        self._used = True
        self._transport.writelines((head, body))

    async def answered(self) -> None:
        """Wait for the answer's head."""
        while not self.status:
            if self._lost is not None:
                raise self._lost
            await self._more()

    async def read(self, relay: Callable[[bytes], bool] | None = None) -> bytes:
        """What has come of the body, waited for; empty at its end.

        What comes while we wait is offered to *relay* as it leaves the parser, and what that takes
        is read with it: nobody has to be woken. It must not raise.
        """
        while not self._parts:
            if self._ended:
                return b""
            if self._lost is not None:
                raise self._lost
            self._relay = relay
            try:
                await self._more()
            finally:
                self._relay = None
        parts, self._parts, self.held = self._parts, [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self) -> None:
        """Keep the connection for another request, where nothing of this one is left on it."""
        whole = self._ended and self._keep and not self._parts and self._lost is None
        if whole and not self._transport.get_write_buffer_size():
            self._used = False
            self._pool.keep(self)
        else:
            # The engine notices, and stops working for nobody.
            self.close()

    def close(self) -> None:
        self._used = False
        self._transport.abort()

    async def _more(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        # Data may come between this and the reader's turn, and must stay behind what woke it.
        self._relay = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._used or self._ended:
            # Nobody asked for this: what would follow could not be told from an answer.
            self._keep = False
            self._pool.forget(self)
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
            if not self.status:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    raise httptools.HttpParserError(f"a head over {MAX_HEAD_BYTES} bytes")
        except httptools.HttpParserError as error:
            self._lost = Lost(BROKEN, f"its answer is no HTTP: {error}")
            self._transport.abort()
        if self._relay is None or self._parts or self._ended or self._lost is not None:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        if error is None and self.status and not self._delimited:
            self._ended = True
        elif self._lost is None:
            why = f": {error}" if error else ""
            if self.status or self._head_bytes:
                self._lost = Lost(BROKEN, f"the connection ended within the answer{why}")
            else:
                self._lost = Lost(CONNECT, f"the connection ended before an answer{why}")
        self._wake()

    # -- the parser -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._ended:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if self.status:
            return  # a trailer
        if name == b"content-type":
            self.media = value.decode("latin-1")
        elif name in (b"content-length", b"transfer-encoding"):
            self._delimited = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_body(self, data: bytes) -> None:
        if self._relay is not None and not self._parts and self._relay(data):
            return
        self._parts.append(data)
        self.held += len(data)
        if self.held > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status:  # not one of the interim answers, 100 to 199
            self._ended = True
            self._keep = self._parser.should_keep_alive()


class Pool:
    """Connections to one engine. The newest of those that idle is used first, so that the others
    grow old and are closed."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: deque[Connection] = deque()
        self._closed = False
        self._host_header = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._starts: dict[str, str] = {}

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str], connect_timeout: float
    ) -> Connection:
        """Send a request; the connection that its answer comes on, with the head there."""
        head = self._head(path, len(body), headers)
        kept = self._kept()
        if kept is not None:
            try:
                return await _ask(kept, head, body)
            except Lost as lost:
                if lost.kind != CONNECT:
                    raise
                # The engine closed what idled just then, or it died: a new connection tells which.
        return await _ask(await self._connect(connect_timeout), head, body)

    def _head(self, path: str, length: int, headers: Mapping[str, str]) -> bytes:
        start = self._starts.get(path)
        if start is None:
            start = f"POST {path} HTTP/1.1\r\nHost: {self._host_header}\r\n"
            self._starts[path] = start
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"{start}{lines}Content-Length: {length}\r\n\r\n".encode("latin-1")

    def _kept(self) -> Connection | None:
        self._drop_old(time.monotonic())
        return self._idle.pop() if self._idle else None

    async def _connect(self, timeout: float) -> Connection:
        loop = asyncio.get_running_loop()
        # wait_for may lose a connection that is made in the moment it is cancelled (until 3.12).
        connecting = loop.create_task(
            loop.create_connection(lambda: Connection(self, loop), self._host, self._port)
        )
        try:
            await asyncio.wait((connecting,), timeout=timeout)
        except BaseException:
            connecting.add_done_callback(_close_made)
            connecting.cancel()
            raise
        if not connecting.done():
            connecting.add_done_callback(_close_made)
            connecting.cancel()
            raise Lost(CONNECT, f"it did not accept a connection within {timeout:g} s")
        try:
            return connecting.result()[1]
        except OSError as error:
            raise Lost(CONNECT, f"no connection: {error}") from error

    def keep(self, connection: Connection) -> None:
        now = time.monotonic()
        self._drop_old(now)
        if self._closed:
            connection.close()
            return
        connection.idle_since = now
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """*connection* is gone. The one that idles longest goes first, so the search is short."""
        if connection in self._idle:
            self._idle.remove(connection)

    def _drop_old(self, now: float) -> None:
        while self._idle and now - self._idle[0].idle_since > KEEP_S:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close what idles; what is in use is closed when it is given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


async def _ask(connection: Connection, head: bytes, body: bytes) -> Connection:
    """*connection* with the answer's head; closed where none came."""
    try:
        connection.send(head, body)
        await connection.answered()
    except BaseException:
        connection.close()
        raise
    return connection


def _close_made(connecting: asyncio.Task[tuple[Any, Connection]]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result()[1].close()
