# SPDX-License-Identifier: Apache-2.0
"""Engines over HTTP: kept connections for what generates, one aiohttp session for all the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from . import config, scrape
from .breaker import Breaker
from .connection import Pool
from .scheduler import EngineState


def new_session(connect_timeout: float) -> aiohttp.ClientSession:
    """The session of heartbeats, scrapes, probes and forwarded pages."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, enable_cleanup_closed=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    )


class Engine:
    """One engine: where it is, and what is known of it."""

    def __init__(self, where: config.Engine, breaker: Breaker) -> None:
        self.where = where
        self.state = EngineState(where.name, where.role, breaker)
        self.pool = Pool(where.reached_at, where.port)
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
