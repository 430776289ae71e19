# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role has a Molecule scenario, and on the running demo each changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "extensions" / "molecule"
MOLECULE = Path(sysconfig.get_path("scripts")) / "molecule"


def roles() -> set[str]:
    return {path.name for path in (ROOT / "roles").iterdir() if path.is_dir()}


def molecule(*arguments: str) -> str:
    done = subprocess.run(
        [str(MOLECULE), "-c", str(SCENARIOS / "config.yml"), *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_every_role_has_a_scenario_that_verifies() -> None:
    assert roles() == {path.parent.name for path in SCENARIOS.glob("*/verify.yml")}


@pytest.mark.usefixtures("demo")
def test_each_role_applied_again_changes_nothing() -> None:
    output = molecule("test", "--all")
    recaps = re.findall(r"ok=\d+ +changed=(\d+)", output)
    assert len(recaps) >= len(roles())
    assert set(recaps) == {"0"}, output[-6000:]
