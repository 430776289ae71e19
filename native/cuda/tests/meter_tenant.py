# SPDX-License-Identifier: Apache-2.0
"""What a tenant does with a card, for test_meter.py: ``meter_tenant.py NAME ARGUMENTS…``.

A scenario prints JSON at its end. Those that are led from outside print a line where they are told
to go on by a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

PTR = ctypes.c_void_p
LEGACY, PER_THREAD = PTR(1), PTR(2)
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NON_BLOCKING = 1
KERNEL_NODE = 0
US, MS = 1_000, 1_000_000
Result = dict[str, Any]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("shape", ctypes.c_uint * 6),
        ("shared_bytes", ctypes.c_uint),
        ("stream", PTR),
        ("attributes", PTR),
        ("attribute_count", ctypes.c_uint),
    )


class LaunchParameters(ctypes.Structure):
    """CUDA_LAUNCH_PARAMS."""

    _fields_ = (
        ("function", PTR),
        ("shape", ctypes.c_uint * 6),
        ("shared_bytes", ctypes.c_uint),
        ("stream", PTR),
        ("parameters", PTR),
    )


class Card:
    """The driver, a context of one device current and, where there is PTX, ``spin_ns`` loaded."""

    def __init__(self, ptx: str, device: int = 0) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.must("cuInit", 0)
        self.context, self.function = PTR(), PTR(0x1000)
        self.must("cuCtxCreate_v2", ctypes.byref(self.context), 0, device)
        if ptx != "stub":
            self.load(ptx)

    def load(self, ptx: str) -> None:
        """Load the kernel into the current context."""
        module = PTR()
        with open(ptx, "rb") as text:
            self.must("cuModuleLoadData", ctypes.byref(module), text.read() + b"\0")
        self.must("cuModuleGetFunction", ctypes.byref(self.function), module, b"spin_ns")

    def code(self, name: str, *arguments: object) -> int:
        """CUDA's answer."""
        answer: int = getattr(self.library, name)(*arguments)
        return answer

    def must(self, name: str, *arguments: object) -> None:
        """A call that must succeed."""
        code = self.code(name, *arguments)
        assert code == 0, f"{name} answered {code}"

    def spin(self, ns: int, stream: PTR | None = None, name: str = "cuLaunchKernel") -> int:
        """A kernel of so long; CUDA's answer."""
        length = ctypes.c_uint64(ns)
        parameters = (PTR * 1)(ctypes.addressof(length))
        shape = (1,) * 6
        if name.startswith("cuLaunchKernelEx"):
            config = LaunchConfig((ctypes.c_uint * 6)(*shape), 0, stream, None, 0)
            return self.code(name, ctypes.byref(config), self.function, parameters, None)
        if name == "cuLaunchCooperativeKernelMultiDevice":
            one = LaunchParameters(
                self.function, (ctypes.c_uint * 6)(*shape), 0, stream, ctypes.addressof(parameters)
            )
            return self.code(name, ctypes.byref(one), 1, 0)
        if name == "cuLaunch":  # the stub's kernels of this kind last as many ns as their address
            return self.code(name, PTR(ns))
        if name == "cuLaunchGrid":
            return self.code(name, PTR(ns), 1, 1)
        if name == "cuLaunchGridAsync":
            return self.code(name, PTR(ns), 1, 1, stream)
        extra = () if "Cooperative" in name else (None,)
        return self.code(name, self.function, *shape, 0, stream, parameters, *extra)

    def synchronise(self) -> None:
        """Wait for everything."""
        self.must("cuCtxSynchronize")

    def stream(self, flags: int = NON_BLOCKING) -> PTR:
        """A new stream."""
        made = PTR()
        self.must("cuStreamCreate", ctypes.byref(made), flags)
        return made

    def event(self) -> PTR:
        """A new event without timing."""
        made = PTR()
        self.must("cuEventCreate", ctypes.byref(made), 2)
        return made

    def executable(self, kernels: int, ns: int) -> PTR:
        """A captured graph of so many kernels."""
        stream, graph, made = self.stream(), PTR(), PTR()
        self.must("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        for _ in range(kernels):
            assert self.spin(ns, stream) == 0
        self.must("cuStreamEndCapture", stream, ctypes.byref(graph))
        self.must("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_uint64(0))
        return made


def told() -> None:
    """Say that a step is done, and wait to be told to go on."""
    print("{}", flush=True)
    sys.stdin.readline()


def work() -> Result:
    """COUNT launches of NS by the function NAME, every eighth followed by a wait."""
    card, name = Card(sys.argv[2]), sys.argv[3]
    count, ns = int(sys.argv[4]), int(sys.argv[5])
    graph = card.executable(5, ns // 5) if name.startswith("cuGraphLaunch") else None
    stream = None if sys.argv[2] == "stub" or "ptsz" in name else card.stream()
    codes = set()
    for number in range(count):
        if graph is None:
            codes.add(card.spin(ns, stream, name))
        else:
            codes.add(card.code(name, graph, stream))
        if number % 8 == 7:
            card.synchronise()
    card.synchronise()
    return {"pid": os.getpid(), "codes": sorted(codes)}


def long_then_short() -> Result:
    """A kernel of NS, waited for; then, when told, one of a millisecond."""
    card = Card(sys.argv[2])
    assert card.spin(int(sys.argv[3])) == 0
    card.synchronise()
    told()
    assert card.spin(MS) == 0
    card.synchronise()
    return {"pid": os.getpid()}


def in_threads() -> Result:
    """Two threads, each in its own default stream, or both in the one stream of all."""
    card, per_thread = Card(sys.argv[2]), sys.argv[4] == "own"
    suffix = "_ptsz" if per_thread else ""

    def one() -> None:
        card.must("cuCtxSetCurrent", card.context)
        for _ in range(int(sys.argv[3])):
            for _ in range(4):
                assert card.spin(500 * US, None, f"cuLaunchKernel{suffix}") == 0
            card.must(f"cuStreamSynchronize{suffix}", None)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    card.synchronise()
    return {"pid": os.getpid()}


def reopened() -> Result:
    """The driver closed with work under way, and opened again, ten times."""
    card, codes = Card("stub"), set()
    for _ in range(10):
        for _ in range(5):
            codes.add(card.spin(MS))
        handle = ctypes.c_void_p(card.library._handle)
        assert ctypes.CDLL(None).dlclose(handle) == 0
        card.library = ctypes.CDLL("libcuda.so.1")
    card.synchronise()
    return {"codes": sorted(codes)}


def clock_jump() -> Result:
    """20 kernels of 2 ms, then the clock starts anew, then 20 more."""
    card = Card("stub")
    for number in range(40):
        if number == 20:
            ctypes.CDLL(None).jump(ctypes.c_longlong(int(sys.argv[2])))
        assert card.spin(2 * MS) == 0
        if number % 4 == 3:
            card.synchronise()
    return {}


def many_streams() -> Result:
    """ROUNDS times 40 streams at once, each destroyed with its work under way."""
    card = Card(sys.argv[2])
    for _ in range(int(sys.argv[3])):
        streams = [card.stream() for _ in range(40)]
        for stream in streams:
            for _ in range(3):  # the last two are a stretch that is still open when the stream ends
                assert card.spin(100 * US, stream) == 0
        for stream in streams:
            card.must("cuStreamDestroy_v2", stream)
        card.synchronise()
    return {"pid": os.getpid()}


def many_contexts() -> Result:
    """40 contexts at once, then their destruction with work under way."""
    card = Card(sys.argv[2])
    contexts = []
    for _ in range(40):
        context = PTR()
        card.must("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
        card.load(sys.argv[2])
        contexts.append(context)
        for _ in range(3):
            assert card.spin(500 * US) == 0
    card.synchronise()
    codes = set()
    for context in contexts:
        codes.add(card.code("cuCtxDestroy_v2", context))
    card.must("cuCtxSetCurrent", card.context)
    card.load(sys.argv[2])
    for _ in range(20):
        codes.add(card.spin(MS))
    card.synchronise()
    return {"pid": os.getpid(), "codes": sorted(codes)}


def resets() -> Result:
    """The primary context, reset with work under way, again and again."""
    card = Card(sys.argv[2])
    codes = set()
    for _ in range(10):
        primary = PTR()
        card.must("cuDevicePrimaryCtxRetain", ctypes.byref(primary), 0)
        card.must("cuCtxSetCurrent", primary)
        card.load(sys.argv[2])
        for _ in range(5):
            codes.add(card.spin(2 * MS))
        codes.add(card.code("cuDevicePrimaryCtxReset_v2", 0))
    return {"pid": os.getpid(), "codes": sorted(codes)}


def forks() -> Result:
    """Children of a process whose other threads launch all the time; each launches too."""
    card = Card("stub")
    stop = threading.Event()

    def launch() -> None:
        while not stop.is_set():
            assert card.spin(10 * US) == 0

    threads = [threading.Thread(target=launch) for _ in range(2)]
    for thread in threads:
        thread.start()
    ends = []
    for _ in range(int(sys.argv[2])):
        child = os.fork()
        if child == 0:
            for _ in range(20):
                if card.spin(10 * US) != 0:
                    os._exit(1)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    return {"ends": sorted(set(ends))}


def two_cards() -> Result:
    """Two threads, one on each card, until told to end."""
    cards = [Card(sys.argv[2], device) for device in range(2)]
    stop = threading.Event()

    def one(card: Card) -> None:
        card.must("cuCtxSetCurrent", card.context)
        while not stop.is_set():
            for _ in range(4):
                assert card.spin(MS) == 0
            card.synchronise()

    threads = [threading.Thread(target=one, args=(card,)) for card in cards]
    for thread in threads:
        thread.start()
    told()
    stop.set()
    for thread in threads:
        thread.join()
    return {}


class Chance:
    """A random walk through captures and launches; what it did and what CUDA said is its record."""

    STREAMS = 4

    def __init__(self, card: Card, seed: int) -> None:
        self.card, self.random = card, random.Random(seed)
        # One stream that the legacy stream waits for, so that it can spoil a capture.
        self.streams = [card.stream(0 if number == 0 else NON_BLOCKING) for number in range(4)]
        self.events = [card.event() for _ in range(4)]
        self.graphs: list[PTR] = []
        self.record: list[Any] = []

    def note(self, what: str, *values: object) -> None:
        self.record.append([what, *values])

    def step(self) -> None:
        """One random call."""
        card, at = self.card, self.random.randrange(self.STREAMS)
        stream, other = self.streams[at], self.streams[self.random.randrange(self.STREAMS)]
        what = self.random.choices(
            ["launch", "begin", "end", "fork", "graph", "wait", "destroy", "legacy"],
            [12, 3, 4, 3, 3, 1, 1, 1],
        )[0]
        if what == "launch":
            self.note(what, at, card.spin(self.random.choice([20, 200, 1500]) * US, stream))
        elif what == "begin":
            mode = self.random.randrange(3)
            self.note(what, at, mode, card.code("cuStreamBeginCapture_v2", stream, mode))
        elif what == "end":
            self.end(at, stream)
        elif what == "fork":
            event = self.random.choice(self.events)
            recorded = card.code("cuEventRecord", event, stream)
            self.note(what, at, recorded, card.code("cuStreamWaitEvent", other, event, 0))
        elif what == "graph" and self.graphs:
            self.note(what, at, card.code("cuGraphLaunch", self.random.choice(self.graphs), stream))
        elif what == "wait":
            self.note(what, at, card.code("cuStreamSynchronize", stream))
        elif what == "destroy":
            self.note(what, at, card.code("cuStreamDestroy_v2", stream))
            self.streams[at] = card.stream(0 if at == 0 else NON_BLOCKING)
        elif what == "legacy":
            self.note(what, card.spin(50 * US))

    def end(self, at: int, stream: PTR) -> None:
        """End a capture, if there is one; a whole graph is kept to be launched."""
        graph, count, made = PTR(), ctypes.c_size_t(), PTR()
        code = self.card.code("cuStreamEndCapture", stream, ctypes.byref(graph))
        if code == 0:
            self.card.must("cuGraphGetNodes", graph, None, ctypes.byref(count))
            instantiate = "cuGraphInstantiateWithFlags"
            self.card.must(instantiate, ctypes.byref(made), graph, ctypes.c_uint64(0))
            self.graphs.append(made)
        self.note("end", at, code, count.value)


def captures() -> Result:
    """STEPS random calls of SEED in one thread."""
    walk = Chance(Card(sys.argv[2]), int(sys.argv[3]))
    for _ in range(int(sys.argv[4])):
        walk.step()
    return {"record": walk.record}


def captures_beside_launches() -> Result:
    """ROUNDS captures, in each mode in turn, while other threads launch in streams of their own."""
    card = Card(sys.argv[2])
    stop = threading.Event()
    failed = []

    def launch() -> None:
        card.must("cuCtxSetCurrent", card.context)
        stream = card.stream()
        while not stop.is_set():
            code = card.spin(20 * US, stream)
            if code != 0:
                failed.append(code)

    threads = [threading.Thread(target=launch) for _ in range(2)]
    for thread in threads:
        thread.start()
    stream, graph, count = card.stream(), PTR(), ctypes.c_size_t()
    ends = []
    for number in range(int(sys.argv[3])):
        card.must("cuStreamBeginCapture_v2", stream, number % 3)
        answers = {card.spin(10 * US, stream) for _ in range(100)}
        code = card.code("cuStreamEndCapture", stream, ctypes.byref(graph))
        if code == 0:
            card.must("cuGraphGetNodes", graph, None, ctypes.byref(count))
        ends.append([code, count.value, *sorted(answers)])
    stop.set()
    for thread in threads:
        thread.join()
    return {"ends": ends, "failed": failed, "pid": os.getpid()}


def bad_ends() -> Result:
    """Captures that are asked to end at the wrong stream, spoilt, or lost with their stream."""
    card = Card(sys.argv[2])
    graph, event = PTR(), card.event()
    for mode in range(3):
        origin, joined = card.stream(), card.stream()
        card.must("cuStreamBeginCapture_v2", origin, mode)
        card.must("cuEventRecord", event, origin)
        card.must("cuStreamWaitEvent", joined, event, 0)
        assert card.code("cuStreamEndCapture", joined, ctypes.byref(graph)) != 0
        assert card.code("cuStreamEndCapture", origin, ctypes.byref(graph)) != 0
        card.must("cuStreamBeginCapture_v2", origin, mode)
        assert card.code("cuStreamBeginCapture_v2", origin, mode) != 0
        card.must("cuStreamDestroy_v2", origin)
    codes = set()
    for _ in range(40):
        codes.add(card.spin(2 * MS))
        card.synchronise()
        codes.add(card.spin(1 * MS))
    card.synchronise()
    return {"pid": os.getpid(), "codes": sorted(codes)}


def main() -> int:
    """Run the scenario named by the first argument."""
    scenarios: dict[str, Callable[[], Result]] = {
        "work": work,
        "long_then_short": long_then_short,
        "in_threads": in_threads,
        "reopened": reopened,
        "clock_jump": clock_jump,
        "many_streams": many_streams,
        "many_contexts": many_contexts,
        "resets": resets,
        "forks": forks,
        "two_cards": two_cards,
        "captures": captures,
        "bad_ends": bad_ends,
        "captures_beside_launches": captures_beside_launches,
    }
    print(json.dumps(scenarios[sys.argv[1]]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
