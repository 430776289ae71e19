# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine that computes nothing and lives and dies like vLLM's mp backend over several machines.

What is copied, and was seen with vLLM 0.32 (test_vllm.py looks again at dead workers):

- main → core → rank: a tree of processes, each ends with status 1 when its child has died;
- rank 0 binds the rendezvous and waits there for the others; only then does the API listen;
- a token is a step of all ranks. One that is dead makes it fail: the request gets 500, the engine
  ends. One that hangs makes it hang. ``/health`` knows of neither;
- a rank whose leader has gone complains for ever and never ends;
- SIGTERM to main: no new requests, those begun are finished, the end.
SIGUSR1 makes a rank hang.

The rank has a session of its own, as Ray's daemons have.

    stub_engine.py leader|worker

Environment: LWS_GROUP_SIZE, LWS_WORKER_INDEX, POD_IP, FLEXAI_LEADER_IP, STUB_TOKEN_SECONDS.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIZE = int(os.environ.get("LWS_GROUP_SIZE", "1"))
INDEX = int(os.environ.get("LWS_WORKER_INDEX", "0"))
HERE = os.environ.get("POD_IP", "0.0.0.0")
LEADER = os.environ.get("FLEXAI_LEADER_IP", HERE)
API_PORT = 8000
PORT = 29501
TOKEN_S = float(os.environ.get("STUB_TOKEN_SECONDS", "0"))
MODEL = "stub"
CHAT = "/v1/chat/completions"


def say(text: str) -> None:
    print(f"stub {INDEX} pid {os.getpid()}: {text}", file=sys.stderr, flush=True)


def name(kind: str) -> None:
    """As vLLM names its processes; the tests find them by it."""
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(f"stub-{kind}")


def end_with_child(pid: int, kind: str) -> None:
    status = os.waitpid(pid, 0)[1]
    say(f"EngineDeadError: {kind} has died ({status})")
    os._exit(1)


def grow(channel: socket.socket) -> None:
    """main's child and grandchild: core watches rank, rank works."""
    core = os.fork()
    if core:
        threading.Thread(target=end_with_child, args=(core, "core"), daemon=True).start()
        return
    name("core")
    rank = os.fork()
    if rank:
        channel.close()
        end_with_child(rank, "rank")
    os.setsid()
    name("rank")
    signal.signal(signal.SIGUSR1, hang)
    if INDEX == 0:
        lead(channel)
    else:
        follow()
    os._exit(1)


def hang(*_: object) -> None:
    """What a collective does that one side never enters: no end, and no sign of it."""
    while True:
        time.sleep(3600)


def lead(channel: socket.socket) -> None:
    """Rank 0: the rendezvous, then a step for each byte from main."""
    door = socket.create_server((HERE, PORT), backlog=64)
    peers: dict[int, socket.socket] = {}
    while len(peers) < SIZE - 1:
        peer = door.accept()[0]
        said = peer.recv(16)
        if said.startswith(b"rank "):
            peers[int(said.split()[1])] = peer
    channel.sendall(b"r")
    while channel.recv(1):
        try:
            for peer in peers.values():
                peer.sendall(b"s")
            dead = [index for index, peer in peers.items() if not peer.recv(1)]
        except OSError as error:
            say(f"step failed: {error}")
            dead = [-1]
        if dead:
            channel.sendall(b"x")
            channel.recv(1)  # main says so to its client first
            return
        time.sleep(TOKEN_S)
        channel.sendall(b"t")


def follow() -> None:
    """A rank of another member: answers each step of its leader, and never ends of itself."""
    while True:
        try:
            leader = socket.create_connection((LEADER, PORT))
            break
        except OSError:
            time.sleep(0.05)
    leader.sendall(f"rank {INDEX} ".encode())
    try:
        while leader.recv(1):
            leader.sendall(b"t")
    except OSError as error:
        say(str(error))
    while True:
        say("recvValue failed: connection closed by the leader")
        time.sleep(0.1)


class Api(BaseHTTPRequestHandler):
    """What the supervisor, a client and a monitor ask of an engine."""

    channel: socket.socket
    lock = threading.Lock()
    busy = 0
    tokens = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self._say(200, {})
        elif self.path == "/v1/models":
            self._say(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif self.path == "/openapi.json":
            self._say(200, {"openapi": "3.1.0", "paths": {CHAT: {"post": {}}}})
        elif self.path == "/metrics":
            self._send(200, f"vllm:generation_tokens_total {Api.tokens}\n".encode(), "text/plain")
        else:
            self._say(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("model") != MODEL:
            self._say(404, {"error": {"message": f"no model {body.get('model')}"}})
            return
        Api.busy += 1
        try:
            for _token in range(body.get("max_tokens", 1)):
                with Api.lock:
                    self.channel.sendall(b"s")
                    answer = self.channel.recv(1)
                    Api.tokens += answer == b"t"
                if answer != b"t":
                    self._say(500, {"error": {"message": "EngineDeadError"}})
                    os._exit(1)
            text = "x" * body.get("max_tokens", 1)
            said = {"message": {"role": "assistant", "content": text}}
            self._say(200, {"choices": [said if self.path == CHAT else {"text": text}]})
        finally:
            Api.busy -= 1

    def _say(self, status: int, document: object) -> None:
        self._send(status, json.dumps(document).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No news."""


def serve(channel: socket.socket) -> None:
    """main of the leader."""
    if channel.recv(1) != b"r":
        return
    Api.channel = channel
    server = ThreadingHTTPServer((HERE, API_PORT), Api)
    server.daemon_threads = True
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say("Application startup complete")
    while not ending.wait(0.1):
        pass
    server.shutdown()
    say(f"SIGTERM: {Api.busy} requests to finish")
    while Api.busy:
        time.sleep(0.02)
    say("drained")
    os._exit(0)


def main() -> None:
    name("main")
    ours, theirs = socket.socketpair()
    grow(theirs)
    theirs.close()
    if INDEX == 0:
        serve(ours)
    while True:  # headless: its children decide
        time.sleep(3600)


if __name__ == "__main__":
    main()
