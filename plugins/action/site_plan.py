# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._site import plan_faults, plan_lines
from ..plugin_utils._controller import nodes_of_play

display = Display()


class ActionModule(ActionBase):
    """Shows the plan of all hosts; stops the run before any change when one of them can't go on."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        name = self._task.args.get("probe", "preflight_probe")
        hosts = nodes_of_play(variables)
        hostvars = variables["hostvars"]
        probes = {host: hostvars.raw_get(host).get(name) or {} for host in hosts}
        faults = plan_faults(probes)
        lines = plan_lines(probes)
        for line in lines:
            display.display(line)
        if faults:
            raise AnsibleActionFail("Nothing was changed on any host.\n" + "\n".join(faults))
        result["plan"] = lines
        return result
