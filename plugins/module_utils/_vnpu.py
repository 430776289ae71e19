# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Hard partitions of an Ascend chip (vNPU): from the templates that shall stand there to what to
destroy and create. Pure; nothing is decided by a vNPU's number, which the driver chooses."""

from __future__ import annotations

import typing as t
from collections import Counter

from ._ascend_smi import Layout, Template, Vnpu
from ._errors import XpuError


class Change(t.NamedTuple):
    """What to do to one chip, in this order."""

    destroy: tuple[Vnpu, ...]
    create: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.destroy or self.create)


def _unknown(wanted: t.Sequence[str], templates: t.Sequence[Template]) -> None:
    known = [template.name for template in templates]
    for name in wanted:
        if name not in known:
            raise XpuError(
                f"Template {name!r} is none of this chip; it has {', '.join(known)}.",
                "name one of these (`npu-smi info -t template-info`).",
            )


def _too_much(wanted: t.Sequence[str], templates: t.Sequence[Template], layout: Layout) -> None:
    by_name = {template.name: template for template in templates}
    for what, total, take in (
        ("AI cores", layout.aicore[1], lambda one: one.aicore),
        ("GB of memory", layout.memory_gb[1], lambda one: one.memory_gb),
        ("AI CPUs", layout.aicpu[1], lambda one: one.aicpu),
    ):
        asked = sum(take(by_name[name]) for name in wanted)
        if asked > total:
            raise XpuError(
                f"The layout {', '.join(wanted)} takes {asked} {what}, and the chip has {total}.",
                "leave a vNPU out, or take smaller templates.",
            )


def plan(wanted: t.Sequence[str], templates: t.Sequence[Template], layout: Layout) -> Change:
    """What brings the chip from *layout* to the *wanted* templates; in use stays before unused.

    Raises where a vNPU that would have to go is in use: a layout is changed whole or not at all.
    """
    _unknown(wanted, templates)
    _too_much(wanted, templates, layout)
    missing = Counter(wanted)
    superfluous = []
    for vnpu in sorted(layout.vnpus, key=lambda one: (not one.used, one.id)):
        if missing[vnpu.template] > 0:
            missing[vnpu.template] -= 1
        else:
            superfluous.append(vnpu)
    used = [vnpu for vnpu in superfluous if vnpu.used]
    if used:
        held = ", ".join(f"{vnpu.id} ({vnpu.template})" for vnpu in used)
        raise XpuError(
            f"vNPU {held} would have to go, and is in use.",
            "end the container that has it, or keep its template in the layout; nothing was "
            "changed.",
        )
    create = [name for name in wanted if missing[name] > 0 and not missing.subtract([name])]
    return Change(tuple(superfluous), tuple(create))


def told(npu: int, names: t.Iterable[str]) -> str:
    """A layout in lines, for the diff."""
    lines = sorted(names) or ["not divided"]
    return "".join(f"NPU {npu}: {line}\n" for line in lines)
