# SPDX-License-Identifier: Apache-2.0
"""Whether an engine is worth a try, from what it did last. Time is a parameter."""

from __future__ import annotations

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


class Breaker:
    """Opens after *threshold* failures in a row; after *cooldown* seconds one request may try.

    Half open admits one at a time: an engine that just came back is not met by the whole queue.
    """

    __slots__ = ("_cooldown", "_failures", "_opened", "_probing", "_threshold", "trouble")

    def __init__(self, threshold: int, cooldown: float) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._failures = 0
        self._opened: float | None = None
        self._probing: float | None = None
        self.trouble = ""

    def state(self, now: float) -> str:
        if self._opened is None:
            return CLOSED
        return HALF_OPEN if now - self._opened >= self._cooldown else OPEN

    def admits(self, now: float) -> bool:
        """Whether a request may go there now."""
        state = self.state(now)
        if state is not HALF_OPEN:
            return state is CLOSED
        # A try that never reported back (its client left) must not keep the door shut.
        return self._probing is None or now - self._probing >= self._cooldown

    def tried(self, now: float) -> None:
        """A request goes there."""
        if self.state(now) is HALF_OPEN:
            self._probing = now

    def succeeded(self) -> None:
        self._failures, self._opened, self._probing, self.trouble = 0, None, None, ""

    def failed(self, now: float, trouble: str) -> None:
        self._failures += 1
        self._probing = None
        self.trouble = trouble
        if self._opened is not None or self._failures >= self._threshold:
            self._opened = now
