# SPDX-License-Identifier: GPL-3.0-or-later
"""The sanity runner: no failure hides another, and the gates look at what they claim to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sanity import run
from sanity.run import Gate, GateError, Result


def fail() -> str:
    raise GateError("role x: mend it")


def test_every_gate_runs_and_a_failure_keeps_its_output() -> None:
    shown: list[Result] = []
    gates = [
        Gate("bad call", call=fail),
        Gate("no such program", ["/nonexistent/linter"]),
        Gate("bad command", [sys.executable, "-c", "print('x.py:1 wrong'); raise SystemExit(3)"]),
        Gate("good", call=lambda: "3 files"),
    ]
    results = run.run_all(gates, shown.append)
    assert [result.passed for result in results] == [False, False, False, True]
    assert {result.name for result in shown} == {gate.name for gate in gates}
    assert results[0].output == "role x: mend it"
    assert "/nonexistent/linter" in results[1].output
    assert results[2].output == "x.py:1 wrong\n"


def test_the_report_ends_with_one_line_for_machines() -> None:
    results = [Result("quick", True, 6, ""), Result("slow", False, 90, "")]
    assert run.report(results).splitlines()[1:] == [
        "minutes per gate",
        "  slow                1.5  failed",
        "  quick               0.1  passed",
        "gates: 1 passed, 1 failed",
    ]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.sh", "", True),
        ("a.py", "#!/bin/sh\n", False),
        ("runner", "#!/bin/sh\n", True),
        ("runner", "#!/usr/bin/env bash\n", True),
        ("runner", "#!/usr/bin/python3\n", False),
        ("runner", "", False),
    ],
)
def test_shell_scripts_are_found(tmp_path: Path, name: str, text: str, wanted: bool) -> None:
    (tmp_path / name).write_text(text)
    assert run.is_shell(tmp_path / name) is wanted


def test_a_warning_of_the_importer_counts() -> None:
    output = "Importing\nWARNING: No changelog found.\nERROR: bad\nInfo: WARNING: no\n"
    assert run.importer_complaints(output) == ["WARNING: No changelog found.", "ERROR: bad"]


def test_ansible_tests_pip_is_found_in_the_installed_ansible_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXAI_CACHE", str(tmp_path))
    home = run.prepare_ansible_test()
    assert home == run.prepare_ansible_test()
    assert home.is_relative_to(tmp_path)
    (shim,) = (home / ".ansible/test/cache").iterdir()
    compile(shim.read_text(), shim.name, "exec")
    assert shim.name.startswith("get_pip_")


def test_an_unknown_gate_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "WORK", tmp_path)
    monkeypatch.setattr(run, "EMPTY_CONFIG", tmp_path / "empty.cfg")
    monkeypatch.setattr(run, "build", lambda: tmp_path / "x.tar.gz")
    assert run.main(["rufff"]) == 2
    assert "no gate rufff; there are: ansible-test" in capsys.readouterr().err
