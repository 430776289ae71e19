# SPDX-License-Identifier: GPL-3.0-or-later
"""The referee finds what is wrong: every finding is made from a crowd with that one mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from e2e.mixed import SHAPES, Ask, Fate, crowd
from e2e.referee import (
    Card,
    Seen,
    Share,
    all_in_part,
    given_twice,
    leaked,
    overbooked,
    read_ledger,
    unlike_the_ledger,
    wrong_cards,
)

MIB = 1 << 20
CARDS = {
    "A": Card("A", "n1", 0, 40_960),
    "B": Card("B", "n1", 1, 40_960),
    "C": Card("C", "n2", 0, 40_960),
}


def saw(*uuids: str, ask: Ask, at: float = 1.0, pod: str = "p", **changed: Any) -> Seen:
    """A container that sees exactly what it asked for."""
    node = CARDS[uuids[0]].node if uuids else "n1"
    mib = ask.memory_mib_each or 40_336
    document = {
        "at": at,
        "cards": [{"uuid": uuid, "memory": mib * MIB} for uuid in uuids],
        "nodes": sorted(CARDS[uuid].minor for uuid in uuids),
        "files": {
            "vgpu.config": f"UsedMem:{mib}\nUsedCores:{ask.cores_each}\n",
            "vgpu-ids.config": "".join(f"{uuid}-0\n" for uuid in uuids),
        },
        "error": None,
    }
    if not ask.number:
        document["files"] = {}
    return Seen(node, pod, pod, "c", ask, {**document, **changed})


SLICE, WHOLE = Ask(1, 20, 3), Ask(1)


def test_what_is_right_is_found_right() -> None:
    seen = [
        saw("A", ask=SLICE),
        saw("B", ask=WHOLE, pod="whole"),
        saw(ask=Ask(), pod="none"),
        saw("A", "B", ask=Ask(2, 20, 3), pod="pair", at=9.0),
    ]
    seen[1] = replace(seen[1], until=8.0)
    assert wrong_cards(seen, CARDS) == []
    assert given_twice(seen, CARDS) == []


@pytest.mark.parametrize(
    ("seen", "finding"),
    [
        (saw(ask=SLICE), "asked for 1 cards and sees []"),
        (saw("A", "B", ask=SLICE), "asked for 1 cards and sees ['A', 'B']"),
        (saw("A", "A", ask=Ask(2)), "sees one card twice"),
        (saw("A", ask=Ask()), "asked for 0 cards and sees ['A']"),
        (replace(saw("A", ask=SLICE), node="n2"), "cards that its node doesn't have: ['A']"),
        (saw("A", ask=SLICE, nodes=[0, 1]), "has device nodes [0, 1]; its cards are [0]"),
        (saw("A", ask=SLICE, nodes=[1]), "has device nodes [1]; its cards are [0]"),
        (
            saw("A", ask=SLICE, cards=[{"uuid": "A", "memory": 4096 * MIB}]),
            "is shown 4294967296 bytes of memory, not 3221225472 to 3221225472",
        ),
        (
            saw("A", ask=WHOLE, cards=[{"uuid": "A", "memory": 3072 * MIB}]),
            "is shown 3221225472 bytes of memory, not",
        ),
        (
            saw("A", ask=SLICE, files={"vgpu.config": "UsedCores:30\n"}),
            "has vgpu.config 'UsedCores:30\\n' and asked for 20 % cores",
        ),
        (
            saw("A", ask=SLICE, files={"vgpu.config": "UsedCores:20\n", "vgpu-ids.config": "B-0"}),
            "has vgpu-ids.config ['B-0'] and sees ['A']",
        ),
    ],
)
def test_a_wrong_card_is_found(seen: Seen, finding: str) -> None:
    (found,) = wrong_cards([seen], CARDS)
    assert finding in found


@pytest.mark.parametrize(
    "asks",
    [
        (Ask(1, 60, 3), Ask(1, 50, 3)),  # cores
        (Ask(1, 0, 30), Ask(1, 0, 20)),  # memory
        (WHOLE, Ask(1, 0, 1)),  # a whole card, and one without a limit beside it
        (Ask(1, 10, 0), Ask(1, 10, 0)),  # all memory, twice
    ],
)
def test_a_card_given_twice_is_found_while_both_have_it(asks: tuple[Ask, Ask]) -> None:
    first, second = saw("A", ask=asks[0], pod="a"), saw("A", ask=asks[1], pod="b", at=5.0)
    (found,) = given_twice([first, second], CARDS)
    assert "a/c on n1, b/c on n1" in found
    assert given_twice([replace(first, until=5.0), second], CARDS) == []
    assert given_twice([first, saw("B", ask=asks[1], pod="b", at=5.0)], CARDS) == []


def test_the_ledger_is_judged_by_itself_and_by_who_runs() -> None:
    document = {
        "slices": [
            {
                "owner": {"pod_uid": "p", "container": "c"},
                "shares": [{"uuid": "A", "vid": 0, "cores_percent": 20, "memory_mib": 3072}],
            }
        ]
    }
    ledger = read_ledger(document)
    assert ledger == {("p", "c"): [Share("A", 0, 20, 3072)]}
    assert read_ledger({"slices": None}) == {}
    assert overbooked(ledger, CARDS) == []
    assert unlike_the_ledger([saw("A", ask=SLICE)], ledger) == []
    assert unlike_the_ledger([saw("B", ask=SLICE)], ledger) != []
    assert unlike_the_ledger([saw("A", ask=SLICE, pod="unknown")], ledger) != []
    assert leaked(ledger, [("p", "c")]) == []
    assert leaked(ledger, [("p", "other")]) == [
        "slice of pod p, container c: nobody has it any more"
    ]


def test_a_whole_card_is_out_of_reach_once_those_that_stay_have_a_part_of_each() -> None:
    ledger = {("p", "c"): [Share("A", 0, 5, 1024)], ("q", "c"): [Share("B", 0, 5, 1024)]}
    assert all_in_part(ledger, {"p", "q"}, [CARDS["A"], CARDS["B"]])
    assert not all_in_part(ledger, {"p"}, [CARDS["A"], CARDS["B"]])
    assert not all_in_part({}, {"p", "q"}, [CARDS["A"]])


@pytest.mark.parametrize(
    "second",
    [
        Share("A", 1, 90, 1024),
        Share("A", 1, 10, 40_000),
        Share("A", 0, 10, 1024),
        Share("nowhere", 0, 10, 1024),
    ],
)
def test_a_ledger_that_promises_twice_is_found(second: Share) -> None:
    first = Share("A", 0, 20, 3072)
    assert len(overbooked({("p", "a"): [first], ("p", "b"): [second]}, CARDS)) == 1


def test_a_crowd_holds_every_shape_both_schedulers_and_pinned_pods() -> None:
    pods = crowd(60, ("n1", "n2"), ("default-scheduler", "volcano"))
    assert {pod.shape.name for pod in pods} == {shape.name for shape in SHAPES}
    assert {pod.scheduler for pod in pods} == {"default-scheduler", "volcano"}
    assert {pod.node for pod in pods} == {None, "n1", "n2"}
    assert len({pod.name for pod in pods}) == 60
    assert [pod.name for pod in crowd(60, ("n1", "n2"))] == [pod.name for pod in pods]
    assert all(pod.node for pod in pods if pod.shape.waits)
    refused = [pod for pod in pods if pod.shape.fate is Fate.REFUSED]
    assert refused and all(pod.shape.reason for pod in refused)
    unseen = [pod for pod in crowd(60, ("n1", "n2"), seen=False) if len(pod.shape.unseen) > 0]
    assert unseen and all(pod.shape.fate is Fate.REFUSED for pod in unseen)
    with_init = next(pod for pod in pods if pod.shape.init).manifest()["spec"]
    assert with_init["initContainers"][0]["args"] == ["look"]
