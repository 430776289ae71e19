# SPDX-License-Identifier: Apache-2.0
"""Engines over HTTP: one shared aiohttp session, and the faults of the wire in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from . import config, exchange, scrape
from .breaker import Breaker
from .scheduler import EngineState


def new_session(connect_timeout: float) -> aiohttp.ClientSession:
    """The session all engines share. The conductor times answers: it knows their phase."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, enable_cleanup_closed=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    )


def fault_of(error: BaseException) -> tuple[str, str]:
    """Kind and words of what went wrong on the wire."""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError)):
        return exchange.CONNECT, str(error) or type(error).__name__
    if isinstance(error, asyncio.TimeoutError):
        return exchange.CONNECT, "it did not accept the connection in time"
    return exchange.BROKEN, f"{type(error).__name__}: {error}"


class Engine:
    """One engine: where it is, and what is known of it."""

    def __init__(self, where: config.Engine, breaker: Breaker) -> None:
        self.where = where
        self.state = EngineState(where.name, where.role, breaker)
        self._urls: dict[str, URL] = {}

    def url(self, path: str) -> URL:
        # Parsing a URL costs as much as sending a small request.
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self.where.url + path, encoded=True)
        return url


async def get(session: aiohttp.ClientSession, url: URL, timeout: float) -> tuple[int, str]:
    """Status and text of a small page, within *timeout* seconds in all."""
    limit = aiohttp.ClientTimeout(total=timeout)
    async with session.get(url, timeout=limit) as response:
        return response.status, await response.text(errors="replace")


async def post(
    session: aiohttp.ClientSession,
    url: URL,
    body: bytes,
    headers: Mapping[str, str],
    timeout: float,
) -> tuple[int, Any]:
    """Status and JSON (None where it is none) of a small exchange."""
    limit = aiohttp.ClientTimeout(total=timeout)
    async with session.post(url, data=body, headers=headers, timeout=limit) as response:
        try:
            return response.status, await response.json(content_type=None)
        except ValueError:
            return response.status, None


async def scraped(
    session: aiohttp.ClientSession, engine: Engine, timeout: float
) -> scrape.Load | None:
    """The engine's load, or None where it has no metrics or does not answer."""
    try:
        status, text = await get(session, engine.url("/metrics"), timeout)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return None
    return scrape.parse(text) if status == 200 else None
