# SPDX-License-Identifier: GPL-3.0-or-later
"""What the CUDA benchmarks compute: windows, credit, lag and slopes of known series."""

from __future__ import annotations

import pytest
from bench import figures
from bench.figures import Reading

MS = 1_000_000
SECOND = 1_000_000_000


def readings(*shares: float) -> list[Reading]:
    """One reading a second, with these shares between them."""
    found = [Reading(0, 0)]
    for share in shares:
        last = found[-1]
        found.append(Reading(last.at_ns + SECOND, last.busy_ns + round(share / 100 * SECOND)))
    return found


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (50, 3.0), (75, 4.0), (95, 5.0), (99, 5.0), (100, 5.0)]
)
def test_a_percentile_is_a_value_that_was_seen(percent: float, value: float) -> None:
    assert figures.percentile([5.0, 1.0, 4.0, 2.0, 3.0], percent) == value


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="of nothing"):
        figures.percentile([], 95)


@pytest.mark.parametrize(
    ("kernel_ns", "percent", "seconds"),
    [
        (500_000, 10, 1.0),
        (50 * MS, 10, 1.0),
        (300 * MS, 10, 30.0),
        (300 * MS, 50, 6.0),
    ],
)
def test_long_kernels_are_judged_over_ten_of_them(
    kernel_ns: int, percent: float, seconds: float
) -> None:
    assert figures.window_s(kernel_ns, percent) == pytest.approx(seconds)


def test_windows_are_the_shares_between_readings() -> None:
    assert figures.windows(readings(10, 30, 20), 1.0) == pytest.approx([10, 30, 20])
    assert figures.windows(readings(10, 30, 20), 2.0) == pytest.approx([20])


def test_a_reading_that_comes_a_little_early_ends_its_window() -> None:
    early = [Reading(0, 0), Reading(SECOND - MS, 100 * MS), Reading(2 * SECOND, 200 * MS)]
    assert len(figures.windows(early, 1.0)) == 2


def test_a_window_longer_than_the_cell_says_nothing() -> None:
    assert figures.windows(readings(10, 10), 30.0) == []


@pytest.mark.parametrize("lag_ms", [0, 80, 600])
@pytest.mark.parametrize(("before", "after"), [(10, 60), (60, 20)])
def test_the_lag_of_a_resize_is_how_long_the_old_share_held(
    before: float, after: float, lag_ms: float
) -> None:
    elapsed = 3 * SECOND
    busy = before / 100 * lag_ms * MS + after / 100 * (elapsed - lag_ms * MS)
    assert figures.resize_lag_ms(before, after, busy, elapsed) == pytest.approx(lag_ms, abs=1e-6)


def test_bursts_fit_while_the_credit_lasts() -> None:
    # 50 ms at 30 % move the TAT by 167 ms, of which 50 pass meanwhile: four fit into 500 ms.
    together = [0.0] * 6
    assert figures.in_credit(together, 50 * MS, 30, 500 * MS) == [True] * 4 + [False] * 2
    apart = [index * 300.0 * MS for index in range(20)]
    assert all(figures.in_credit(apart, 50 * MS, 30, 500 * MS))


def test_without_credit_no_burst_fits() -> None:
    assert figures.in_credit([0.0, 1e9], 50 * MS, 30, 0) == [False, False]


def test_growth_finds_a_slope_and_its_uncertainty() -> None:
    grown, error = figures.growth([1, 101], [[1.0, 1.0], [3.0, 3.0]])
    assert grown == pytest.approx(2.0)
    assert error == pytest.approx(0.0)
    _, error = figures.growth([1, 101], [[0.0, 2.0], [2.0, 4.0]])
    assert error == pytest.approx(1.414, abs=0.001)


def test_a_slope_needs_two_counts() -> None:
    with pytest.raises(ValueError, match="two counts"):
        figures.growth([5], [[1.0, 2.0, 3.0]])
