# SPDX-License-Identifier: Apache-2.0
"""Carries out what exchanges command: the one place where requests meet sockets and clocks."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp

from . import engine as wire
from . import prompts
from .breaker import Breaker
from .config import Config
from .connection import Connection, Lost
from .dialects import Dialect
from .dispatch import Dispatcher
from .engine import Engine
from .errors import Problem
from .exchange import (
    ENDED,
    TIMEOUT,
    Abandon,
    ClientGone,
    Close,
    Command,
    Data,
    End,
    Event,
    Exchange,
    Expired,
    Fault,
    Finish,
    Head,
    NoRoute,
    Open,
    PrefillDone,
    Reroute,
    Respond,
    Route,
    Start,
    Verdict,
    Write,
)
from .prompts import Prompt
from .stats import Stats

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("syshax")
# The ASGI extension by which a server takes parts of a stream without a coroutine for each.
CHUNKS = "syshax.chunks"
_NEVER = math.inf
_now = time.monotonic
# How long an engine may take to end its stream after [DONE], which the client waits for.
_AFTER_DONE_S = 1.0
# Watching for a client to leave takes a task of its own, a fifth of what a small request costs. An
# answer that is there sooner than this spares it: nothing is left to be stopped.
_WATCH_AFTER_S = 0.02
# What a client's request id may hold when it is passed on and logged.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_WIRE_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class Conductor:
    """Engines, places and counters, and the ASGI application for everything that generates."""

    def __init__(self, config: Config) -> None:
        self.stats = Stats()
        self.pins: dict[tuple[str, str], Dialect] = {}
        self.engines: dict[str, Engine] = {}
        self.active: set[Run] = set()
        self.draining = False
        self.client_keys: frozenset[bytes] = frozenset()
        self.upstream_key: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._adopt(config)
        self.dispatcher = Dispatcher(
            config.gates, self._states(), self.pins, config["system.max_queue_size"], _now
        )

    def _adopt(self, config: Config) -> None:
        """Take *config* over; engines that stay keep their connections, counts and breakers."""
        client_keys = _read_keys(config["auth.keys_file"])
        upstream_keys = _read_keys(config["auth.upstream_key_file"])
        old = {engine.where: engine for engine in self.engines.values()}
        self.engines = {
            where.name: old.get(where) or Engine(where, _breaker(config))
            for where in config.engines
        }
        for where, engine in old.items():
            if self.engines.get(where.name) is not engine:
                engine.pool.close()
        for pair in list(self.pins):
            if any(
                name not in self.engines or self.engines[name].where not in old for name in pair
            ):
                del self.pins[pair]
        self.config = config
        self.client_keys = client_keys
        self.upstream_key = next(iter(upstream_keys)).decode() if upstream_keys else None

    def reload(self, config: Config) -> None:
        """Take *config* over without touching requests that run."""
        self._adopt(config)
        self.dispatcher.configure(
            config.gates, self._states(), self.pins, config["system.max_queue_size"]
        )
        self.dispatcher.wake()

    def _states(self) -> list[Any]:
        return [engine.state for engine in self.engines.values()]

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = wire.new_session(self.config["system.connect_timeout"])
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        for engine in self.engines.values():
            engine.pool.close()

    def snapshot(self) -> list[dict[str, Any]]:
        """Every engine as /readyz and /metrics show it."""
        now = _now()
        return [
            {
                "name": engine.state.name,
                "role": engine.state.role,
                "url": engine.where.url,
                "breaker": engine.state.breaker.state(now),
                "trouble": engine.state.breaker.trouble,
                "running": engine.state.running,
                "waiting": engine.state.waiting,
                "cache_usage": engine.state.cache_usage,
                "tokens_per_s": engine.state.tokens_per_s,
            }
            for engine in self.engines.values()
        ]

    def interrupt(self, engine: str, text: str) -> None:
        """*engine* is held dead: whoever waits for its first byte need not wait longer."""
        for run in self.active:
            if run.waits_for == engine:
                run.interrupt(Fault(run.leg, TIMEOUT, text))

    def upstream_headers(self, request_id: str, authorization: str | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        if self.upstream_key is not None:
            headers["Authorization"] = f"Bearer {self.upstream_key}"
        elif authorization is not None and not self.client_keys:
            headers["Authorization"] = authorization
        return headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, authorization, length = b"", b"", b"0"
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"authorization":
                authorization = value
            elif name == b"content-length":
                length = value
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex.encode()
        reply = Reply(send, request_id, scope.get("extensions", {}).get(CHUNKS))
        problem = self.refuses(scope["method"], authorization, length)
        if problem is not None:
            await reply.problem(problem)
            return
        raw = await _body(receive, self.config["system.max_body_bytes"])
        if raw is None:
            return
        prompt: Prompt | Problem
        if isinstance(raw, Problem):
            prompt = raw
        else:
            prompt = prompts.parse(
                scope["path"], raw, request_id.decode(), self.config["models.default"]
            )
        if isinstance(prompt, Problem):
            self.stats.requests[scope["path"], "refused"] += 1
            await reply.problem(prompt)
            return
        await Run(self, prompt, reply, authorization.decode("latin-1") or None).serve(receive)

    def refuses(self, method: str, authorization: bytes, length: bytes) -> Problem | None:
        """Why a request is not even read."""
        if method != "POST":
            return Problem(405, "method_not_allowed", f"{method} is not answered here; POST is")
        if self.client_keys and authorization.partition(b" ")[2].strip() not in self.client_keys:
            return Problem(401, "invalid_api_key", "no valid API key was sent")
        limit = self.config["system.max_body_bytes"]
        if length.isdigit() and int(length) > limit:
            return _too_long(limit)
        return None


class Reply:
    """The client's side of one request."""

    __slots__ = ("_send", "chunks", "request_id", "way")

    def __init__(self, send: Send, request_id: bytes, chunks: Any = None) -> None:
        self._send = send
        self.chunks = chunks
        self.request_id = request_id
        self.way = b""

    async def head(self, respond: Respond) -> None:
        headers = [
            (b"content-type", respond.media.encode()),
            (b"x-request-id", self.request_id),
        ]
        if respond.length is None:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        else:
            headers.append((b"content-length", str(respond.length).encode()))
        if self.way:
            headers.append((b"x-syshax-route", self.way))
        if respond.retry_after is not None:
            headers.append((b"retry-after", str(respond.retry_after).encode()))
        await self._send(
            {"type": "http.response.start", "status": respond.status, "headers": headers}
        )

    def body(self, data: bytes, more: bool) -> Awaitable[None]:
        # No coroutine of its own: it would be one more for every token.
        return self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def problem(self, problem: Problem) -> None:
        body = problem.body()
        await self.head(Respond(problem.status, "application/json", len(body), problem.retry_after))
        await self.body(body, more=False)


class Run:
    """One exchange being carried out by one task; a second one only waits for the client to leave.

    Whatever must break an await (the client left, the time is over, the engine is held dead) sets
    ``_interruption`` and cancels the task; the cancellation becomes that event.
    """

    def __init__(
        self, conductor: Conductor, prompt: Prompt, reply: Reply, authorization: str | None
    ) -> None:
        self._conductor = conductor
        self._config = conductor.config
        self._prompt = prompt
        self._reply = reply
        self._exchange = Exchange(prompt)
        self._headers = conductor.upstream_headers(prompt.request_id, authorization)
        # Engines whose place this request holds. A reload may take an engine out of the
        # conductor's table, but not out of our hands.
        self._held: dict[str, Engine] = {}
        self._open: Open | None = None
        self._connection: Connection | None = None
        self._interruption: Event | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._began = _now()
        self._ends = self._began + self._config["system.request_timeout"]
        self._phase_ends = _NEVER
        self._first_byte_timeout: float = self._config["system.first_byte_timeout"]
        self._idle_timeout: float = self._config["system.idle_timeout"]
        self._connect_timeout: float = self._config["system.connect_timeout"]
        self._shortest_phase = min(self._first_byte_timeout, self._idle_timeout, _AFTER_DONE_S)
        self._recorded = False
        self._first_byte: float | None = None
        self._leg_began = self._began

    @property
    def leg(self) -> int:
        return self._open.leg if self._open else 0

    @property
    def waits_for(self) -> str | None:
        """The engine whose first byte the client waits for."""
        return self._open.engine if self._open and not self._exchange.responded else None

    async def serve(self, receive: Receive) -> None:
        """Answer the request; returns when the client has its answer, or has left."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_WATCH_AFTER_S, self._begin_watch, loop, receive)
        self._conductor.active.add(self)
        event: Event | None = None
        try:
            while self._exchange.state is not ENDED:
                try:
                    if event is None:
                        event = await self._next()
                    commands = self._exchange.on(event)
                    event = await self._carry_out(commands)
                except asyncio.CancelledError:
                    if self._interruption is None:
                        raise
                    event, self._interruption = self._interruption, None
                    _uncancel(self._task)
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._conductor.active.discard(self)
            self._drop_connection()
            for name in list(self._held):
                self._release(name)
            if not self._recorded:
                self._finished("cut")

    # -- events -----------------------------------------------------------------------------

    def interrupt(self, event: Event) -> None:
        if self._interruption is None and self._task is not None:
            self._interruption = event
            self._task.cancel()

    def _begin_watch(self, loop: asyncio.AbstractEventLoop, receive: Receive) -> None:
        self._watch = loop.create_task(self._watch_client(receive))
        self._arm(loop)

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGone())

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake at the next limit. Limits move with every read, so the timer only looks again."""
        at = min(self._ends, self._phase_ends)
        # No later than the shortest phase from now, or a limit set meanwhile would be overslept.
        wait = min(at - _now(), self._shortest_phase)
        self._timer = loop.call_later(max(wait, 0) + 0.001, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = _now()
        if now >= self._ends:
            self.interrupt(Expired(self._config["system.request_timeout"]))
        elif now >= self._phase_ends:
            self.interrupt(Fault(self.leg, TIMEOUT, "it sent nothing for too long"))
            self._phase_ends = _NEVER
            self._arm(loop)
        else:
            self._arm(loop)

    async def _next(self) -> Event:
        """What happens next: a place is given, or the open leg says something."""
        if self._open is None:
            return self._taken(await self._conductor.dispatcher.acquire(self._prompt))
        leg = self._open.leg
        try:
            if self._connection is None:
                return await self._request(self._open)
            if self._open.stream:
                self._phase_ends = _now() + self._patience
            relay = self._relay if self._reply.chunks is not None else None
            data = await self._connection.read(relay)
            while self._exchange.relay(data):
                self._phase_ends = _NEVER  # a slow client is no fault of the engine
                await self._reply.body(data, more=True)
                self._phase_ends = _now() + self._idle_timeout
                data = await self._connection.read(relay)
        except Lost as lost:
            return Fault(leg, lost.kind, lost.text)
        finally:
            self._phase_ends = _NEVER
        if data:
            return Data(leg, data)
        self._drop_connection()
        return End(leg)

    def _relay(self, data: bytes) -> bool:
        """Write a token on from where it was received; not one that the exchange must see, nor
        while the client is slow, for then the engine has to wait."""
        if not self._reply.chunks.ready or not self._exchange.relay(data):
            return False
        self._reply.chunks.write(data)
        self._phase_ends = _now() + self._idle_timeout
        return True

    @property
    def _patience(self) -> float:
        """How long the next bytes of a stream may take, in seconds."""
        if self._exchange.completing:
            return _AFTER_DONE_S
        return self._idle_timeout if self._exchange.responded else self._first_byte_timeout

    async def _request(self, command: Open) -> Event:
        self._leg_began = _now()
        if command.stream:
            self._phase_ends = self._leg_began + self._first_byte_timeout
        self._connection = connection = await self._held[command.engine].pool.post(
            self._prompt.path, command.body, self._headers, self._connect_timeout
        )
        return Head(command.leg, connection.status, connection.media)

    def _taken(self, given: Route | Problem) -> Event:
        if isinstance(given, Problem):
            return NoRoute(given)
        for name in (given.prefill, given.engine):
            if name is not None:
                self._held[name] = self._conductor.engines[name]
        return Start(given)

    # -- commands ---------------------------------------------------------------------------

    async def _carry_out(self, commands: list[Command]) -> Event | None:
        """Do what the exchange says; the event that an answer to it is, where there is one."""
        for index, command in enumerate(commands):
            kind = type(command)
            if kind is Write:
                last = type(commands[-1]) is Finish and index == len(commands) - 2
                await self._reply.body(command.data, more=not last)  # type: ignore[union-attr]
            elif kind is Reroute:
                return self._reroute(command)  # type: ignore[arg-type]
            elif kind is Respond:
                self._note_first_byte()
                self._reply.way = self._exchange.way.encode()
                await self._reply.head(command)  # type: ignore[arg-type]
            else:
                self._act(command)
        return None

    def _act(self, command: Command) -> None:
        """Commands that need no await."""
        if isinstance(command, Open):
            self._drop_connection()
            self._open = command
        elif isinstance(command, Close):
            self._drop_connection()
        elif isinstance(command, PrefillDone):
            if self._exchange.handed_off:
                self._conductor.stats.handoffs += 1
            self._release(command.engine)
        elif isinstance(command, Verdict):
            self._judge(command)
        elif isinstance(command, Abandon):
            self._abandon(command)
        elif isinstance(command, Finish):
            self._finished(command.outcome)

    def _reroute(self, command: Reroute) -> Event:
        self._conductor.stats.reroutes += 1
        self._drop_connection()
        for name in list(self._held):
            self._release(name)
        return self._taken(self._conductor.dispatcher.other(command.avoid))

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None

    def _release(self, name: str) -> None:
        engine = self._held.pop(name, None)
        if engine is not None:
            self._conductor.dispatcher.free(engine.state)

    def _judge(self, verdict: Verdict) -> None:
        held = self._held.get(verdict.engine)
        self._conductor.stats.legs[verdict.engine, "failed" if verdict.trouble else "ok"] += 1
        if held is None:
            return
        if verdict.trouble:
            held.state.breaker.failed(_now(), verdict.trouble)
            log.warning(
                "%s: %s failed: %s", self._prompt.request_id, verdict.engine, verdict.trouble
            )
        else:
            held.state.breaker.succeeded()
            if self._exchange.chunks > 1 and verdict.engine == self._open_engine:
                self._learn(held)

    @property
    def _open_engine(self) -> str | None:
        return self._open.engine if self._open else None

    def _learn(self, engine: Engine) -> None:
        now = _now()
        first = self._first_byte if self._first_byte is not None else now
        usage = self._exchange.usage or {}
        tokens = usage.get("completion_tokens") or self._exchange.chunks
        rate = tokens / (now - first) if now > first else None
        engine.state.learn(first - self._leg_began, rate)

    def _abandon(self, command: Abandon) -> None:
        """Admit the blocks and give them up at once, so that the prefilling engine drops them."""
        if not self._config["handoff.release_on_cancel"] or command.engine not in self._held:
            return
        url = self._held[command.engine].url(self._prompt.path)
        coroutine = _give_up(
            self._conductor.session, url, command.body, self._headers, self._config
        )
        task = asyncio.get_running_loop().create_task(coroutine)
        _BACKGROUND.add(task)
        task.add_done_callback(_BACKGROUND.discard)

    def _note_first_byte(self) -> None:
        self._first_byte = _now()
        self._conductor.stats.first_byte.observe(self._first_byte - self._began)

    def _finished(self, outcome: str) -> None:
        self._recorded = True
        stats = self._conductor.stats
        stats.requests[self._prompt.path, outcome] += 1
        stats.duration.observe(_now() - self._began)
        usage = self._exchange.usage or {}
        stats.prompt_tokens += usage.get("prompt_tokens") or 0
        stats.completion_tokens += usage.get("completion_tokens") or 0


# Tasks nobody awaits; a task without a reference may be collected while it runs.
_BACKGROUND: set[asyncio.Task[None]] = set()


async def _give_up(
    session: aiohttp.ClientSession, url: Any, body: bytes, headers: dict[str, str], config: Config
) -> None:
    one = {**json.loads(body), "stream": False, "max_tokens": 1}
    one.pop("stream_options", None)
    timeout = config["handoff.probe_timeout"]
    try:
        await wire.post(session, url, json.dumps(one).encode(), headers, timeout)
    except _WIRE_ERRORS as error:
        log.warning("blocks of a client that left stay until their lease ends: %s", error)


def _uncancel(task: asyncio.Task[Any] | None) -> None:
    # Python 3.11 counts cancellations, and aiohttp's timeouts look at the count.
    if task is not None and hasattr(task, "uncancel"):
        task.uncancel()


def _breaker(config: Config) -> Breaker:
    return Breaker(config["heartbeat.fail_threshold"], config["heartbeat.interval"])


def _too_long(limit: int) -> Problem:
    return Problem(413, "body_too_long", f"the body is longer than {limit} bytes")


async def _body(receive: Receive, limit: int) -> bytes | Problem | None:
    """The whole request body; None when the client left while sending it."""
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    if not message.get("more_body"):
        body: bytes = message["body"]
        return body if len(body) <= limit else _too_long(limit)
    parts, size = [message["body"]], len(message["body"])
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        size += len(message["body"])
        if size > limit:
            return _too_long(limit)
    return b"".join(parts)


def _read_keys(path: str | None) -> frozenset[bytes]:
    """Keys of a file, one a line; an unreadable file raises, for no key would mean no guard."""
    if path is None:
        return frozenset()
    with open(path, "rb") as stream:
        keys = frozenset(line.strip() for line in stream if line.strip())
    if not keys:
        raise OSError(f"{path} holds no key")
    return keys
