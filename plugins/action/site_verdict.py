# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import tempfile
import typing as t
from datetime import UTC, datetime

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._verdict import Component, build, merge, table
from ..plugin_utils._controller import plain

display = Display()


def registered(scope: t.Mapping[str, t.Any], names: t.Sequence[str]) -> t.Mapping[str, t.Any]:
    """The first of these results that holds a verdict; else the first that says anything."""
    results = [scope[name] for name in names if scope.get(name)]
    judged = [result for result in results if "verdict" in result]
    return next(iter(judged or results), {})


def node_entry(host: str, result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The host's own verdict, or why there is none."""
    if "verdict" in result:
        return dict(result["verdict"])
    if result.get("unreachable"):
        reason = f"unreachable: {result.get('msg', '')}"
    else:
        reason = str(result.get("msg") or "the run ended before the host was judged")
    return build(host, [Component("host", "a verdict", "", "failed", reason)])


def cluster_entries(cluster: t.Mapping[str, t.Any] | None, failure: str) -> list[dict[str, t.Any]]:
    """The cluster's entry; what broke off there is one of its components."""
    judged = [Component(**part) for part in cluster["components"]] if cluster else []
    if failure:
        judged.append(Component("cluster", "changed to the end", "", "failed", failure))
    return [build("cluster", judged)] if cluster or failure else []


def write(path: str, verdict: t.Mapping[str, t.Any]) -> None:
    """Replace the file in one step, so that a reader never sees half a verdict."""
    real = os.path.abspath(os.path.expanduser(path))
    os.makedirs(os.path.dirname(real), exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".verdict-", dir=os.path.dirname(real))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(verdict, stream, indent=1)
            stream.write("\n")
        os.chmod(scratch, 0o644)
        os.replace(scratch, real)
    except BaseException:
        os.unlink(scratch)
        raise


def complaint(verdict: t.Mapping[str, t.Any]) -> str:
    """The components that keep a site from being ready."""
    wrong = [
        f"{node['name']}: {part['name']} {part['state']}"
        + (f" ({part['reason']})" if part["reason"] else "")
        for node in verdict["nodes"]
        if not node["ready"]
        for part in node["components"]
        if part["state"] not in ("ok", "changed")
    ]
    listed = "\n".join(wrong) or "no host was judged"
    return f"Site {verdict['site']} is not ready.\n{listed}"


class ActionModule(ActionBase):
    """Merges, shows, writes and passes on the verdict."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        arguments, hostvars = self._task.args, (task_vars or {})["hostvars"]
        names = arguments.get("results", ["flexai_node_verdict", "preflight_probe"])
        nodes = [
            node_entry(host, registered(hostvars.raw_get(host), names))
            for host in arguments["hosts"]
        ]
        failure = str(arguments.get("cluster_failure") or "")
        nodes += cluster_entries(arguments.get("cluster"), failure)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        verdict = plain(merge(str(arguments.get("site", "default")), date, nodes))
        for line in table(verdict["nodes"]):
            display.display(line)
        if arguments.get("file"):
            write(str(arguments["file"]), verdict)
        data = {"flexai_verdict": verdict, "flexai_ready": verdict["ready"]}
        result["ansible_stats"] = {"data": data, "per_host": False, "aggregate": False}
        result["verdict"] = verdict
        if not verdict["ready"] and boolean(arguments.get("fail_unready", True)):
            result.update(failed=True, msg=complaint(verdict))
        return result
