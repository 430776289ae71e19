# SPDX-License-Identifier: GPL-3.0-or-later
"""group.py's decisions: who is there, in which epoch, without socket and clock."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from group.members import SCRIPTS


def load() -> ModuleType:
    """It is a script beside run.sh, and no package."""
    spec = importlib.util.spec_from_file_location("flexai_group", SCRIPTS / "group.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flexai_group"] = module
    spec.loader.exec_module(module)
    return module


module = load()
OVER = (409, "over")


def started(size: int = 3, epoch: str = "E") -> Any:
    """A group all of whose members have said at 0 that they run no engine."""
    group = module.Group(size, 60.0)
    group.gather(epoch)
    for index in range(1, size):
        group.ask(index, f"launch-{index}", 0.0)
    assert group.look(0.0) == [f"gathered {epoch}"]
    return group


def formed(size: int = 3) -> Any:
    """The same, joined."""
    group = started(size)
    group.open()
    events = [group.ask(index, f"launch-{index}", 0.0)[1] for index in range(1, size)]
    assert events == [[]] * (size - 2) + [["joined E"]]
    return group


def test_nothing_begins_before_every_member_has_said_that_it_runs_no_engine() -> None:
    group = module.Group(3, 60.0)
    group.gather("E")
    assert group.look(0.0) == ["missing E 1 2"]
    assert group.look(0.0) == []  # said once
    assert group.ask(2, "b", 0.0) == ((503, "gathering"), [])
    assert group.look(0.0) == ["missing E 1"]
    group.ask(1, "a", 61.0)
    assert group.look(61.0) == ["missing E 2"]  # what it said is too long ago
    group.ask(2, "b", 61.0)
    assert group.look(61.0) == ["gathered E"]


def test_an_epoch_is_told_only_when_the_rendezvous_is_bound() -> None:
    group = started()
    assert group.ask(1, "launch-1", 0.0) == ((503, "starting"), [])
    assert group.epoch() == (503, "starting")
    group.open()
    assert group.ask(1, "launch-1", 0.0) == ((200, "E"), [])
    assert group.epoch() == (200, "E")


def test_an_answer_that_was_lost_is_given_again() -> None:
    group = formed()
    assert group.ask(2, "launch-2", 0.0) == ((200, "E"), [])


def test_beats_tell_when_the_leader_serves() -> None:
    group = formed()
    assert group.beat(1, "launch-1", "E", 0.0) == (200, "forming")
    group.serving()
    assert group.beat(1, "launch-1", "E", 0.0) == (200, "serving")


@pytest.mark.parametrize(
    ("index", "launch", "epoch"),
    [
        (1, "launch-1", "older"),
        (1, "another", "E"),
        (2, "launch-1", "E"),
    ],
    ids=["another epoch", "another launch", "another member"],
)
def test_who_is_not_in_is_sent_back(index: int, launch: str, epoch: str) -> None:
    group = formed()
    assert group.beat(index, launch, epoch, 0.0) == OVER
    assert group.down(index, launch, epoch, "x") == (OVER, [])
    assert group.beat(1, "launch-1", "E", 0.0)[0] == 200


LOSSES = {
    "down": lambda group: group.down(1, "launch-1", "E", "it died")[1],
    "started anew": lambda group: group.ask(1, "launch-9", 0.0)[1],
    "silent": lambda group: group.look(61.0),
}


@pytest.mark.parametrize(
    ("loss", "event"),
    [
        ("down", "lost E member 1: it died"),
        ("started anew", "lost E member 1 started anew"),
        ("silent", "lost E member 1 was not heard of for 61 s"),
    ],
)
def test_one_loss_ends_the_epoch_for_all_at_once(loss: str, event: str) -> None:
    group = formed()
    group.beat(2, "launch-2", "E", 50.0)
    assert LOSSES[loss](group) == [event]
    assert group.beat(2, "launch-2", "E", 50.0) == OVER
    assert group.ask(2, "launch-2b", 50.0) == ((503, "over"), [])
    assert group.look(1000.0) == []  # told once
    group.open()
    assert group.epoch() == (503, "over")  # and not opened by an order that was on its way


def test_silence_counts_while_the_leaders_engine_starts() -> None:
    assert started().look(61.0) == ["lost E member 1 was not heard of for 61 s"]


def test_what_is_heard_before_the_next_epoch_does_not_count_for_it() -> None:
    group = formed()
    group.close()
    group.ask(1, "n", 1.0)
    group.ask(2, "n", 1.0)
    group.gather("F")
    assert group.look(1.0) == ["missing F 1 2"]


words = st.sampled_from(["launch-1", "launch-2", "x"])
steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 2), words),
    st.tuples(st.just("beat"), st.integers(1, 2), words, st.sampled_from(["E0", "E1", "E2"])),
    st.tuples(st.just("down"), st.integers(1, 2), words, st.sampled_from(["E0", "E1", "E2"])),
    st.tuples(st.sampled_from(["gather", "open", "close", "serving", "look"])),
)


@given(st.lists(st.tuples(steps, st.floats(0, 40)), max_size=60))
def test_whatever_comes_members_are_only_ever_in_the_one_open_epoch(
    history: list[tuple[tuple[Any, ...], float]],
) -> None:
    """A beat gets 200 only from who joined the open epoch; a loss is told once at most
    in each, and nobody is in it afterwards."""
    group, now, number, lost = module.Group(3, 60.0), 0.0, 0, set()
    for (verb, *rest), wait in history:
        now += wait
        events: list[str] = []
        if verb == "gather":
            number += 1
            group.gather(f"E{number}")
        elif verb == "ask":
            answer, events = group.ask(*rest, now)
            assert answer in ((200, f"E{number}"), (503, "gathering"), (503, "starting"),
                              (503, "over"))  # fmt: skip
        elif verb == "beat":
            if group.beat(*rest, now)[0] == 200:
                assert rest[2] == f"E{number}" == group.epoch()[1]
        elif verb == "down":
            events = group.down(*rest, "why")[1]
        elif verb == "look":
            events = group.look(now)
        else:
            getattr(group, verb)()
        for event in events:
            if event.startswith("lost "):
                assert event.split()[1] not in lost
                lost.add(event.split()[1])
                assert group.epoch() == (503, "over")


def test_a_strangers_words_are_one_printable_line() -> None:
    assert module.printable("a\nb\x1b[31m" + "x" * 999) == "a?b?[31m" + "x" * 192
    assert module.printable("") == "no reason given"
