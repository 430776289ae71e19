# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The report of a site: its verdict, and what is where, for programs and for people (pure)."""

from __future__ import annotations

import html
import typing as t

from ._verdict import READY_STATES

Report = t.Dict[str, t.Any]
Table = t.Tuple[t.Sequence[str], t.Sequence[t.Sequence[str]]]
# What is told of a host itself, where a look at it succeeded.
HOST_FACTS = ("system", "release", "architecture", "kernel", "engine")

STYLE = """\
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
th,td{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left;vertical-align:top}
tr.failed td,tr.absent td,tr.blocked td{background:#fdecea}
tr.pending-reboot td{background:#fff6e0}
"""


def host_facts(probe: t.Mapping[str, t.Any]) -> dict[str, str]:
    found = (probe.get("facts") or {}).get("host") or {}
    return {name: str(found[name]) for name in HOST_FACTS if found.get(name)}


def differing(probe: t.Mapping[str, t.Any]) -> list[dict[str, str]]:
    """What a run of site.yml would do to the host."""
    return [dict(step) for step in probe.get("plan") or () if step["action"] != "ok"]


def where(nodes: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, dict[str, list[str]]]:
    """Component → what was found → on which hosts, both in the order in which they first stand."""
    found: dict[str, dict[str, list[str]]] = {}
    for node in nodes:
        for part in node["components"]:
            what = str(part["found"]) or "nothing"
            found.setdefault(part["name"], {}).setdefault(what, []).append(str(node["name"]))
    return found


def build(verdict: t.Mapping[str, t.Any], probes: t.Mapping[str, t.Mapping[str, t.Any]]) -> Report:
    """The verdict, each host's entry with what it is and what would be done to it."""
    nodes = [
        {
            **node,
            "facts": host_facts(probes.get(node["name"], {})),
            "plan": differing(probes.get(node["name"], {})),
        }
        for node in verdict["nodes"]
    ]
    return {**verdict, "nodes": nodes, "where": where(nodes)}


# -- for people ------------------------------------------------------------------------------


def summary(report: Report) -> str:
    nodes = report["nodes"]
    ready = sum(node["ready"] for node in nodes)
    state = "ready" if report["ready"] else "not ready"
    return f"Site {report['site']} is {state}: {ready} of {len(nodes)}, {report['date']}"


def tables(report: Report) -> list[tuple[str, Table]]:
    """Heading and table, one after another; one without lines is left out."""
    nodes = report["nodes"]
    wrong = [
        (node["name"], part["name"], part["state"], part["reason"])
        for node in nodes
        for part in node["components"]
        if part["state"] not in READY_STATES
    ]
    places = [
        (component, found, str(len(hosts)), ", ".join(hosts))
        for component, versions in report["where"].items()
        for found, hosts in versions.items()
    ]
    plan = [
        (node["name"], step["component"], step["action"], step["reason"])
        for node in nodes
        for step in node["plan"]
    ]
    hosts = [
        (node["name"], *(node["facts"].get(name, "") for name in HOST_FACTS))
        for node in nodes
        if node["facts"]
    ]
    every = [
        (node["name"], part["name"], part["wanted"], part["found"], part["state"], part["reason"])
        for node in nodes
        for part in node["components"]
    ]
    made: list[tuple[str, Table]] = [
        ("Not as it should be", (("node", "component", "state", "reason"), wrong)),
        ("What is where", (("component", "found", "hosts", "which"), places)),
        ("What the next run would do", (("node", "component", "action", "reason"), plan)),
        ("Hosts", (("node", *HOST_FACTS), hosts)),
        ("All", (("node", "component", "wanted", "found", "state", "reason"), every)),
    ]
    return [(heading, table) for heading, table in made if table[1]]


def markdown(report: Report) -> str:
    lines = [f"# {_cell(summary(report))}"]
    for heading, (columns, rows) in tables(report):
        lines += ["", f"## {heading}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([_cell(cell) for cell in row]) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: t.Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """On one line; a bar would end the cell, and markup is none of a tool's words."""
    flat = " ".join(str(text).split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def page(report: Report) -> str:
    """One HTML file that needs nothing else."""
    title = html.escape(summary(report))
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}</title><style>\n{STYLE}</style></head><body>\n<h1>{title}</h1>",
    ]
    for heading, (columns, rows) in tables(report):
        state = columns.index("state") if "state" in columns else None
        parts.append(f"<h2>{heading}</h2>\n<table><tr>{_cells('th', columns)}</tr>")
        for row in rows:
            kind = "" if state is None else f' class="{html.escape(str(row[state]))}"'
            parts.append(f"<tr{kind}>{_cells('td', row)}</tr>")
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _cells(tag: str, cells: t.Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
