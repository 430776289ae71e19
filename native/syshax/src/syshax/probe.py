# SPDX-License-Identifier: Apache-2.0
"""Watching engines, and finding out how each pair of them hands over.

Nothing here is in a request's path. Every step has its own time limit; what was found is kept for
/readyz, in words.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any, NamedTuple

import aiohttp

from . import engine as wire
from . import prompts
from .conductor import Conductor
from .dialects import DIALECTS, Decode, Dialect, NoHandOff
from .engine import Engine
from .prompts import Prompt
from .scheduler import CPU, GPU

log = logging.getLogger("syshax")
_PROBE_ID = "syshax-probe"
# Long enough for more than one block of KV cache; engines share whole blocks only.
_PROBE_TEXT = "one two three four five six seven eight nine ten " * 40
_WIRE_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class Finding(NamedTuple):
    """What was found of one pair. ``proven``: the engine's own counters showed the hand-off, or
    (None) it has no counter that could."""

    dialect: str | None
    proven: bool | None
    detail: str


class Watch:
    """Heartbeat, scrapes and hand-off probes of all engines, until it is stopped."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self.findings: dict[tuple[str, str], Finding] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._misses: dict[str, int] = {}

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._heartbeats(), name="heartbeats"),
            loop.create_task(self._scrapes(), name="scrapes"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def complete(self) -> bool:
        """Whether every pair has been judged."""
        return all(pair in self.findings for pair in self._pairs())

    def _pairs(self) -> list[tuple[str, str]]:
        engines = self._conductor.engines.values()
        gpus = [e.state.name for e in engines if e.state.role == GPU]
        cpus = [e.state.name for e in engines if e.state.role == CPU]
        return [(gpu, cpu) for gpu in gpus for cpu in cpus]

    # -- engines ----------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(self._conductor.config["heartbeat.interval"])

    async def round(self) -> None:
        """One heartbeat to every engine, then a probe of every pair not judged since it lives."""
        engines = list(self._conductor.engines.values())
        alive = await asyncio.gather(*(self._beat(engine) for engine in engines))
        living = {e.state.name for e, answers in zip(engines, alive) if answers}
        for pair in list(self.findings):
            if not living.issuperset(pair):
                # It may come back as another version; what it spoke before counts no longer.
                del self.findings[pair]
                self._conductor.pins.pop(pair, None)
        for pair in self._pairs():
            if pair not in self.findings and living.issuperset(pair):
                await self._judge(pair)
        self._conductor.dispatcher.wake()

    async def _beat(self, engine: Engine) -> bool:
        config, breaker = self._conductor.config, engine.state.breaker
        name = engine.state.name
        try:
            timeout = config["heartbeat.timeout"]
            status, _ = await wire.get(self._conductor.session, engine.url("/health"), timeout)
            trouble = "" if status == 200 else f"/health answered {status}"
        except _WIRE_ERRORS as error:
            trouble = f"/health: {error or type(error).__name__}"
        if not trouble:
            if self._misses.pop(name, 0) or breaker.trouble:
                log.info("%s answers again", name)
            breaker.succeeded()
            return True
        self._misses[name] = self._misses.get(name, 0) + 1
        breaker.failed(time.monotonic(), trouble)
        if self._misses[name] == config["heartbeat.fail_threshold"]:
            log.warning("%s is held dead: %s", name, trouble)
            self._conductor.interrupt(name, f"held dead: {trouble}")
        return False

    async def _scrapes(self) -> None:
        while True:
            engines = list(self._conductor.engines.values())
            await asyncio.gather(*(self._scrape(engine) for engine in engines))
            self._conductor.dispatcher.wake()
            await asyncio.sleep(self._conductor.config["monitor.interval"])

    async def _scrape(self, engine: Engine) -> None:
        timeout = self._conductor.config["heartbeat.timeout"]
        load = await wire.scraped(self._conductor.session, engine, timeout)
        # An old figure is worse than none: a cache that was full once would keep a gate shut.
        engine.state.waiting = (load.waiting if load else None) or 0.0
        engine.state.cache_usage = (load.cache_usage if load else None) or 0.0

    # -- pairs ------------------------------------------------------------------------------

    async def _judge(self, pair: tuple[str, str]) -> None:
        wanted = self._conductor.config["handoff.dialect"]
        if wanted == "none":
            finding = Finding(None, None, "handoff.dialect is none")
        else:
            names = list(DIALECTS) if wanted == "auto" else [wanted]
            finding = await self._find(pair, names)
        self.findings[pair] = finding
        if finding.dialect is not None:
            self._conductor.pins[pair] = DIALECTS[finding.dialect]
        log.log(
            logging.INFO if finding.dialect or wanted == "none" else logging.WARNING,
            "hand-off %s > %s: %s (%s)", *pair, finding.dialect or "none", finding.detail,
        )  # fmt: skip

    async def _find(self, pair: tuple[str, str], names: list[str]) -> Finding:
        gpu, cpu = (self._conductor.engines[name] for name in pair)
        reasons = []
        for name in names:
            try:
                finding = await self._try(gpu, cpu, DIALECTS[name])
            except _WIRE_ERRORS as error:
                finding = Finding(None, None, f"{type(error).__name__}: {error}")
            # Where nothing is said on the wire, only a counter tells a hand-off from two answers.
            if finding.dialect is not None and (finding.proven or name != "shared"):
                if finding.proven is not False:
                    return finding
                finding = Finding(None, False, "the decoding engine's counter shows no transfer")
            elif finding.dialect is not None and names == ["shared"] and finding.proven is None:
                return finding._replace(detail="as configured; the engine has no counter to ask")
            reasons.append(f"{name}: {finding.detail}")
        return Finding(None, None, "; ".join(reasons))

    async def _try(self, gpu: Engine, cpu: Engine, dialect: Dialect) -> Finding:
        """Hand two tokens' worth of work over in *dialect*, and see whether it arrived."""
        conductor = self._conductor
        timeout = conductor.config["handoff.probe_timeout"]
        session, headers = conductor.session, conductor.upstream_headers(_PROBE_ID, None)
        prompt = _probe_prompt(await self._model(gpu), dialect)
        before = await wire.scraped(session, cpu, timeout)
        url = gpu.url(prompts.CHAT)
        status, reply = await wire.post(session, url, dialect.prefill(prompt), headers, timeout)
        if status != 200 or not isinstance(reply, dict):
            return Finding(None, None, f"{gpu.state.name} answered the prefill with {status}")
        meaning = dialect.read(prompt, reply)
        if not isinstance(meaning, Decode):
            why = meaning.reason if isinstance(meaning, NoHandOff) else "it answered everything"
            return Finding(None, None, f"{gpu.state.name}: {why}")
        url = cpu.url(prompts.CHAT)
        status, reply = await wire.post(session, url, meaning.body, headers, timeout)
        if status != 200 or not isinstance(reply, dict) or not reply.get("choices"):
            return Finding(None, None, f"{cpu.state.name} answered the decode with {status}")
        after = await wire.scraped(session, cpu, timeout)
        proven = after.shows_transfer_since(before) if before and after else None
        detail = "seen in the engine's counters" if proven else "answered; no counter to prove it"
        return Finding(dialect.name, proven, detail)

    async def _model(self, engine: Engine) -> str:
        default = self._conductor.config["models.default"]
        if default is not None:
            return str(default)
        timeout = self._conductor.config["handoff.probe_timeout"]
        _, text = await wire.get(self._conductor.session, engine.url("/v1/models"), timeout)
        try:
            return str(json.loads(text)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise aiohttp.ClientPayloadError(f"{engine.state.name} names no model") from None


def _probe_prompt(model: str, dialect: Dialect) -> Prompt:
    # The dialect's name goes first: a prompt prefilled for one would be in the cache for the next.
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{dialect.name} {_PROBE_TEXT}"}],
        "max_tokens": 2,
        "temperature": 0,
    }
    return Prompt(prompts.CHAT, json.dumps(body).encode(), body, _PROBE_ID)
