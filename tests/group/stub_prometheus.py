# SPDX-License-Identifier: GPL-3.0-or-later
"""A Prometheus that knows one number: every query is answered with what stands in a file.

    stub_prometheus.py PORT FILE

Answers ``/api/v1/query`` as Prometheus does; without the file there is no series, as there is none
of an engine without pods. Its log has a line for each request.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def answer(file: Path) -> dict[str, object]:
    """An instant vector of one series, or of none."""
    text = file.read_text().strip() if file.exists() else ""
    series = [{"metric": {}, "value": [0, text]}] if text else []
    return {"status": "success", "data": {"resultType": "vector", "result": series}}


class Api(BaseHTTPRequestHandler):
    file: Path

    def do_GET(self) -> None:
        known = self.path.startswith("/api/v1/query?")
        body = json.dumps(answer(self.file) if known else {"status": "error"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Api.file = Path(sys.argv[2])
    ThreadingHTTPServer(("", int(sys.argv[1])), Api).serve_forever()
