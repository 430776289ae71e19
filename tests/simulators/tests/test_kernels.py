# SPDX-License-Identifier: GPL-3.0-or-later
"""The spin kernel exists twice, since the demo's workload must be one file; here they are one."""

from __future__ import annotations

import re

from e2e.workload import gpu_load
from simulators.tests.cudriver import SPIN


def code(ptx: str) -> list[str]:
    """PTX without comments and blank lines."""
    lines = re.sub(r"//[^\n]*", "", ptx).splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def test_the_workload_s_kernel_is_the_simulator_s() -> None:
    spin = code(SPIN.read_text())
    assert any("spin_ns" in line for line in spin)
    assert code(gpu_load.SPIN_PTX.decode()) == spin
