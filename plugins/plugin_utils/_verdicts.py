# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What hosts and cluster registered in a run, as entries of a verdict."""

from __future__ import annotations

import typing as t

from ..module_utils._verdict import Component, build


def registered(scope: t.Mapping[str, t.Any], names: t.Sequence[str]) -> t.Mapping[str, t.Any]:
    """The first of these results that holds a verdict; else the first that says anything."""
    results = [scope[name] for name in names if scope.get(name)]
    results = [result for result in results if not result.get("skipped")]
    judged = [result for result in results if "verdict" in result]
    return next(iter(judged or results), {})


def node_entry(host: str, result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The host's own verdict, or why there is none."""
    if "verdict" in result:
        return dict(result["verdict"])
    if result.get("unreachable"):
        reason = f"unreachable: {result.get('msg', '')}"
    elif result.get("msg"):
        reason = str(result["msg"])
    else:
        reason = f"the run ended before the host was judged{_in_the_middle(result)}"
    return build(host, [Component("host", "a verdict", "", "failed", reason)])


def _in_the_middle(result: t.Mapping[str, t.Any]) -> str:
    """Of what, where the host was planned for and then lost."""
    due = [step["component"] for step in result.get("plan") or () if step["action"] != "ok"]
    if not due:
        return ""
    return (
        f", in the middle of {', '.join(due)}; how far it came stands on the host, and the next "
        "run takes it up"
    )


def cluster_entries(cluster: t.Mapping[str, t.Any] | None, failure: str) -> list[dict[str, t.Any]]:
    """The cluster's entry; what broke off there is one of its components."""
    judged = [Component(**part) for part in cluster["components"]] if cluster else []
    if failure:
        judged.append(Component("cluster", "changed to the end", "", "failed", failure))
    return [build("cluster", judged)] if cluster or failure else []
