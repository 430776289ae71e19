# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark report: judged by its numbers alone, complete, readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench import benchlib
from bench.benchlib import Figure, Report


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure(1.0, "s", 2.0), True),
        (Figure(2.0, "s", 2.0), True),
        (Figure(2.1, "s", 2.0), False),
        (Figure(97.0, "%", 97.0, "higher"), True),
        (Figure(96.9, "%", 97.0, "higher"), False),
        (Figure(1.0, "s"), None),
    ],
)
def test_a_figure_is_judged_by_its_target_and_direction(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


def report(value: float) -> Report:
    return Report(
        name="sample",
        method="ran it",
        device="simulated:a100-40g",
        figures={"latency": Figure(value, "ms", 2.0), "noise": Figure(5, "ms")},
        baselines={"bare": {"latency": Figure(1.0, "ms")}},
    )


def test_the_exit_code_follows_the_figures(tmp_path: Path) -> None:
    assert benchlib.publish(report(1.5), tmp_path) == 0
    assert benchlib.publish(report(2.5), tmp_path) == 1


def test_the_file_holds_every_field_of_the_format(tmp_path: Path) -> None:
    benchlib.publish(report(1.5), tmp_path)
    data = json.loads((tmp_path / "sample.json").read_text(encoding="utf-8"))
    assert set(data) == {
        "name", "date", "commit", "machine", "device", "method", "figures", "baselines", "met",
    }  # fmt: skip
    assert set(data["machine"]) == {"cpu", "cores", "memory_gib", "kernel"}
    assert data["figures"]["latency"]["met"] is True
    assert data["figures"]["noise"]["met"] is None


def test_the_table_shows_missed_targets_and_baselines() -> None:
    text = benchlib.table(benchlib.document(report(2.5)))
    assert "target ≤ 2: NOT met" in text
    assert "bare latency" in text
