# SPDX-License-Identifier: Apache-2.0
"""One client request as a state machine: events in, commands out, no I/O and no clock.

    waiting ──Start──▶ prefill ──reply──▶ answering ──end──▶ ended
        ▲  └────────────Start (one engine)──▶ ┘ │
        └───────── Reroute, while nothing was written ◀──┘

What must hold in every order of events, and the tests try them all:
* the client gets one head; after it a full answer, or one error object;
* a stream ends with exactly one ``[DONE]``, whatever the engine sent;
* an engine is failed over only while the client has nothing of its answer; a client's own mistake
  (4xx) is never failed over;
* a leg that ended, failed or was closed is never heard again: a late event of it changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Union

from . import prompts, sse
from .dialects import Complete, Decode, Dialect, NoHandOff
from .errors import Problem, is_error_object
from .prompts import Prompt

# Kinds of trouble an engine can make before its answer is complete.
CONNECT = "connect"
TIMEOUT = "timeout"
BROKEN = "broken"


class Route(NamedTuple):
    """Who answers: one engine, or two that speak *dialect*."""

    engine: str
    prefill: str | None = None
    dialect: Dialect | None = None


class Limits(NamedTuple):
    """Bounds on what an engine may send, in bytes."""

    event: int = 1 << 20
    answer: int = 64 << 20


# Events. ``leg`` counts the upstream requests of one exchange from 1.
class Start(NamedTuple):
    route: Route


class NoRoute(NamedTuple):
    problem: Problem


class Head(NamedTuple):
    leg: int
    status: int
    media: str


class Data(NamedTuple):
    leg: int
    data: bytes


class End(NamedTuple):
    leg: int


class Fault(NamedTuple):
    leg: int
    kind: str
    text: str


class Expired(NamedTuple):
    """The whole request's time is over."""

    seconds: float


class ClientGone(NamedTuple):
    pass


# Commands.
class Open(NamedTuple):
    """Send *body* to *engine* as leg *leg*; *stream* says which timeouts apply."""

    leg: int
    engine: str
    body: bytes
    stream: bool


class Close(NamedTuple):
    """Abort leg *leg* now; the engine frees what it holds when the connection goes."""

    leg: int


class Respond(NamedTuple):
    status: int
    media: str
    length: int | None = None
    retry_after: int | None = None


class Write(NamedTuple):
    data: bytes


class Finish(NamedTuple):
    outcome: str


class Reroute(NamedTuple):
    """Ask for one engine, none of *avoid*, to answer alone; Start or NoRoute is the reply.

    Alone, so that a pair that can't hand over is not tried for ever.
    """

    avoid: frozenset[str]


class Verdict(NamedTuple):
    """What an engine did, for its breaker: an empty *trouble* is praise."""

    engine: str
    trouble: str


class PrefillDone(NamedTuple):
    """The prefilling engine's place is free again."""

    engine: str


class Abandon(NamedTuple):
    """The client left while *engine*'s partner still holds the blocks of *body*."""

    engine: str
    body: bytes


Event = Union[Start, NoRoute, Head, Data, End, Fault, Expired, ClientGone]
Command = Union[Open, Close, Respond, Write, Finish, Reroute, Verdict, PrefillDone, Abandon]

WAITING, PREFILL, ANSWERING, ENDED = "waiting", "prefill", "answering", "ended"
_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"
# What an event has to be looked into for. In JSON these bytes are fields: in a text, quotes are
# escaped.
_SAYS_MORE = re.compile(rb'"(?:error"|usage"|finish_reason": ?")')


class Exchange:
    """Feed it with :meth:`on`, carry out what it returns, in order."""

    def __init__(self, prompt: Prompt, limits: Limits = Limits()) -> None:  # noqa: B008
        self.prompt = prompt
        self.state = WAITING
        self.problem: Problem | None = None
        self.usage: Mapping[str, Any] | None = None
        self.chunks = 0
        self.handed_off = False
        self._limits = limits
        self._route = Route("")
        self._leg = 0
        self._status = 0
        self._media = ""
        self._body: list[bytes] = []
        self._size = 0
        self._splitter: sse.Splitter | None = None
        self._avoid: frozenset[str] = frozenset()
        self._last: Problem | None = None
        self._decode_body = b""
        self._retried = False
        self._responded = False
        self._done = False
        self._finished_choices = 0

    def on(self, event: Event) -> list[Command]:
        """What *event* leads to; nothing, where its leg or the whole exchange is over."""
        if self.state is ENDED:
            return []
        handler = _HANDLERS[type(event)]
        leg = getattr(event, "leg", None)
        if leg is not None and (leg != self._leg or self.state is WAITING):
            return []
        return handler(self, event)

    def relay(self, data: bytes) -> bool:
        """Whether *data*, read from the open leg, goes to the client just so, and nothing follows.

        Nearly every token of a stream is such a read: one whole event with nothing to be noted. It
        spares them the way through :meth:`on`, which does the same with them.
        """
        if not self._responded or self._done or self.state is not ANSWERING:
            return False
        if self._splitter is None or self._splitter.rest or not _looks_whole(data):
            return False
        if _SAYS_MORE.search(data):
            return False
        self.chunks += 1
        return True

    # -- the way ----------------------------------------------------------------------------

    def _on_start(self, event: Start) -> list[Command]:
        if self.state is not WAITING:
            raise RuntimeError(f"Start in state {self.state}: a leg is still open")
        self._route = route = event.route
        self._retried = False
        if route.prefill is not None and route.dialect is not None:
            self.state = PREFILL
            return self._open(route.prefill, route.dialect.prefill(self.prompt), stream=False)
        self.state = ANSWERING
        return self._open(route.engine, self.prompt.raw, self.prompt.stream)

    def _open(self, engine: str, body: bytes, stream: bool) -> list[Command]:
        self._leg += 1
        self._status, self._media, self._body, self._size = 0, "", [], 0
        self._splitter = None
        self._finished_choices = 0
        return [Open(self._leg, engine, body, stream)]

    def _on_no_route(self, event: NoRoute) -> list[Command]:
        # What went wrong with the engines says more than that none is left.
        return self._fail(self._last or event.problem)

    @property
    def responded(self) -> bool:
        """Whether the client has begun to get its answer; no engine can be changed then."""
        return self._responded

    @property
    def completing(self) -> bool:
        """Whether the engine has said ``[DONE]``; only the end of its stream is awaited."""
        return self._done

    @property
    def way(self) -> str:
        """The engines that answer, for people: ``gpu`` or ``gpu>cpu``."""
        return f"{self._route.prefill}>{self._route.engine}" if self.handed_off else self._engine

    @property
    def _engine(self) -> str:
        """The engine of the open leg."""
        if self.state is PREFILL:
            assert self._route.prefill is not None
            return self._route.prefill
        return self._route.engine

    # -- what engines say -------------------------------------------------------------------

    def _on_head(self, event: Head) -> list[Command]:
        self._status, self._media = event.status, event.media
        streams = event.status == 200 and event.media.startswith("text/event-stream")
        if self.state is ANSWERING and self.prompt.stream and streams:
            self._splitter = sse.Splitter(self._limits.event)
        return []

    def _on_data(self, event: Data) -> list[Command]:
        if self._splitter is None:
            self._size += len(event.data)
            if self._size > self._limits.answer:
                return self._leg_failed(
                    BROKEN, f"the answer is longer than {self._limits.answer} bytes"
                )
            self._body.append(event.data)
            return []
        try:
            block = self._splitter.feed(event.data)
        except sse.EventTooLongError as error:
            return self._leg_failed(BROKEN, str(error))
        return self._forward(block) if block and not self._done else []

    def _forward(self, block: bytes) -> list[Command]:
        """Pass a block of whole events on; look inside only where its bytes ask for it."""
        if b"[DONE]" in block or b'"error"' in block or not _looks_whole(block):
            block, trouble = self._inspect(block)
            if trouble:
                kept = self._write(block) if block else []
                return kept + self._leg_failed(BROKEN, trouble)
        if b'"finish_reason"' in block:
            # Quotes inside a text are escaped, so these bytes are the field itself.
            self._finished_choices += block.count(b'"finish_reason":"')
            self._finished_choices += block.count(b'"finish_reason": "')
        if b'"usage"' in block:
            self._note_usage(block)
        self.chunks += 1
        return self._write(block) if block else []

    def _write(self, block: bytes) -> list[Command]:
        if self._responded:
            return [Write(block)]
        self._responded = True
        return [Respond(200, _SSE), Write(block)]

    def _inspect(self, block: bytes) -> tuple[bytes, str]:
        """Events up to the first ``[DONE]`` or the first that is none; and what is wrong there."""
        kept: list[bytes] = []
        for event in sse.events(block):
            data = sse.data_of(event)
            if data.strip() == b"[DONE]":
                self._done = True
                break
            if data:
                try:
                    document = json.loads(data)
                except (ValueError, RecursionError):
                    return b"".join(kept), "an event is not valid JSON"
                if not isinstance(document, dict):
                    return b"".join(kept), "an event is not a JSON object"
                if document.get("error"):
                    return b"".join(kept), f"the engine reported {_message(document)}"
            kept.append(event)
        return b"".join(kept), ""

    def _note_usage(self, block: bytes) -> None:
        for event in sse.events(block):
            data = sse.data_of(event)
            if b'"usage"' not in data:
                continue
            try:
                usage = json.loads(data).get("usage")
            except (ValueError, AttributeError):
                continue
            if isinstance(usage, dict):
                self.usage = usage

    def _on_end(self, event: End) -> list[Command]:
        if self._splitter is not None:
            return self._stream_ended()
        if self._status >= 500 or self._status == 429:
            return self._leg_failed(BROKEN, f"it answered {self._status}", status=self._status)
        if self._status != 200:
            return self._refused()
        try:
            document = json.loads(b"".join(self._body))
        except (ValueError, RecursionError):
            return self._leg_failed(BROKEN, "its answer is not valid JSON")
        if not isinstance(document, dict):
            return self._leg_failed(BROKEN, "its answer is not a JSON object")
        if self.state is PREFILL:
            return self._prefilled(document)
        return self._answered(document, b"".join(self._body))

    def _stream_ended(self) -> list[Command]:
        if not self._done and self._finished_choices < self.prompt.choices:
            return self._leg_failed(BROKEN, "its stream ended before the answer did")
        if not self._responded:
            # [DONE] and not one event before it is no answer.
            return self._leg_failed(BROKEN, "its stream held no event")
        self.state = ENDED
        return [Verdict(self._route.engine, ""), Write(sse.DONE), Finish("answered")]

    def _prefilled(self, reply: Mapping[str, Any]) -> list[Command]:
        assert self._route.prefill is not None and self._route.dialect is not None
        engine = self._route.prefill
        meaning = self._route.dialect.read(self.prompt, reply)
        freed: list[Command] = [Verdict(engine, ""), PrefillDone(engine)]
        if isinstance(meaning, Decode):
            self.state = ANSWERING
            self.handed_off = True
            self._decode_body = meaning.body
            return freed + self._open(self._route.engine, meaning.body, self.prompt.stream)
        if isinstance(meaning, Complete):
            self.state = ANSWERING
            text = json.dumps(meaning.answer, ensure_ascii=False).encode()
            return freed + self._answered(meaning.answer, text, praise=False)
        assert isinstance(meaning, NoHandOff)
        self.state = WAITING
        self._last = Problem(502, "no_hand_off", f"{engine}: {meaning.reason}")
        # The decoding engine did nothing wrong, but without blocks it has to prefill by itself.
        return [*freed, Reroute(self._avoid)]

    def _answered(
        self, answer: Mapping[str, Any], text: bytes, praise: bool = True
    ) -> list[Command]:
        stream = b""
        if self.prompt.stream:
            try:
                stream = prompts.as_stream(answer, self.prompt.include_usage)
            except (AttributeError, TypeError, ValueError) as error:
                return self._leg_failed(BROKEN, f"its answer is no completion: {error}")
        self.state = ENDED
        if isinstance(answer.get("usage"), dict):
            self.usage = answer["usage"]
        praised: list[Command] = [Verdict(self._route.engine, "")] if praise else []
        if not self.prompt.stream:
            return [*praised, Respond(200, _JSON, len(text)), Write(text), Finish("answered")]
        return [*praised, Respond(200, _SSE), Write(stream), Finish("answered")]

    def _refused(self) -> list[Command]:
        """The engine says that the client is wrong: its own words, unless they are no error."""
        body = b"".join(self._body)
        if not is_error_object(body):
            status = self._status if 400 <= self._status < 500 else 502
            said = body[:200].decode("utf-8", "replace")
            return [
                Verdict(self._engine, ""),
                *self._fail(
                    Problem(status, "refused", f"{self._engine} answered {self._status}: {said}")
                ),
            ]
        engine, self.state = self._engine, ENDED
        self.problem = Problem(self._status, "refused", f"{engine} answered {self._status}")
        return [
            Verdict(engine, ""),
            Respond(self._status, _JSON, len(body)),
            Write(body),
            Finish("refused"),
        ]

    # -- trouble ----------------------------------------------------------------------------

    def _on_fault(self, event: Fault) -> list[Command]:
        decoding = self.state is ANSWERING and bool(self._decode_body)
        if event.kind == CONNECT and decoding and not self._retried and not self._responded:
            # A kept-alive connection may have died; the blocks wait for this engine alone.
            self._retried = True
            return self._open(self._route.engine, self._decode_body, self.prompt.stream)
        if self._splitter is not None and self._done:
            # Everything had come; how the connection ended changes nothing.
            return self._stream_ended()
        return self._leg_failed(event.kind, event.text)

    def _leg_failed(self, kind: str, text: str, status: int = 0) -> list[Command]:
        engine = self._engine
        problem = _problem(engine, kind, text, status)
        commands: list[Command] = [Close(self._leg), Verdict(engine, text)]
        if self.state is PREFILL:
            commands.append(PrefillDone(engine))
        if self._responded:
            return commands + self._fail(problem)
        self.state = WAITING
        self._last = problem
        self._decode_body = b""
        self.handed_off = False
        self._done = False
        self._avoid |= {engine}
        return [*commands, Reroute(self._avoid)]

    def _on_expired(self, event: Expired) -> list[Command]:
        return self._shut() + self._fail(
            Problem(504, "timeout", f"no complete answer within {event.seconds:g} s")
        )

    def _on_client_gone(self, event: ClientGone) -> list[Command]:
        commands = self._shut()
        if self.state is ANSWERING and self._decode_body and not self._status:
            commands.append(Abandon(self._route.engine, self._decode_body))
        self.state = ENDED
        return [*commands, Finish("client_gone")]

    def _shut(self) -> list[Command]:
        return [] if self.state is WAITING else [Close(self._leg)]

    def _fail(self, problem: Problem) -> list[Command]:
        self.state, self.problem = ENDED, problem
        if not self._responded:
            body = problem.body()
            head = Respond(problem.status, _JSON, len(body), problem.retry_after)
            return [head, Write(body), Finish("failed")]
        return [Write(sse.event(problem.body()) + sse.DONE), Finish("failed")]


def _looks_whole(block: bytes) -> bool:
    """Whether a block is one event with one JSON object, by its two ends; cheap and usual."""
    return block.startswith(b"data: {") and block.endswith(b"}\n\n") and block.count(b"\n") == 2


def _message(document: Mapping[str, Any]) -> str:
    error = document["error"]
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _problem(engine: str, kind: str, text: str, status: int) -> Problem:
    if kind == TIMEOUT:
        return Problem(504, "engine_timeout", f"{engine}: {text}")
    if kind == CONNECT:
        return Problem(503, "engine_unreachable", f"{engine}: {text}", retry_after=1)
    if status in (429, 503):
        return Problem(status, "engine_busy", f"{engine}: {text}", retry_after=1)
    return Problem(502, "engine_failed", f"{engine}: {text}")


_HANDLERS: dict[type, Callable[[Exchange, Any], list[Command]]] = {
    Start: Exchange._on_start,
    NoRoute: Exchange._on_no_route,
    Head: Exchange._on_head,
    Data: Exchange._on_data,
    End: Exchange._on_end,
    Fault: Exchange._on_fault,
    Expired: Exchange._on_expired,
    ClientGone: Exchange._on_client_gone,
}
