# SPDX-License-Identifier: Apache-2.0
"""What the sysHAX conductor imports, apart from the environment this project is built in.

The conductor is deployed with exactly these versions; its tests and benchmarks run with them too.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from ..cache import Cache, Recipe, digest_file
from ..toolchain import REPOSITORY, run

REQUIREMENTS = REPOSITORY / "native/syshax/requirements.txt"


def build(cache: Cache, python: str = sys.executable) -> Path:
    """``site``: a directory of packages for PYTHONPATH, for the *python* that it is built with."""

    def fill(out: Path) -> None:
        run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "--only-binary", ":all:", "--target", out / "site",
             "-r", REQUIREMENTS]
        )  # fmt: skip

    version = run([python, "-c", "import sys; print(sys.version)"]).strip()
    inputs = {
        "requirements": digest_file(REQUIREMENTS),
        "recipe": digest_file(Path(__file__)),
        "python": version,
        "platform": sysconfig.get_platform(),
    }
    return cache.get(Recipe("syshax", inputs, fill))
