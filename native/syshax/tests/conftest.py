# SPDX-License-Identifier: Apache-2.0
"""The conductor is tested with the packages it is deployed with, not those it is built beside."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _paths() -> list[Path]:
    from xpubuild.cache import Cache
    from xpubuild.recipes import syshax

    return [HERE.parent / "src", HERE.parent / "mocks", syshax.build(Cache()) / "site"]


sys.path[:0] = [str(path) for path in _paths()]
