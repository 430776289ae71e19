# SPDX-License-Identifier: GPL-3.0-or-later
"""One testbed for all end-to-end tests, brought from bare hosts to a ready site once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from testbed.artefacts import publish_all

from e2e.platform import ROOT, TOPOLOGY, Platform, Run, must


@dataclass(frozen=True)
class Demo:
    """The testbed after its first ``site.yml``, and what that run printed."""

    platform: Platform
    first: Run


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """The demo testbed, converged. One that was up before stays up; one made here is removed."""
    platform = Platform(os.environ.get("FLEXAI_TESTBED", "demo"))
    was_up = platform.state_file.exists()
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    must([sys.executable, "-m", "testbed", "up", str(TOPOLOGY), "--name", platform.name])
    yield Demo(platform, platform.playbook("site"))
    if not was_up:
        subprocess.run(
            [sys.executable, "-m", "testbed", "down", "--name", platform.name],
            cwd=ROOT,
            check=True,
        )


@pytest.fixture(scope="module")
def workload(demo: Demo) -> Iterator[str]:
    """The pod of the demo's Deployment, as ``namespace/name``.

    Taken away to the end: the next module's would be refused by a namespace that is still leaving.
    """
    yield demo.platform.start_workload()
    demo.platform.kubectl("delete", "namespace", "slice-demo", "--timeout=120s")
