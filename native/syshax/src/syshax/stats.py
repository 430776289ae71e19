# SPDX-License-Identifier: Apache-2.0
"""Counters of the conductor: plain numbers on the hot path, Prometheus text when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Observations in buckets; one search and two additions each."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(_BUCKETS, value)] += 1
        self.total += value

    def cumulated(self) -> list[tuple[str, float]]:
        names = [*(f"{bound:g}" for bound in _BUCKETS), "+Inf"]
        seen, rows = 0, []
        for name, count in zip(names, self.counts):
            seen += count
            rows.append((name, float(seen)))
        return rows


class Stats:
    """What happened since the start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.legs: Counter[tuple[str, str]] = Counter()
        self.handoffs = 0
        self.reroutes = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.first_byte = Histogram()
        self.duration = Histogram()


class Collector:
    """Shows *stats* and the engines of *conductor* to prometheus_client."""

    def __init__(self, conductor: Any) -> None:
        self._conductor = conductor

    def collect(self) -> Iterator[Metric]:
        stats: Stats = self._conductor.stats
        yield _counter("requests", "finished requests", stats.requests, ["path", "outcome"])
        yield _counter("legs", "requests to engines", stats.legs, ["engine", "result"])
        for name, text, value in (
            ("handoffs", "requests decoded by another engine than prefilled", stats.handoffs),
            ("reroutes", "requests that another engine took over", stats.reroutes),
            ("prompt_tokens", "prompt tokens, as engines counted", stats.prompt_tokens),
            ("completion_tokens", "answered tokens, as engines counted", stats.completion_tokens),
        ):
            yield CounterMetricFamily(f"syshax_{name}", text, value=value)
        yield GaugeMetricFamily(
            "syshax_queued", "requests that wait for an engine", self._conductor.dispatcher.queued
        )
        for name, histogram in (
            ("first_byte_seconds", stats.first_byte),
            ("request_seconds", stats.duration),
        ):
            yield HistogramMetricFamily(
                f"syshax_{name}", name, buckets=histogram.cumulated(), sum_value=histogram.total
            )
        yield from self._engines()

    def _engines(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("syshax_engine_running", "held places", labels=["engine"])
        usable = GaugeMetricFamily("syshax_engine_usable", "1: breaker admits", labels=["engine"])
        for row in self._conductor.snapshot():
            running.add_metric([row["name"]], row["running"])
            usable.add_metric([row["name"]], float(row["breaker"] != "open"))
        yield running
        yield usable


def _counter(
    name: str, text: str, values: Counter[tuple[str, str]], labels: list[str]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"syshax_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
