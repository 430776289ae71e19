# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in force in a real containerd after the main job, beside what would be without us.

containerd 2's turn is in ``test_engines.py``.
"""

from __future__ import annotations

import pytest

from e2e.conftest import Demo
from e2e.effective import assert_ours_alone


# Debian 12's containerd 1.6 and Ubuntu 24.04's 1.7.
@pytest.mark.parametrize("host", ["gpu1", "gpu2"])
def test_the_effective_configuration_differs_by_our_runtimes_alone(demo: Demo, host: str) -> None:
    assert_ours_alone(demo.platform, host, version=2)
