# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader's ear: who of a group is there, and in which epoch. A helper of run.sh.

    python3 group.py ADDRESS PORT SIZE TIMEOUT

It runs in the engine's image, so it needs Python 3.8 and nothing else. run.sh gives orders on
standard input and hears events on standard output, a line each; the end of the input ends it.

    orders   gather EPOCH | open | serving | close
    events   missing EPOCH INDEX… | gathered EPOCH | joined EPOCH | lost EPOCH WHY | deaf WHY

Members ask by HTTP/1.0 (docs/serving-group.md has the dialogue). They are not authenticated:
whoever reaches the port reaches the engine's rendezvous too, and a NetworkPolicy has to keep
others from both.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Tuple
from urllib.parse import parse_qsl, urlsplit

Answer = Tuple[int, str]
LOOK_EVERY_S = 0.25
LONGEST_WHY = 200


class Group:
    """Decides who is there; knows no socket and no clock.

    ``gathering`` until every member has said that it runs no engine, ``starting`` until the
    leader's engine has bound its rendezvous, ``open`` while the epoch can be joined and is served,
    ``over`` from the first loss on: every member is sent back to wait, before run.sh knows.
    """

    def __init__(self, size: int, timeout_s: float) -> None:
        self._members = range(1, size)
        self._timeout_s = timeout_s
        self._phase = "over"
        self._epoch = ""
        self._serving = False
        self._heard: dict[int, float] = {}
        self._joined: dict[int, str] = {}
        self._told: str = ""

    def gather(self, epoch: str) -> None:
        """Begin *epoch*: nobody counts who has not said from now on that it runs no engine."""
        self._phase, self._epoch, self._serving, self._told = "gathering", epoch, False, ""
        self._heard, self._joined = {}, {}

    def open(self) -> None:
        """Let members in; nothing where a loss has come first."""
        if self._phase == "starting":
            self._phase = "open"

    def close(self) -> None:
        """The leader gives the epoch up."""
        self._phase, self._joined = "over", {}

    def serving(self) -> None:
        """The leader's engine answers: members may call themselves ready."""
        self._serving = True

    def ask(self, index: int, launch: str, now: float) -> tuple[Answer, list[str]]:
        """A member without engine asks to be let in, again where an answer was lost."""
        if self._joined.get(index, launch) != launch:
            return (503, "over"), self._lose(f"member {index} started anew")
        self._heard[index] = now
        if self._phase != "open":
            return (503, self._phase), []
        self._joined[index] = launch
        if self._told or len(self._joined) < len(self._members):
            return (200, self._epoch), []
        self._told = "joined"
        return (200, self._epoch), [f"joined {self._epoch}"]

    def beat(self, index: int, launch: str, epoch: str, now: float) -> Answer:
        """A member with an engine says that it lives."""
        if not self._is_in(index, launch, epoch):
            return 409, "over"
        self._heard[index] = now
        return 200, "serving" if self._serving else "forming"

    def down(self, index: int, launch: str, epoch: str, why: str) -> tuple[Answer, list[str]]:
        """A member has lost its engine. Of an epoch that is over already it is no news."""
        if not self._is_in(index, launch, epoch):
            return (409, "over"), []
        return (200, "over"), self._lose(f"member {index}: {why}")

    def look(self, now: float) -> list[str]:
        """What the time alone has changed."""
        if self._phase == "gathering":
            return self._gathered(now)
        if self._phase in ("starting", "open"):
            for index in self._members:
                silent_s = now - self._heard[index]
                if silent_s > self._timeout_s:
                    return self._lose(f"member {index} was not heard of for {silent_s:.0f} s")
        return []

    def has(self, index: int) -> bool:
        """Is there such a member, besides the leader?"""
        return index in self._members

    def epoch(self) -> Answer:
        """For people and monitors."""
        return (200, self._epoch) if self._phase == "open" else (503, self._phase)

    def _is_in(self, index: int, launch: str, epoch: str) -> bool:
        return self._phase == "open" and epoch == self._epoch and self._joined.get(index) == launch

    def _gathered(self, now: float) -> list[str]:
        missing = [
            index
            for index in self._members
            if index not in self._heard or now - self._heard[index] > self._timeout_s
        ]
        if not missing:
            self._phase, self._told = "starting", ""
            return [f"gathered {self._epoch}"]
        event = f"missing {self._epoch} " + " ".join(map(str, missing))
        if event == self._told:
            return []
        self._told = event
        return [event]

    def _lose(self, why: str) -> list[str]:
        self.close()
        return [f"lost {self._epoch} {why}"]


class Ear(ThreadingHTTPServer):
    """Members' requests, each in a thread of its own; the group is behind one lock."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, group: Group, tell: Callable[[str], None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.group, self.lock, self._tell = group, threading.Lock(), tell
        super().__init__((address, port), Request)

    def look(self) -> None:
        """Tell what has changed because nothing came."""
        with self.lock:
            self.tell(self.group.look(time.monotonic()))

    def tell(self, events: list[str]) -> None:
        """Under the lock, so that events are told in the order in which they came to be."""
        for event in events:
            self._tell(event)

    def order(self, line: str) -> None:
        """One order of run.sh."""
        verb, epoch = (*line.split(" ", 1), "")[:2]
        with self.lock:
            if verb == "gather":
                self.group.gather(epoch)
            elif verb == "open":
                self.group.open()
            elif verb == "serving":
                self.group.serving()
            elif verb == "close":
                self.group.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A member that hung up in the middle asks again."""


class Request(BaseHTTPRequestHandler):
    """One question: its shape is checked here, its meaning in Group."""

    server: Ear
    timeout = 5

    def do_GET(self) -> None:
        self._answer(("/epoch", "/beat"))

    def do_POST(self) -> None:
        self._answer(("/down",))

    def _answer(self, paths: tuple[str, ...]) -> None:
        url = urlsplit(self.path)
        if url.path not in paths:
            return self._say(404, "unknown: " + url.path)
        said = dict(parse_qsl(url.query))
        if url.path == "/epoch" and not said:
            with self.server.lock:
                answer = self.server.group.epoch()
            return self._say(*answer)
        index = said.get("idx", "")
        if not (index.isascii() and index.isdigit() and said.get("id")):
            return self._say(400, "idx (a member's index) and id are needed")
        return self._say(*self._ask(url.path, int(index), said))

    def _ask(self, path: str, index: int, said: dict[str, str]) -> Answer:
        group, launch, epoch = self.server.group, said["id"], said.get("epoch", "")
        if not group.has(index):
            return 400, f"no member {index} in this group"
        with self.server.lock:
            if path == "/beat":
                return group.beat(index, launch, epoch, time.monotonic())
            if path == "/epoch":
                answer, events = group.ask(index, launch, time.monotonic())
            else:
                answer, events = group.down(index, launch, epoch, printable(said.get("why", "")))
            self.server.tell(events)
        return answer

    def _say(self, status: int, text: str) -> None:
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A beat each few seconds is no news."""


def printable(text: str) -> str:
    """One line that a log can take, whatever a stranger sent."""
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_WHY] or "no reason given"


def tell(event: str) -> None:
    """One event, in one write."""
    os.write(1, (event + "\n").encode(errors="replace"))


def main(argv: list[str]) -> int:
    address, port, size, timeout_s = argv[1], int(argv[2]), int(argv[3]), float(argv[4])
    try:
        ear = Ear(address, port, Group(size, timeout_s), tell)
    except OSError as error:
        tell(f"deaf {address} port {port}: {error.strerror}")
        return 1
    threading.Thread(target=ear.serve_forever, daemon=True).start()

    def watch() -> None:
        while True:
            ear.look()
            time.sleep(LOOK_EVERY_S)

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        ear.order(line.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
