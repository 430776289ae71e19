# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine that computes nothing and is spread over a Ray cluster: a rank on each node.

PYTHONPATH=<ray>/site python engine.py MEMBERS
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Rank:
    """One node's part of a token."""

    def step(self) -> str:
        return "x"


# What Ray makes of it has no type.
Spread: Any = ray.remote(num_cpus=1)(Rank)


def ranks(members: int) -> list[Any]:
    """One on each node, once there are *members* of them."""
    ray.init(address="auto", log_to_driver=False)
    while True:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        if len(nodes) >= members:
            break
        time.sleep(0.5)
    return [
        Spread.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in nodes
    ]


class Api(BaseHTTPRequestHandler):
    """Health, and a token of all ranks."""

    ranks: list[Any]

    def do_GET(self) -> None:
        self._say(200, {})

    def do_POST(self) -> None:
        try:
            said = ray.get([rank.step.remote() for rank in self.ranks], timeout=60)
        except ray.exceptions.RayError as error:
            print(f"EngineDeadError: {error}", file=sys.stderr)
            os._exit(1)
        self._say(200, {"choices": [{"text": "".join(said)}]})

    def _say(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No news."""


def main() -> None:
    Api.ranks = ranks(int(sys.argv[1]))
    ray.get([rank.step.remote() for rank in Api.ranks])
    ThreadingHTTPServer((os.environ["POD_IP"], 8000), Api).serve_forever()


if __name__ == "__main__":
    main()
