# SPDX-License-Identifier: GPL-3.0-or-later
"""How bench-launch, bench-memory and bench-init turn what was timed into figures."""

from __future__ import annotations

from typing import cast

import pytest
from bench import init, launch
from bench.memory import MIB, QUOTA, Filled
from bench.rig import Tenant


class Clocked:
    """A tenant whose batches take a known time; notes when its turn was."""

    def __init__(self, name: str, ns: float, turns: list[str]) -> None:
        self.name, self.ns, self.turns = name, ns, turns

    def ask(self, batches: int) -> list[float]:
        self.turns.append(self.name)
        return [self.ns] * batches


def test_places_take_turns_and_each_begins_a_round() -> None:
    turns: list[str] = []
    tenants = {name: Clocked(name, 1.0, turns) for name in ("a", "b", "c")}
    found = launch.take_turns(cast("dict[str, Tenant]", tenants), 2)
    assert "".join(turns) == "abcbcacab"
    assert {name: len(medians) for name, medians in found.items()} == {"a": 2, "b": 2, "c": 2}


def test_what_a_place_adds_is_taken_round_by_round() -> None:
    found = {launch.BARE: [50.0, 90.0], launch.LIMITED: [100.0, 150.0]}
    assert launch.added(found, launch.LIMITED) == [50.0, 60.0]


@pytest.mark.parametrize(
    ("count", "card", "over", "unused"),
    [
        (QUOTA, QUOTA, 0, 0),
        (QUOTA + 1, QUOTA, 1, 0),
        (QUOTA, QUOTA + 512, 512, 0),
        (QUOTA - 2 * MIB, 0, 0, 2 * MIB),
    ],
)
def test_the_higher_of_both_counts_is_held_against_the_quota(
    count: int, card: int, over: int, unused: int
) -> None:
    filled = Filled(by_their_count=count, by_the_card=card)
    assert (filled.over_quota, filled.unused) == (over, unused)


@pytest.mark.parametrize(
    ("grown", "error", "beyond"), [(1.0, 0.2, 0.6), (0.3, 0.2, 0.0), (-5.0, 0.1, 0.0)]
)
def test_a_growth_within_its_noise_is_none(grown: float, error: float, beyond: float) -> None:
    assert init.beyond_noise(grown, error) == pytest.approx(beyond)


def test_what_cannot_be_told_from_the_bare_driver_is_no_yardstick() -> None:
    assert launch.against(30.0, 60.0) == 0.5
    assert launch.against(30.0, 0.0) is None
    assert launch.against(30.0, -2.5) is None
