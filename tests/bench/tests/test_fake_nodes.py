# SPDX-License-Identifier: GPL-3.0-or-later
"""How the check against an API server judges placements: every kind of wrong one is found."""

from __future__ import annotations

import pytest
from bench.fake_nodes import CARD_MIB, Ask, uuid_of, wrong

SLICE, HALF, WHOLE, PAIR, MEMORY = (
    Ask(1, 20, 3), Ask(1, 60, 10), Ask(1, 100, 0), Ask(2, 200, 0), Ask(1, 0, 2),
)  # fmt: skip


def given(*cards: tuple[int, int, int, int], node: str = "n1") -> str:
    """The annotation for grants of card, MiB, cores, number on the card."""
    return "".join(
        f"{c},{uuid_of(node, c)},GPU,{mib},{cores},{vid}:" for c, mib, cores, vid in cards
    )


RIGHT = {
    "a slice": (SLICE, "n1", given((0, 3072, 20, 0))),
    "another": (HALF, "n1", given((0, 10240, 60, 1))),
    "a whole card": (WHOLE, "n1", given((1, CARD_MIB, 100, 0))),
    "two of them": (PAIR, "n1", given((2, CARD_MIB, 100, 0), (3, CARD_MIB, 100, 0))),
}
WRONG = {
    "no annotation": {"p": (SLICE, "n1", "")},
    "a card of another node": {"p": (SLICE, "n2", given((0, 3072, 20, 0)))},
    "one card for two": {"p": (PAIR, "n1", given((2, CARD_MIB, 100, 0), (2, CARD_MIB, 100, 1)))},
    "other cores": {"p": (SLICE, "n1", given((0, 3072, 25, 0)))},
    "other memory": {"p": (SLICE, "n1", given((0, 4096, 20, 0)))},
    "cores twice": {
        "p": (HALF, "n1", given((0, 10240, 60, 0))), "q": (HALF, "n1", given((0, 10240, 60, 1))),
    },
    "no limit beside all cores": {
        "p": (Ask(1, 100, 20), "n1", given((0, 20480, 100, 0))),
        "q": (MEMORY, "n1", given((0, 2048, 0, 1))),
    },
    "a number twice": {
        "p": (SLICE, "n1", given((0, 3072, 20, 0))), "q": (SLICE, "n1", given((0, 3072, 20, 0))),
    },
    "memory beyond the card": {
        f"p{i}": (Ask(1, 10, 15), "n1", given((0, 15360, 10, i))) for i in range(3)
    },
}  # fmt: skip


def test_right_placements_are_right() -> None:
    assert wrong(RIGHT) == []


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_placement_is_found(case: str) -> None:
    assert wrong(WRONG[case])
