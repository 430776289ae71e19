# SPDX-License-Identifier: GPL-3.0-or-later
"""``make test`` itself: one failure hides nothing, and the closing line tells the truth."""

from __future__ import annotations

import importlib.util
import itertools
import threading
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(name="runner")
def fixture_runner() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "run.py"
    spec = importlib.util.spec_from_file_location("run", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


def test_a_failed_command_does_not_hide_the_next(runner: ModuleType) -> None:
    ran: list[str] = []

    def execute(command: tuple[str, ...]) -> int:
        ran.append(command[0])
        return 1 if command[0] == "bad" else 0

    clock = itertools.count(0.0, 60.0)
    area = runner.Area("unit", (("bad",), ("good",)))
    result = runner.run_area(area, execute, lambda: next(clock))
    assert ran == ["bad", "good"]
    assert result == runner.Result("unit", 60.0, ("bad",))


def test_areas_of_a_group_run_at_the_same_time_and_quietly(runner: ModuleType) -> None:
    both = threading.Barrier(2, timeout=60)

    def quietly(command: tuple[str, ...]) -> int:
        both.wait()
        return 1 if command == ("bad",) else 0

    def aloud(command: tuple[str, ...]) -> int:
        raise AssertionError(f"{command} speaks into the other's words")

    group = (runner.Area("a", (("good",),)), runner.Area("b", (("bad",),)))
    results = runner.run_group(group, aloud, quietly, lambda: 0.0)
    assert results == [runner.Result("a", 0.0, ()), runner.Result("b", 0.0, ("bad",))]


def test_the_report_closes_with_the_counts(runner: ModuleType) -> None:
    results = [runner.Result("unit", 90.0, ()), runner.Result("e2e", 30.0, ("x y",))]
    text = runner.report(results, 120.0)
    assert text.splitlines()[-1] == "areas: 1 passed, 1 failed"
    assert "failed: x y" in text
    assert "  all             2.0" in text


def test_every_path_an_area_names_exists(runner: ModuleType) -> None:
    named = [
        word
        for groups in runner.AREAS.values()
        for group in groups
        for area in group
        for command in area.commands
        for word in command
        if word.startswith(("tests/", "native/"))
    ]
    missing = sorted({word for word in named if not (runner.ROOT / word).exists()})
    assert not missing
