# SPDX-License-Identifier: Apache-2.0
"""Places on engines, and the queue of requests that wait for one: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from . import scheduler
from .errors import Problem
from .exchange import Route
from .prompts import Prompt
from .scheduler import Busy, EngineState, Gates, Pins, Unserved


class _Waiter:
    """One request in the queue; compared by identity, so that leaving the queue costs nothing."""

    __slots__ = ("future", "prompt")

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.future: asyncio.Future[Route | Problem] = asyncio.get_running_loop().create_future()


class Dispatcher:
    """Gives out places and takes them back. All in one event loop, so no step is divided."""

    def __init__(
        self,
        gates: Gates,
        engines: Sequence[EngineState],
        pins: Pins,
        queue_size: int,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._queue: deque[_Waiter] = deque()
        self.configure(gates, engines, pins, queue_size)

    def configure(
        self, gates: Gates, engines: Sequence[EngineState], pins: Pins, queue_size: int
    ) -> None:
        """Take other settings over; places that are held stay counted with their engines."""
        self._gates = gates
        self._pins = pins
        self._size = queue_size
        self.engines: Mapping[str, EngineState] = {engine.name: engine for engine in engines}

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def acquire(self, prompt: Prompt) -> Route | Problem:
        """A way with places on its engines, waited for if need be; or why there is none."""
        # Who comes later must not overtake those who wait.
        if not self._queue:
            choice = self._choose(prompt)
            if not isinstance(choice, Busy):
                return self._settle(choice)
        if len(self._queue) >= self._size:
            return Problem(
                429, "queue_full", f"all engines are busy and {self._size} requests wait", None, 1
            )
        waiter = _Waiter(prompt)
        self._queue.append(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._queue:
            self._queue.remove(waiter)
        elif not waiter.future.cancelled():
            # It was given a place in the moment it was cancelled.
            given = waiter.future.result()
            if isinstance(given, Route):
                self.give_back(given)
        self.wake()

    def other(self, avoid: frozenset[str]) -> Route | Problem:
        """One engine for a request that others failed; never waits, it had its turn."""
        engines = tuple(self.engines.values())
        return self._settle(scheduler.reroute(self._gates, engines, avoid, self._clock()))

    def free(self, engine: EngineState) -> None:
        """One place on *engine* is free again."""
        engine.running -= 1
        self.wake()

    def give_back(self, route: Route) -> None:
        """All places of a route that was never begun."""
        for name in (route.engine, route.prefill):
            if name is not None and name in self.engines:
                self.free(self.engines[name])

    def wake(self) -> None:
        """Serve from the head of the queue for as long as its head can be served."""
        while self._queue:
            waiter = self._queue[0]
            if waiter.future.done():
                self._queue.popleft()
                continue
            choice = self._choose(waiter.prompt)
            if isinstance(choice, Busy):
                return
            self._queue.popleft()
            waiter.future.set_result(self._settle(choice))

    def _choose(self, prompt: Prompt) -> scheduler.Choice:
        engines = tuple(self.engines.values())
        return scheduler.choose(self._gates, engines, self._pins, prompt, self._clock())

    def _settle(self, choice: scheduler.Choice) -> Route | Problem:
        if isinstance(choice, Unserved):
            return Problem(503, "no_engine", choice.reason, retry_after=1)
        assert isinstance(choice, Route)
        now = self._clock()
        for name in (choice.engine, choice.prefill):
            if name is not None:
                self.engines[name].running += 1
                self.engines[name].breaker.tried(now)
        return choice
