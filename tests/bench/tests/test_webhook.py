# SPDX-License-Identifier: GPL-3.0-or-later
"""What bench-webhook makes of what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import webhook


@pytest.mark.parametrize(("slowest_ns", "met"), [(5_000_000, True), (5_100_000, False)])
def test_the_figure_is_the_median_of_the_turns_p99(
    tmp_path: Path, slowest_ns: int, met: bool
) -> None:
    program = tmp_path / "xpu-webhook"
    program.write_bytes(b"program")
    quiet = [1_000_000] * 97
    # One bad turn of three is reported beside, and doesn't decide.
    turns = [[*quiet, *[slowest_ns] * 3], [*quiet, *[slowest_ns] * 3], [*quiet, *[90_000_000] * 3]]
    made = webhook.report({"webhook": turns, "echo": [quiet]}, program)
    assert made.figures["p99"].value == slowest_ns / 1e6
    assert made.figures["p99 of the worst turn"].value == 90
    assert made.met is met
