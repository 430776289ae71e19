# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import typing as t
from datetime import UTC, datetime

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import _report as reports
from ..module_utils._host import Host
from ..module_utils._verdict import merge
from ..plugin_utils._controller import absolute, plain
from ..plugin_utils._verdicts import cluster_entries, node_entry, registered

display = Display()


class ActionModule(ActionBase):
    """Puts together what the hosts said, and writes it for programs and for people."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        arguments, hostvars = self._task.args, (task_vars or {})["hostvars"]
        probe, verdict = (arguments.get(n, f"report_{n}") for n in ("probe", "verdict"))
        scopes = {host: hostvars.raw_get(host) for host in arguments["hosts"]}
        nodes = [
            node_entry(host, registered(scope, [verdict, probe])) for host, scope in scopes.items()
        ]
        failure = str(arguments.get("cluster_failure") or "")
        nodes += cluster_entries(arguments.get("cluster"), failure)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        merged = merge(str(arguments.get("site", "default")), date, nodes)
        probes = {host: scope.get(probe) or {} for host, scope in scopes.items()}
        report = plain(reports.build(merged, probes))
        try:
            result["files"] = _write(absolute(arguments["directory"]), report)
        except OSError as error:
            raise AnsibleActionFail(
                f"{error.filename or 'The report'}: {error.strerror or error}. Remedy: name a "
                "directory on the controller that may be written in flexai_report."
            ) from error
        display.display(reports.summary(report))
        for file in result["files"]:
            display.display(f"  {file}")
        result["report"] = report
        return result


def _write(directory: str, report: reports.Report) -> list[str]:
    texts = {
        "report.json": json.dumps(report, indent=1) + "\n",
        "report.md": reports.markdown(report),
        "report.html": reports.page(report),
    }
    for name, text in texts.items():
        Host().write(os.path.join(directory, name), text)
    return [os.path.join(directory, name) for name in texts]
