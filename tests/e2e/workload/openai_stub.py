# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for vLLM on hosts without a real card: the same requests, a log line, no model.

Healthy only after a while, as an engine is that loads weights.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOADING_S = 3
STARTED = time.monotonic()
NAME = sys.argv[1]
PORT = int(sys.argv[2])
CHAT = "/v1/chat/completions"


class Handler(BaseHTTPRequestHandler):
    """Health, description and chat."""

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200 if time.monotonic() - STARTED > LOADING_S else 503, {})
        elif self.path == "/openapi.json":
            self._answer(200, {"openapi": "3.1.0", "paths": {CHAT: {"post": {}}}})
        else:
            self._answer(404, {"error": {"message": self.path}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != CHAT or asked["model"] != NAME:
            self._answer(404, {"error": {"message": f"{self.path} of {asked.get('model')}"}})
            return
        said = f"You asked: {asked['messages'][-1]['content']}"
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer(200, {"object": "chat.completion", "model": NAME, "choices": [choice]})

    def log_message(self, *arguments: Any) -> None:
        """Probes would fill the log."""


print(f"INFO Starting vLLM API server on http://0.0.0.0:{PORT} (a stub)", flush=True)
ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
