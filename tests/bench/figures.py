# SPDX-License-Identifier: GPL-3.0-or-later
"""What the CUDA benchmarks compute from what they measured. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LONG_KERNEL_NS = 50_000_000
WINDOW_S = 1.0
KERNELS_PER_WINDOW = 10


@dataclass(frozen=True)
class Reading:
    """The referee's word on one tenant: card time used until ``at_ns``."""

    at_ns: int
    busy_ns: int


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least *percent* of all do not exceed (nearest rank)."""
    if not values:
        raise ValueError("a percentile of nothing was asked for")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def quartile_spread(values: Sequence[float]) -> float:
    """Distance between the quartiles: what half of all values lie within."""
    return percentile(values, 75) - percentile(values, 25)


def share(first: Reading, last: Reading) -> float:
    """Percent of the card between two readings."""
    return 100 * (last.busy_ns - first.busy_ns) / (last.at_ns - first.at_ns)


def window_s(kernel_ns: int, percent: float) -> float:
    """Length of a window in which a share can be judged: one second, or ten kernels at that share.

    A running kernel is not preempted, so a window much shorter than kernel / share holds either
    none or too much.
    """
    if kernel_ns <= LONG_KERNEL_NS:
        return WINDOW_S
    return max(WINDOW_S, KERNELS_PER_WINDOW * kernel_ns / 1e9 / (percent / 100))


def windows(readings: Sequence[Reading], seconds: float) -> list[float]:
    """Shares of consecutive windows at least *seconds* long, cut at readings; a rest is dropped.

    Readings are a little apart from the second; half a reading's distance is let through, so that
    a window of one second is not made one of two.
    """
    if len(readings) < 2:
        return []
    distance = (readings[-1].at_ns - readings[0].at_ns) / (len(readings) - 1)
    needed = seconds * 1e9 - distance / 2
    found = []
    begin = readings[0]
    for reading in readings[1:]:
        if reading.at_ns - begin.at_ns >= needed:
            found.append(share(begin, reading))
            begin = reading
    return found


def resize_lag_ms(before: float, after: float, busy_ns: float, elapsed_ns: float) -> float:
    """How long the old share went on after a change, from the card time used since the change.

    If the old share held for the lag and the new one from then on, ``busy`` is
    ``before · lag + after · (elapsed − lag)``; credit used up at the change makes it negative.
    """
    return (after / 100 * elapsed_ns - busy_ns) / ((after - before) / 100) / 1e6


def in_credit(
    arrivals_ns: Sequence[float], burst_ns: float, percent: float, tau_ns: float
) -> list[bool]:
    """Which bursts a limiter of *percent* with credit *tau_ns* never holds back.

    The limiter's own arithmetic: work moves the theoretical arrival time (TAT) ahead by
    cost · 100 / P and starts unhindered while that is at most τ ahead of now. Bursts run one after
    another; one that does not fit is delayed, and is taken to be paid for by its delay.
    """
    answers = []
    tat = end = -math.inf
    for arrival in arrivals_ns:
        begin = max(arrival, end)
        end = begin + burst_ns
        tat = max(tat, begin) + burst_ns * 100 / percent
        answers.append(tat - end <= tau_ns)
        tat = min(tat, end + tau_ns)
    return answers


def growth(counts: Sequence[int], repeats: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(growth from the smallest to the largest count, its standard error), by least squares.

    ``repeats[i]`` holds the values found at ``counts[i]``, one per repetition.
    """
    points = [(x, y) for x, ys in zip(counts, repeats, strict=True) for y in ys]
    if len(points) < 3 or len(set(counts)) < 2:
        raise ValueError("a slope needs two counts and three values at least")
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    spread_x = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(residual / (len(points) - 2) / spread_x)
    reach = max(counts) - min(counts)
    return slope * reach, error * reach
