# SPDX-License-Identifier: Apache-2.0
"""Server-sent events, cut at event ends and nowhere else, byte for byte as they came."""

from __future__ import annotations

import re
from collections.abc import Iterator

DONE = b"data: [DONE]\n\n"
# A line may end in LF, CR LF or CR; an empty one ends the event.
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_END = 3
_EVENT_END = re.compile(rb"\n\r?\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLongError(ValueError):
    """An event grew over the bound without ending."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event is longer than {limit} bytes and has no end")


class Splitter:
    """Turns reads of any size into blocks of whole events.

    Joining all blocks and the rest gives the input, so what is forwarded is what the engine wrote.
    """

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events that *data* completed; empty when none ended."""
        # Nearly every read is one whole event: no copy and no search then.
        if not self._rest and data.endswith(b"\n\n"):
            return data
        # An end may have been cut in two, so the search starts before the new bytes.
        start = max(0, len(self._rest) - _LONGEST_END)
        joined = self._rest + data if self._rest else data
        end = _last_end(joined, start)
        self._rest = joined[end:]
        if len(self._rest) > self._limit:
            raise EventTooLongError(self._limit)
        return joined[:end]

    @property
    def rest(self) -> bytes:
        """Bytes of an event that has not ended."""
        return self._rest


def _last_end(data: bytes, start: int) -> int:
    found = 0
    for end in _ENDS:
        position = data.rfind(end, start)
        if position >= 0:
            found = max(found, position + len(end))
    return found


def events(block: bytes) -> Iterator[bytes]:
    """The single events of a block of whole ones, ends included."""
    start = 0
    for match in _EVENT_END.finditer(block):
        yield block[start : match.end()]
        start = match.end()


def data_of(event: bytes) -> bytes:
    """What the ``data`` lines of *event* say; empty for comments and empty events."""
    parts = []
    for line in _LINE_END.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            parts.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(parts)


def event(data: bytes) -> bytes:
    """One event that says *data*, which holds no line end."""
    return b"data: " + data + b"\n\n"
