# SPDX-License-Identifier: GPL-3.0-or-later
"""A tenant that keeps one GPU busy and takes memory when told to, by the CUDA driver API alone.

``gpu_load.py serve`` launches timed kernels back to back with a bounded queue and answers HTTP::

    GET  /healthz               200 as soon as kernels run
    GET  /state                 JSON: memory shown and held, launches, nanoseconds of work asked for
    POST /allocate?bytes=4GiB   200, or 507 with CUDA's name of the refusal; the load keeps running
    POST /free                  give back everything allocated by /allocate

``gpu_load.py ask allocate 4GiB`` (also ``free``, ``state``) is the client, so that a test needs
nothing but this file in the container. It exits 0 when the answer was 2xx, 1 otherwise.

Python's standard library and a ``libcuda.so.1`` are all it needs: the kernel is PTX text that the
driver compiles, on a real card as on a simulated one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# The kernel of tests/simulators/kernels/spin.ptx; a test holds the two equal.
SPIN_PTX = b"""
.version 6.0
.target sm_50
.address_size 64

.visible .entry spin_ns(
    .param .u64 spin_ns_param_ns
)
{
    .reg .pred %more;
    .reg .b64 %begin, %now, %passed, %wanted;

    ld.param.u64 %wanted, [spin_ns_param_ns];
    mov.u64 %begin, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.s64 %passed, %now, %begin;
    setp.lt.u64 %more, %passed, %wanted;
    @%more bra again;
    ret;
}
"""

SUCCESS = 0
BLOCKING_SYNC, DISABLE_TIMING = 1, 2
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
PORT = 8000


class CudaError(RuntimeError):
    """A driver call that failed: its name, CUDA's code and name."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.code, self.name = code, name


def parse_bytes(text: str) -> int:
    """``4GiB``, ``512MiB`` or a plain number of bytes."""
    found = re.fullmatch(r"(\d+)(|[KMG]iB)", text.strip())
    if not found:
        raise ValueError(f"'{text}' is no size: give bytes, or a number with KiB, MiB or GiB")
    return int(found[1]) * UNITS[found[2]]


class Driver:
    """The few calls of the driver API used here, with errors as exceptions."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._library = ctypes.CDLL(library)

    def call(self, name: str, *arguments: Any) -> None:
        """Call *name*; raises CudaError unless it succeeded."""
        code = getattr(self._library, name)(*arguments)
        if code != SUCCESS:
            raise CudaError(name, code, self._name(code))

    def _name(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(text)) != SUCCESS or not text.value:
            return f"CUDA error {code}"
        return text.value.decode()


class Card:
    """One context on one device. Every thread that uses it calls :meth:`enter` first."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver = driver
        driver.call("cuInit", 0)
        device = ctypes.c_int()
        driver.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self._context = ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()

    def enter(self) -> None:
        """Make the context current in the calling thread."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes as the driver tells this process."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Device pointer of *size* fresh bytes."""
        pointer = ctypes.c_uint64()
        self.driver.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give back what :meth:`allocate` returned."""
        self.driver.call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def kernel(self) -> ctypes.c_void_p:
        """The function ``spin_ns``, compiled by the driver from its PTX."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.driver.call("cuModuleLoadData", ctypes.byref(module), SPIN_PTX)
        self.driver.call("cuModuleGetFunction", ctypes.byref(function), module, b"spin_ns")
        return function


class Load:
    """Kernels of a fixed length, back to back, at most *depth* of them unfinished."""

    def __init__(self, card: Card, kernel_ns: int, depth: int) -> None:
        self._card, self._kernel_ns, self._depth = card, kernel_ns, depth
        self.launches = 0
        self.error: CudaError | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        """Launch until stopped or refused; the refusal is kept in ``error``."""
        try:
            self._loop()
        except CudaError as error:
            self.error = error

    def _loop(self) -> None:
        card, call = self._card, self._card.driver.call
        card.enter()
        function = card.kernel()
        length = ctypes.c_uint64(self._kernel_ns)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(length))
        events = [self._event() for _ in range(self._depth)]
        while not self.stop.is_set():
            event = events[self.launches % self._depth]
            if self.launches >= self._depth:
                call("cuEventSynchronize", event)
            call("cuLaunchKernel", function, *(1,) * 6, 0, None, parameters, None)
            call("cuEventRecord", event, None)
            self.launches += 1
        call("cuCtxSynchronize")

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._card.driver.call("cuEventCreate", ctypes.byref(event), BLOCKING_SYNC | DISABLE_TIMING)
        return event

    @property
    def asked_ns(self) -> int:
        """Kernel time launched so far."""
        return self.launches * self._kernel_ns


class Tenant:
    """What the HTTP interface acts on; knows nothing of HTTP."""

    def __init__(self, card: Card, load: Load) -> None:
        self._card, self._load = card, load
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}

    def healthz(self) -> tuple[int, dict[str, Any]]:
        if self._load.error:
            return 500, {"error": str(self._load.error)}
        return (200 if self._load.launches else 503), {"launches": self._load.launches}

    def state(self) -> tuple[int, dict[str, Any]]:
        self._card.enter()
        free, total = self._card.memory()
        status = {
            "pid": os.getpid(),
            "memory_free": free,
            "memory_total": total,
            "memory_held": sum(self._held.values()),
            "launches": self._load.launches,
            "asked_ns": self._load.asked_ns,
            "error": str(self._load.error) if self._load.error else None,
        }
        return 200, status

    def allocate(self, size: int) -> tuple[int, dict[str, Any]]:
        self._card.enter()
        try:
            pointer = self._card.allocate(size)
        except CudaError as error:
            return 507, {"bytes": size, "result": error.code, "name": error.name}
        with self._lock:
            self._held[pointer] = size
        return 200, {"bytes": size, "result": SUCCESS, "name": "CUDA_SUCCESS"}

    def free(self) -> tuple[int, dict[str, Any]]:
        self._card.enter()
        with self._lock:
            held, self._held = self._held, {}
        for pointer in held:
            self._card.free(pointer)
        return 200, {"bytes": sum(held.values()), "result": SUCCESS, "name": "CUDA_SUCCESS"}


def answer(tenant: Tenant, method: str, target: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON body for one request."""
    parts = urlsplit(target)
    if (method, parts.path) == ("POST", "/allocate"):
        try:
            size = parse_bytes(parse_qs(parts.query).get("bytes", [""])[0])
        except ValueError as error:
            return 400, {"error": str(error)}
        return tenant.allocate(size)
    routes: dict[tuple[str, str], Callable[[], tuple[int, dict[str, Any]]]] = {
        ("GET", "/healthz"): tenant.healthz,
        ("GET", "/state"): tenant.state,
        ("POST", "/free"): tenant.free,
    }
    route = routes.get((method, parts.path))
    known = ", ".join(f"{m} {p}" for m, p in [*routes, ("POST", "/allocate?bytes=")])
    return route() if route else (404, {"error": f"no {method} {parts.path}; there is {known}"})


def make_server(tenant: Tenant, port: int) -> ThreadingHTTPServer:
    """The HTTP interface on *port* of every address (a Service reaches it there)."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            try:
                status, body = answer(tenant, self.command, self.path)
            except CudaError as error:
                status, body = 500, {"error": str(error)}
            data = json.dumps(body).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply

        def log_message(self, format: str, *args: Any) -> None:
            """Probes every few seconds would bury what the tenant has to say."""

    return ThreadingHTTPServer(("", port), Handler)


def serve(options: argparse.Namespace) -> int:
    """Run the load and answer until SIGTERM or until the load fails."""
    try:
        card = Card(Driver(), options.device)
    except (CudaError, OSError) as error:
        print(f"gpu_load: no usable GPU: {error}", file=sys.stderr)
        return 1
    load = Load(card, options.kernel_us * 1000, options.depth)
    server = make_server(Tenant(card, load), options.port)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    worker = threading.Thread(target=load.run, name="load")
    signal.signal(signal.SIGTERM, lambda *_: load.stop.set())
    signal.signal(signal.SIGINT, lambda *_: load.stop.set())
    worker.start()
    say = f"gpu_load: {options.kernel_us}-us kernels, depth {options.depth}, port {options.port}"
    print(say, flush=True)
    while worker.is_alive():
        time.sleep(0.2)  # in slices: a signal handler runs only between them
    server.shutdown()
    if load.error:
        print(f"gpu_load: {load.error}", file=sys.stderr)
    return 1 if load.error else 0


def ask(options: argparse.Namespace) -> int:
    """Send one request to a serving instance and print its answer."""
    target = {"allocate": f"/allocate?bytes={options.size}", "free": "/free", "state": "/state"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{options.port}{target[options.what]}",
        method="GET" if options.what == "state" else "POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            print(response.read().decode(), end="")
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode(), end="")
    except urllib.error.URLError as error:
        print(f"gpu_load: nothing answers on port {options.port}: {error.reason}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="gpu_load.py", description=(__doc__ or "").splitlines()[0])
    top.add_argument("--port", type=int, default=PORT)
    verbs = top.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve", help="run the load and answer HTTP")
    serving.add_argument("--device", type=int, default=0, help="ordinal of the GPU")
    serving.add_argument("--kernel-us", type=int, default=5000, help="length of one kernel")
    serving.add_argument("--depth", type=int, default=4, help="kernels in the queue")
    serving.set_defaults(run=serve)
    asking = verbs.add_parser("ask", help="send one request to a serving instance")
    asking.add_argument("what", choices=["allocate", "free", "state"])
    asking.add_argument("size", nargs="?", default="0", help="for allocate: 4GiB, 512MiB, bytes")
    asking.set_defaults(run=ask)
    return top


def main() -> int:
    """Entry point."""
    options = parser().parse_args()
    result: int = options.run(options)
    return result


if __name__ == "__main__":
    sys.exit(main())
