# SPDX-License-Identifier: Apache-2.0
"""Ray from PyPI, for the test of a serving group whose members meet through it; 260 MB, once."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from ..cache import Cache, Recipe, digest_file
from ..toolchain import REPOSITORY, run

REQUIREMENTS = REPOSITORY / "tests/group/ray/requirements.txt"


def build(cache: Cache, python: str = sys.executable) -> Path:
    """``site``: Ray and all that it imports, for PYTHONPATH, for the *python* it is built with."""

    def fill(out: Path) -> None:
        run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "--no-deps", "--target", out / "site", "-r", REQUIREMENTS]
        )  # fmt: skip

    inputs = {
        "requirements": digest_file(REQUIREMENTS),
        "recipe": digest_file(Path(__file__)),
        "python": ".".join(map(str, sys.version_info[:2])),
        "platform": sysconfig.get_platform(),
    }
    return cache.get(Recipe("ray", inputs, fill))
