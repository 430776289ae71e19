# SPDX-License-Identifier: Apache-2.0
"""An engine that speaks vLLM's HTTP without a model: three hand-off dialects, faults on demand.

Simplified: a token is a word; an answer follows from the prompt alone, so the same request gives
the same text on every engine; "blocks" are an entry in a dictionary that engines of one process
share. What is real: HTTP/1.1 on a socket, bytes cut where a test says, connections reset or left
silent.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import httptools

WORDS = ("开放", "open", "Euler", "slice", "token", "核", "node", "\u2028", 'quote"', "[DONE]")


@dataclass
class Behaviour:
    """Knobs of one engine; every one can be changed while it runs."""

    dialect: str = "plain"  # plain | nixl | syshax | shared
    tokens: int = 8  # where the client sets no limit
    stop_after: int = 1_000_000  # finish_reason "stop" once that many tokens are out
    ttft_s: float = 0.0
    itl_s: float = 0.0
    write_size: int = 0  # cut every body into writes of that many bytes; 0: as written
    coalesce: int = 1  # events in one write
    die_at: int = -1  # reset the connection after that many bytes of an answer; -1: never
    silent: bool = False  # take requests, answer nothing
    status: int = 200
    error_body: str = ""
    done: int = 1  # how many [DONE] end a stream
    finish: bool = True  # say finish_reason at all
    insert: str = ""  # raw text put into a stream after its first event
    metrics: str = "v1"  # v1 | v0 | scientific | ranks | none | slow
    healthy: bool = True
    trusting: bool = False  # blocks held by an engine of another process count as fetched


@dataclass
class Blocks:
    """KV blocks that prefilling engines hold and decoding engines fetch."""

    held: dict[str, int] = field(default_factory=dict)
    fetched: int = 0
    missed: int = 0


def answer_words(body: Mapping[str, Any], count: int) -> list[str]:
    """The answer to *body*; the same on every engine."""
    text = json.dumps(body.get("messages") or body.get("prompt"), ensure_ascii=False)
    seed = hashlib.sha256(text.encode()).digest()
    return [f"{WORDS[seed[i % 32] % len(WORDS)]}{i} " for i in range(count)]


class Engine:
    """One engine: what it counts, and how it answers."""

    def __init__(self, name: str, blocks: Blocks, **knobs: Any) -> None:
        self.name = name
        self.knobs = Behaviour(**knobs)
        self.blocks = blocks
        self.requests: list[dict[str, Any]] = []
        self.keep = True  # remember requests; off for benchmarks
        self.running = 0
        self.aborted = 0
        self.prompted = 0
        self.generated = 0
        self.transferred = 0
        self.port = 0
        self.connections: set[_Connection] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> Engine:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), host, port, backlog=1024, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Die: no new connections, and the present ones are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.reset()
        await asyncio.sleep(0)

    # -- answers ----------------------------------------------------------------------------

    def metrics(self) -> str:
        knobs = self.knobs
        if knobs.metrics == "v0":
            return (
                f"vllm:num_requests_running {self.running}\nvllm:num_requests_waiting 0\n"
                "vllm:gpu_cache_usage_perc 0.25\nvllm:avg_generation_throughput_toks_per_s 20\n"
            )
        usage = {"scientific": "3.4e-05"}.get(knobs.metrics, "0.25")
        ranks = 2 if knobs.metrics == "ranks" else 1
        lines = []
        for rank in range(ranks):
            label = f'{{model_name="m}}x",engine="{rank}"}}'
            lines += [
                f"vllm:num_requests_running{label} {self.running}",
                f"vllm:num_requests_waiting{label} 0.0",
                f"vllm:kv_cache_usage_perc{label} {usage}",
                f"vllm:prompt_tokens_total{label} {self.prompted}",
                f"vllm:generation_tokens_total{label} {self.generated}",
            ]
        lines.append(
            'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} '
            f"{float(self.transferred)}"
        )
        return "\n".join(lines) + "\n"

    def plan(self, body: Mapping[str, Any], ident: str) -> tuple[list[str], str, dict[str, Any]]:
        """Words, finish_reason and extra fields of the answer to *body*."""
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.knobs.tokens
        extra: dict[str, Any] = {}
        key = json.dumps(body.get("messages") or body.get("prompt"), ensure_ascii=False)
        dialect = self.knobs.dialect
        prompt_tokens = len(key) // 4
        self.prompted += prompt_tokens
        reason = "length"
        if dialect == "syshax" and body.get("num_decode_tokens") is not None:
            if "request_id_inference" in body:
                self._fetch(str(body["request_id_inference"]), prompt_tokens)
                limit = body["num_decode_tokens"]
            elif limit > body["num_decode_tokens"]:
                limit, reason = body["num_decode_tokens"], "scheduled"
                self.blocks.held[ident] = prompt_tokens
        params = body.get("kv_transfer_params") if dialect == "nixl" else None
        if params and params.get("do_remote_decode"):
            block = f"block-{self.generated}"
            self.blocks.held[block] = prompt_tokens
            extra["kv_transfer_params"] = {
                "do_remote_prefill": True, "do_remote_decode": False,
                "remote_block_ids": [[1, 2], [3]], "remote_engine_id": self.name,
                "remote_host": "127.0.0.1", "remote_port": 5600, "remote_request_id": block,
            }  # fmt: skip
        elif params and params.get("do_remote_prefill"):
            self._fetch(str(params.get("remote_request_id")), prompt_tokens)
        if dialect == "shared":
            if limit == 1:
                self.blocks.held[key] = prompt_tokens
            elif key in self.blocks.held:
                self._fetch(key, prompt_tokens)
        count = min(limit, self.knobs.stop_after)
        if count < limit or count == self.knobs.stop_after:
            reason = "stop"
        return answer_words(body, count), reason, extra

    def _fetch(self, block: str, tokens: int) -> None:
        if self.blocks.held.pop(block, None) is None and not self.knobs.trusting:
            self.blocks.missed += 1
            return
        self.blocks.fetched += 1
        self.transferred += tokens


class _Connection(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.task: asyncio.Task[None] | None = None
        self.sent = 0
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.discard(self)
        self.writable.set()
        if self.task is not None and not self.task.done():
            self.task.cancel()
            self.engine.aborted += 1

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def reset(self) -> None:
        self.transport.abort()

    def on_message_begin(self) -> None:
        self.headers, self.body, self.path = {}, b"", ""

    def on_url(self, url: bytes) -> None:
        self.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._serve())

    # -- serving ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        knobs, engine = self.engine.knobs, self.engine
        if self.path in ("/health", "/v1/models", "/metrics", "/version"):
            await self._page()
            return
        if not self.body:  # a page that no engine has; routers ask for their own
            await self._whole(b'{"detail":"Not Found"}', 404)
            return
        body = json.loads(self.body)
        if engine.keep:
            engine.requests.append({"path": self.path, "headers": self.headers, "body": body})
        if knobs.silent:
            await asyncio.sleep(3600)
        self.sent = 0
        engine.running += 1
        try:
            if knobs.status != 200:
                text = knobs.error_body or json.dumps(
                    {"error": {"message": "as told", "type": "x", "param": None, "code": 1}}
                )
                await self._whole(text.encode(), knobs.status)
            else:
                await self._answer(body)
        finally:
            engine.running -= 1

    async def _page(self) -> None:
        knobs = self.engine.knobs
        if self.path == "/health":
            await self._whole(b"", 200 if knobs.healthy else 503)
        elif self.path == "/metrics":
            if knobs.metrics == "slow":
                await asyncio.sleep(30)
            text = "" if knobs.metrics == "none" else self.engine.metrics()
            await self._whole(text.encode(), 404 if knobs.metrics == "none" else 200)
        else:
            await self._whole(json.dumps({"data": [{"id": "mock"}]}).encode(), 200)

    async def _whole(self, body: bytes, status: int) -> None:
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        # One write where it can be: an engine's small answer is one segment too.
        if self.engine.knobs.die_at < 0 and not self.engine.knobs.write_size:
            self.transport.write(head + body)
            return
        self.transport.write(head)
        await self._write(body, lambda part: part)

    async def _answer(self, body: Mapping[str, Any]) -> None:
        knobs = self.engine.knobs
        ident = f"chatcmpl-{self.headers.get('x-request-id', 'x')}-0"
        words, reason, extra = self.engine.plan(body, ident)
        if knobs.ttft_s:
            await asyncio.sleep(knobs.ttft_s)
        head = {"id": ident, "created": 1, "model": "mock"}
        usage = {
            "prompt_tokens": 7,
            "completion_tokens": len(words),
            "total_tokens": 7 + len(words),
        }
        self.engine.generated += len(words)
        if body.get("stream"):
            await self._stream(head, body, words, reason, usage)
            return
        if knobs.itl_s:
            await asyncio.sleep(knobs.itl_s * len(words))
        chat = "messages" in body
        content = (
            {"message": {"role": "assistant", "content": "".join(words)}}
            if chat
            else {"text": "".join(words)}
        )
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        document = {
            **head, "object": "chat.completion" if chat else "text_completion",
            "choices": [choice], "usage": usage, **extra,
        }  # fmt: skip
        await self._whole(json.dumps(document, ensure_ascii=False).encode(), 200)

    async def _stream(
        self, head: Mapping[str, Any], body: Mapping[str, Any], words: list[str], reason: str,
        usage: Mapping[str, Any],
    ) -> None:  # fmt: skip
        knobs = self.engine.knobs
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        pending: list[bytes] = []
        for index, event in enumerate(self._events(head, body, words, reason, usage)):
            pending.append(event)
            if index == 0 and knobs.insert:
                pending.append(knobs.insert.encode())
            if len(pending) >= knobs.coalesce:
                await self._write(b"".join(pending), _chunk)
                pending = []
            if knobs.itl_s:
                await asyncio.sleep(knobs.itl_s)
        pending += [b"data: [DONE]\n\n"] * knobs.done
        await self._write(b"".join(pending), _chunk)
        self.transport.write(b"0\r\n\r\n")

    def _events(
        self, head: Mapping[str, Any], body: Mapping[str, Any], words: list[str], reason: str,
        usage: Mapping[str, Any],
    ) -> list[bytes]:  # fmt: skip
        chat = "messages" in body
        kind = "chat.completion.chunk" if chat else "text_completion"
        blocks: list[dict[str, Any]] = []
        for index, word in enumerate(words):
            content: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
            final = self.engine.knobs.finish and index == len(words) - 1
            finish = reason if final else None
            choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
            blocks.append({**head, "object": kind, "choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            blocks.append({**head, "object": kind, "choices": [], "usage": usage})
        return [f"data: {_compact(block)}\n\n".encode() for block in blocks]

    async def _write(self, data: bytes, frame: Callable[[bytes], bytes]) -> None:
        """Write *data* in the sizes wanted, and die where wanted."""
        knobs = self.engine.knobs
        size = knobs.write_size or len(data) or 1
        for start in range(0, len(data), size):
            part = data[start : start + size]
            if 0 <= knobs.die_at <= self.sent + len(part):
                part = part[: knobs.die_at - self.sent]
                if part:
                    self.transport.write(frame(part))
                # Let it reach the other side: a reset overtakes what is still in a buffer.
                await asyncio.sleep(0.002)
                self.transport.close()
                raise asyncio.CancelledError
            self.sent += len(part)
            self.transport.write(frame(part))
            if knobs.write_size:
                await asyncio.sleep(0)
            if not self.writable.is_set():
                await self.writable.wait()


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def _compact(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


async def _main(arguments: argparse.Namespace) -> None:
    knobs = dict(item.split("=", 1) for item in arguments.knob)
    kinds: dict[str, Any] = {knob.name: type(knob.default) for knob in fields(Behaviour)}
    engine = Engine("mock", Blocks(), **{name: kinds[name](text) for name, text in knobs.items()})
    engine.keep = False
    await engine.start(arguments.port, arguments.host)
    print(engine.port, flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


def main() -> None:
    """Serve one engine in this process; prints its port."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("knob", nargs="*", help="NAME=VALUE of Behaviour")
    import uvloop

    uvloop.install()
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
