# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's own tests (engine_test.cc): the schedule, memory, crash safety, PTX, settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from simulators.tests.harness import engine_test

SOURCE = Path(__file__).with_name("engine_test.cc")
CASES = re.findall(r"^TEST\((\w+)\)", SOURCE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("case", CASES)
def test_engine(case: str) -> None:
    done = subprocess.run([engine_test(), case], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_program_has_the_cases_of_its_source() -> None:
    listed = subprocess.run([engine_test()], capture_output=True, text=True, check=True).stdout
    assert listed.split() == CASES and CASES
