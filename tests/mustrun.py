# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin: a test on the must-run list that is skipped where it could run fails the run.

``skipif`` is honest about what is missing, and so a suite can stay green for months while its most
important half never runs. ``tests/must_run.txt`` names the tests that this must not happen to, and
what a machine needs for each; the plugin knows how to tell whether the machine has it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

LIST = Path(__file__).resolve().parent / "must_run.txt"
ROOT = LIST.parents[1]


@dataclass(frozen=True)
class Line:
    """One entry: a test file or node id, and what running it takes."""

    number: int
    prefix: str
    needs: tuple[str, ...]

    def covers(self, node: str) -> bool:
        return node == self.prefix or node.startswith((f"{self.prefix}::", f"{self.prefix}["))


@dataclass(frozen=True)
class Skip:
    """A test that did not run, and the reason it gave."""

    node: str
    reason: str


def parse(text: str, known: Collection[str]) -> list[Line]:
    """Read the list; an unknown need would make its tests optional for ever, so it is an error."""
    lines = []
    for number, raw in enumerate(text.splitlines(), start=1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        unknown = sorted(set(words[1:]) - set(known))
        if unknown:
            raise ValueError(
                f"must_run.txt line {number}: unknown need {', '.join(unknown)}; "
                f"known are {', '.join(sorted(known))}"
            )
        lines.append(Line(number, words[0], tuple(words[1:])))
    return lines


def violations(lines: Iterable[Line], skips: Iterable[Skip], have: Collection[str]) -> list[str]:
    """One sentence per skipped test that this machine could have run."""
    listed = list(lines)
    return [
        f"{skip.node} was skipped ({skip.reason}), but this machine can run it: "
        f"it has {', '.join(line.needs) or 'all it needs'} (must_run.txt line {line.number})"
        for skip in skips
        for line in listed
        if line.covers(skip.node) and set(line.needs) <= set(have)
    ]


def vanished(lines: Iterable[Line], collected: Collection[str]) -> list[str]:
    """Entries whose file was collected without a test of that name: renamed, or never there."""
    files = {node.partition("::")[0] for node in collected}
    return [
        f"must_run.txt line {line.number}: {line.prefix} names no test; it was renamed or removed"
        for line in lines
        if line.prefix.partition("::")[0] in files and not any(map(line.covers, collected))
    ]


def missing_files(lines: Iterable[Line], root: Path) -> list[str]:
    """Entries whose file is gone altogether, which no collection would notice."""
    return [
        f"must_run.txt line {line.number}: {line.prefix.partition('::')[0]} does not exist"
        for line in lines
        if not (root / line.prefix.partition("::")[0]).exists()
    ]


def _is_root() -> bool:
    return os.geteuid() == 0


def _can_install() -> bool:
    return _is_root() and shutil.which("apt-get") is not None


def _testbed() -> bool:
    # `testbed up` installs what it lacks where it may; so having no podman is no excuse there.
    return _is_root() and (_can_install() or shutil.which("podman") is not None)


NEEDS: Mapping[str, Callable[[], bool]] = {
    "apt": _can_install,
    "gpu": lambda: Path("/dev/nvidia0").exists(),
    "linux": lambda: platform.system() == "Linux",
    "root": _is_root,
    "testbed": _testbed,
}


class MustRun:
    """Remembers what was collected and skipped, and speaks up at the end."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.collected: set[str] = set()
        self.skips: list[Skip] = []
        self.complaints: list[str] = []

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self.collected.add(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # A module that skips itself never becomes items.
        if report.skipped:
            self.skips.append(Skip(report.nodeid, _reason(report)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skips.append(Skip(report.nodeid, _reason(report)))

    def _widened(self) -> Iterator[Line]:
        """A skipped file is a breach for every line that names a test in it."""
        skipped_files = {skip.node for skip in self.skips if "::" not in skip.node}
        for line in self.lines:
            file = line.prefix.partition("::")[0]
            yield Line(line.number, file, line.needs) if file in skipped_files else line

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        have = {name for name, check in NEEDS.items() if check()}
        # Under pytest -k or with a node id, a whole file's tests are not to be expected.
        whole = not session.config.getoption("keyword") and not any(
            "::" in argument for argument in session.config.args
        )
        self.complaints = [
            *violations(self._widened(), self.skips, have),
            *(vanished(self.lines, self.collected) if whole else ()),
            *missing_files(self.lines, ROOT),
        ]
        if self.complaints and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.complaints:
            terminalreporter.section("must-run tests", red=True, bold=True)
            for complaint in self.complaints:
                terminalreporter.line(f"FAILED {complaint}", red=True)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ")


def pytest_configure(config: pytest.Config) -> None:
    # Under xdist only the controller sees every report.
    if hasattr(config, "workerinput"):
        return
    text = LIST.read_text(encoding="utf-8") if LIST.exists() else ""
    try:
        lines = parse(text, NEEDS)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(MustRun(lines), "flexai-must-run")
