# SPDX-License-Identifier: GPL-3.0-or-later
"""A testbed of one's own with the site on it, for as long as it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from testbed.artefacts import publish_all

from e2e.platform import ROOT, Platform, must


@contextmanager
def standing(
    name: str, topology: Path, variables: Mapping[str, object] | None = None
) -> Iterator[Platform]:
    """Bring up testbed *name*, run ``site.yml`` on it. One that was up before stays up."""
    platform = Platform(name)
    was_up = platform.state_file.exists()
    publish_all(ROOT / "build" / "artefacts")
    platform.install_collection()
    try:
        must([sys.executable, "-m", "testbed", "up", str(topology), "--name", name])
        platform.playbook("site", "--extra-vars", json.dumps(dict(variables or {})))
        yield platform
    finally:
        if not was_up:
            down = [sys.executable, "-m", "testbed", "down", "--name", name]
            subprocess.run(down, cwd=ROOT, check=True)
