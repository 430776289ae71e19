# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What is wrong with an input: where, what stands there, what may stand there, what to do (pure).

Checks return problems, all at once; nothing raises for bad input. A value that may be a secret is
never put into a problem by its finder: pass :data:`HIDDEN` in its place.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass

# Longest value that is shown whole; a pasted file would bury the rest of the line.
_SHOWN = 80


class _Hidden:
    """Stands for a value that is not to be shown."""

    def __repr__(self) -> str:
        return "(not shown)"


class _Missing:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "is missing"


HIDDEN: t.Final = _Hidden()
MISSING: t.Final = _Missing()


def shown(value: object) -> str:
    """A value as one short line, as it would stand in JSON."""
    if isinstance(value, (_Hidden, _Missing)):
        return repr(value)
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


@dataclass(frozen=True)
class Problem:
    """One finding about an input."""

    path: str
    value: object
    allowed: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {shown(self.value)}; allowed: {self.allowed}; do: {self.remedy}"
