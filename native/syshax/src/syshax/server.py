# SPDX-License-Identifier: Apache-2.0
"""The conductor as a server: routes, lifespan, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from . import config as configuration
from .conductor import CHUNKS, Conductor, Receive, Scope, Send
from .config import Config, ConfigError
from .errors import Problem
from .probe import Watch
from .prompts import CHAT, COMPLETIONS, PD_DISAGG
from .scheduler import GPU
from .stats import Collector

log = logging.getLogger("syshax")
GENERATING = frozenset((CHAT, COMPLETIONS, PD_DISAGG))
# Everything else that an accelerator's engine is asked for; the rest of its API is nobody's here.
FORWARDED = (
    ("GET", "/v1/models"),
    ("GET", "/version"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/v1/embeddings"),
)


def _failed(problem: Problem) -> Response:
    headers = {"retry-after": str(problem.retry_after)} if problem.retry_after else None
    return Response(problem.body(), problem.status, headers, "application/json")


class App:
    """The ASGI application. What generates goes straight to the conductor; the rest is routed."""

    def __init__(self, config: Config, path: Path | None = None) -> None:
        self.conductor = Conductor(config)
        self.watch = Watch(self.conductor)
        self._path = path
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Collector(self.conductor))
        self._cold = Starlette(
            routes=[
                Route("/health", self._live),
                Route("/livez", self._live),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
                *(Route(path, self._forward, methods=[method]) for method, path in FORWARDED),
            ],
            lifespan=self._lifespan,
            exception_handlers={404: _unknown, 405: _unknown, Exception: _broken},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in GENERATING:
            await self.conductor(scope, receive, send)
        else:
            await self._cold(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.watch.start()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            # Outside of a main thread (tests) there are no signals to hear.
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            await self.watch.stop()
            await self.conductor.close()

    def reload(self) -> None:
        """Take the file over again; what is wrong in it is logged and changes nothing."""
        if self._path is None:
            return
        try:
            loaded = configuration.load(self._path)
            moved = [
                key
                for key in ("services.conductor.host", "services.conductor.port")
                if loaded[key] != self.conductor.config[key]
            ]
            self.conductor.reload(loaded)
        except (ConfigError, OSError) as error:
            log.error("the configuration stays as it was: %s", error)
            return
        for key in moved:
            log.warning("%s changed; that takes a restart", key)
        log.info("configuration taken over from %s", self._path)

    # -- pages ------------------------------------------------------------------------------

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        engines = self.conductor.snapshot()
        usable = any(engine["breaker"] != "open" for engine in engines)
        ready = usable and not self.conductor.draining
        pairs = {
            f"{gpu}>{cpu}": found._asdict() for (gpu, cpu), found in self.watch.findings.items()
        }
        document = {
            "ready": ready,
            "draining": self.conductor.draining,
            "connectivity_test": "done" if self.watch.complete else "running",
            "engines": engines,
            "handoff": pairs,
        }
        return JSONResponse(document, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        if request.query_params.get("format") == "json":
            rows = {row.pop("name"): row for row in self.conductor.snapshot()}
            return JSONResponse({**rows, "queued": self.conductor.dispatcher.queued})
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _forward(self, request: Request) -> Response:
        """Ask engines one after another, accelerators first, until one answers."""
        headers = {key.decode(): value for key, value in request.headers.raw}
        length = headers.get("content-length", b"0")
        problem = self.conductor.refuses("POST", headers.get("authorization", b""), length)
        if problem is not None:
            return _failed(problem)
        body = await request.body()
        engines = sorted(
            self.conductor.engines.values(), key=lambda engine: engine.state.role != GPU
        )
        authorization = request.headers.get("authorization")
        sent = self.conductor.upstream_headers(
            request.headers.get("x-request-id", ""), authorization
        )
        trouble = "no engine"
        for engine in engines:
            try:
                timeout = aiohttp.ClientTimeout(self.conductor.config["system.request_timeout"])
                async with self.conductor.session.request(
                    request.method,
                    engine.url(request.url.path),
                    data=body,
                    headers=sent,
                    timeout=timeout,
                ) as response:
                    media = response.headers.get("Content-Type", "application/json")
                    return Response(await response.read(), response.status, {"content-type": media})
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                trouble = f"{engine.state.name}: {error}"
        return _failed(Problem(503, "engine_unreachable", trouble, retry_after=1))


async def _unknown(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    path = request.url.path
    if status == 405:
        return _failed(
            Problem(405, "method_not_allowed", f"{request.method} is not answered at {path}")
        )
    return _failed(Problem(404, "unknown_path", f"{path} is not served by the conductor"))


async def _broken(_: Request, error: Exception) -> Response:
    return _failed(Problem(500, "internal", f"the conductor failed: {type(error).__name__}"))


class Chunks:
    """Writes parts of a streamed answer straight to its client: ``send`` is a coroutine, a message
    and a join for every token. For answers whose head says no length."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def ready(self) -> bool:
        """Whether a part can be written now: its client takes what it gets, and is still there."""
        cycle = self._cycle
        return cycle.chunked_encoding is True and not (
            cycle.flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    def write(self, part: bytes) -> None:
        """One part, not empty; while :attr:`ready`."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on headers, which its parser has none of."""

    max_header_bytes = 64 << 10
    _header_bytes = 0

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # Its task runs after this. Where another protocol was asked for, there is no new one.
        if self.cycle is not None and self.cycle.scope is self.scope:
            self.scope["extensions"] = {CHUNKS: Chunks(self.cycle)}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.max_header_bytes:
            raise ValueError("headers over the limit")
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        """In the shape every other error has; uvicorn's own is plain text."""
        over = self._header_bytes > self.max_header_bytes
        problem = (
            Problem(431, "headers_too_long", f"headers exceed {self.max_header_bytes} bytes")
            if over
            else Problem(400, "invalid_http", msg)
        )
        body = problem.body()
        reason = "Request Header Fields Too Large" if over else "Bad Request"
        head = (
            f"HTTP/1.1 {problem.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def protocol(config: Config) -> type[HttpToolsProtocol]:
    """The HTTP protocol with the bound that *config* sets."""
    bound = {"max_header_bytes": config["system.max_header_bytes"]}
    return type("BoundedProtocol", (_Protocol,), bound)


class _Server(uvicorn.Server):
    """Says in /readyz that it drains, as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, conductor: Conductor) -> None:
        super().__init__(config)
        self._conductor = conductor

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._conductor.draining = True
        log.info("draining: %d requests run", len(self._conductor.active))
        super().handle_exit(sig, frame)


def logs(level: str) -> None:
    """One line a record on stderr, where the journal or a container's log takes it."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(levelname)s %(message)s", force=True
    )


async def _strict(config: Config) -> list[str]:
    """The connectivity test by itself; every reason why it is not passed."""
    conductor = Conductor(config)
    watch = Watch(conductor)
    try:
        await watch.round()
        reasons = [
            f"{row['name']}: {row['trouble']}" for row in conductor.snapshot() if row["trouble"]
        ]
        if config["handoff.dialect"] != "none":
            reasons += [
                f"{gpu} > {cpu}: {found.detail}"
                for (gpu, cpu), found in watch.findings.items()
                if found.dialect is None
            ]
        return reasons
    finally:
        await conductor.close()


def run(config: Config, path: Path, strict: bool = False) -> int:
    """Serve until told to stop; the exit code."""
    logs(config["log.level"])
    if strict:
        reasons = asyncio.run(_strict(config))
        for reason in reasons:
            log.error("connectivity test: %s", reason)
        if reasons:
            return 1
    app = App(config, path)
    settings = uvicorn.Config(
        app,
        host=config["services.conductor.host"],
        port=config["services.conductor.port"],
        http=protocol(config),
        loop="uvloop" if sys.platform == "linux" else "asyncio",
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(config["system.drain_timeout"])),
    )
    server = _Server(settings, app.conductor)
    server.run()
    return 0 if server.started else 1
