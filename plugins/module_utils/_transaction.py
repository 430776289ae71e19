# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""A change that needs a quiet node: what is noted on the host, and what follows from it (pure).

Every step may be done again, so a run that died is taken up by doing them all once more; the note
says that there is something to take up, and why a node is left cordoned.
"""

from __future__ import annotations

import typing as t

from . import _nvidia_driver as driver
from ._decision import CHANGE, Decision

COMPONENT = "node_transaction"
RECORD = "transaction"
# In their order. Before "change" nothing of the host itself was touched.
STEPS = ("drain", "change", "reboot", "validate", "release")


def plan(record: t.Mapping[str, t.Any], why: str) -> list[Decision]:
    """A transaction that is open is taken up; one that a change needs is begun."""
    step = str(record.get("step", ""))
    if step:
        said = str(record.get("reason", "")) or "the run that began it ended there"
        reason = f"a change of this node was broken off at step {step} and is taken up: {said}"
        return [Decision(COMPONENT, CHANGE, "finished", step, reason)]
    if why:
        reason = f"{why}: the node is cordoned and drained first, and uncordoned when it works"
        return [Decision(COMPONENT, CHANGE, "finished", "", reason)]
    return []


def why_quiet(facts: driver.Facts, wanted: driver.Wanted) -> str:
    """What makes a quiet node necessary; empty where nothing does."""
    if driver.waits_for_nouveau(facts):
        return "a reboot is part of the change"
    if driver.needs_quiet_node(facts, wanted):
        return f"the running driver {facts.loaded} is replaced"
    return ""


def reboot_due(facts: driver.Facts) -> str:
    """Why the host must boot before its driver works; empty where it need not."""
    if driver.waits_for_nouveau(facts):
        return "nouveau holds the cards until the next boot"
    if facts.library and facts.loaded != facts.library:
        return f"kernel module {facts.loaded or 'not loaded'}; a reboot loads {facts.library}"
    return ""


def may_release(step: str, facts: driver.Facts) -> bool:
    """Whether pods may come back after a failure: nothing was touched, or what stands there is a
    whole driver that runs, be it the former one."""
    whole = bool(facts.library) and facts.loaded == facts.library
    return step == STEPS[0] or (whole and facts.record.get("state") != "installing")
