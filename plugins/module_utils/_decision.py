# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What a component's plan says."""

from __future__ import annotations

import typing as t

OK, INSTALL, CHANGE, REMOVE, BLOCKED = "ok", "install", "change", "remove", "blocked"
# What we do about somebody else's: use it as it is, work beside it, or stop before any change.
ADOPT, COEXIST, REFUSE = "adopt", "coexist", "refuse"


class Decision(t.NamedTuple):
    """One component: what to do, from what to what, and why."""

    component: str
    action: str
    wanted: str
    found: str
    reason: str = ""
    # Empty where nobody else has a part in the component.
    stance: str = ""
    owner: str = ""

    def as_dict(self) -> dict[str, str]:
        return self._asdict()


class Claim(t.NamedTuple):
    """Somebody else's part in a component, what we do about it, and why."""

    stance: str
    owner: str
    reason: str

    def refusal(self, component: str, wanted: str, found: str) -> Decision:
        return Decision(component, BLOCKED, wanted, found, self.reason, self.stance, self.owner)

    def on(self, decision: Decision) -> Decision:
        """*decision*, which also says what of it is somebody else's."""
        reason = "; ".join(part for part in (self.reason, decision.reason) if part)
        return decision._replace(reason=reason, stance=self.stance, owner=self.owner)


def version_key(version: str) -> tuple[int, ...]:
    """``580.95.05`` as numbers that compare; parts that are no numbers count as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
