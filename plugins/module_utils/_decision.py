# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What a component's plan says."""

from __future__ import annotations

import typing as t

OK, INSTALL, CHANGE, REMOVE, BLOCKED = "ok", "install", "change", "remove", "blocked"


class Decision(t.NamedTuple):
    """One component: what to do, from what to what, and why."""

    component: str
    action: str
    wanted: str
    found: str
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        return self._asdict()


def version_key(version: str) -> tuple[int, ...]:
    """``580.95.05`` as numbers that compare; parts that are no numbers count as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
