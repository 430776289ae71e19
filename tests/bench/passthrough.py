# SPDX-License-Identifier: GPL-3.0-or-later
"""The floor of ``bench-conductor``: a bare raw-ASGI proxy to one engine, that knows nothing."""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn
from yarl import URL


class Passthrough:
    """Forwards a body, and the answer as it comes. No faults, limits, counts, parsing."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.session is None:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
            )
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        url = URL(self.upstream + scope["path"], encoded=True)
        headers = {"Content-Type": "application/json"}
        async with self.session.post(url, data=body, headers=headers) as response:
            kept = [
                (name, value)
                for name, value in response.raw_headers
                if name.lower() in (b"content-type", b"content-length")
            ]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def main(port: int, upstream: str) -> None:
    uvicorn.run(
        Passthrough(upstream),
        host="127.0.0.1",
        port=port,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
