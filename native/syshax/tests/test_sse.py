# SPDX-License-Identifier: Apache-2.0
"""Cutting event streams: whatever the reads, whole events come out, byte for byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syshax import sse

STREAM = (
    b'data: {"a":1}\n\n: comment\n\ndata: x\r\ndata: y\r\n\r\ndata: mac\r\rid: 3\ndata: z\n\r\n'
    + 'data: {"t":"开\u2028放"}\n\n'.encode()
    + sse.DONE
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_one_cut_anywhere_loses_nothing_and_tears_nothing(cut: int) -> None:
    splitter = sse.Splitter(1000)
    blocks = [splitter.feed(STREAM[:cut]), splitter.feed(STREAM[cut:])]
    assert b"".join(blocks) == STREAM
    assert all(not block or b"".join(sse.events(block)) == block for block in blocks)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_many_cuts_give_the_same_events(cuts: list[int]) -> None:
    splitter = sse.Splitter(1000)
    blocks = [splitter.feed(piece) for piece in pieces(STREAM, cuts)]
    found = [sse.data_of(event) for block in blocks for event in sse.events(block)]
    assert [data for data in found if data] == [
        b'{"a":1}', b"x\ny", b"mac", b"z", '{"t":"开\u2028放"}'.encode(), b"[DONE]",
    ]  # fmt: skip


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_come_out_as_they_went_in(data: bytes, cuts: list[int]) -> None:
    splitter = sse.Splitter(1000)
    cuts = [min(cut, len(data)) for cut in cuts]
    out = b"".join([splitter.feed(piece) for piece in pieces(data, cuts)])
    assert out + splitter.rest == data


def test_an_event_without_end_is_refused_at_the_bound() -> None:
    splitter = sse.Splitter(100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(sse.EventTooLongError, match="longer than 100 bytes"):
        splitter.feed(b"x" * 90)
