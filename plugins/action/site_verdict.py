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

from ..module_utils._verdict import merge, table
from ..plugin_utils._controller import plain
from ..plugin_utils._verdicts import cluster_entries, node_entry, registered

display = Display()


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
