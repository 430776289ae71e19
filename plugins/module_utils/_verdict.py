# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The verdict: what each component turned out to be, per node and for the site (pure)."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass

COMPONENT_STATES = ("ok", "changed", "pending-reboot", "blocked", "failed", "absent")
READY_STATES = ("ok", "changed")
COLUMNS = ("node", "component", "wanted", "found", "state", "reason")

Node = t.Dict[str, t.Any]


@dataclass(frozen=True)
class Component:
    """What was wanted of one component, what was found, and the judgement."""

    name: str
    wanted: str
    found: str
    state: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.state not in COMPONENT_STATES:
            raise ValueError(f"{self.name}: state {self.state!r} is none of {COMPONENT_STATES}")


def build(name: str, components: t.Iterable[Component]) -> Node:
    """The verdict of one node; a node without components has shown nothing and isn't ready."""
    found = list(components)
    ready = bool(found) and all(component.state in READY_STATES for component in found)
    return {"name": name, "ready": ready, "components": [asdict(component) for component in found]}


def merge(site: str, date: str, nodes: t.Iterable[Node]) -> dict[str, t.Any]:
    """The verdict of a site, nodes in the order of their names."""
    ordered = sorted(nodes, key=lambda node: str(node["name"]))
    return {
        "site": site,
        "date": date,
        "ready": bool(ordered) and all(node["ready"] for node in ordered),
        "nodes": ordered,
    }


def rows(nodes: t.Iterable[Node]) -> list[tuple[str, ...]]:
    return [
        (str(node["name"]), *(str(component[column]) for column in ("name", *COLUMNS[2:])))
        for node in nodes
        for component in node["components"]
    ]


def table(nodes: t.Iterable[Node]) -> list[str]:
    """The verdict for people: one line per component, columns aligned."""
    lines = [COLUMNS, *rows(nodes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    ]
