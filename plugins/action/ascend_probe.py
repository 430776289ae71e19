# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ..plugin_utils._controller import ascend_state, node_defaults, node_values

ROLES = ("ascend_driver", "ascend_cann")


class ActionModule(ActionBase):
    """Puts the desired state together from the roles' variables, then looks at the host."""

    TRANSFERS_FILES = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        template = self._template(variables)
        if "desired" not in arguments:
            defaults = node_defaults(self._loader, ROLES)
            arguments["desired"] = ascend_state(node_values(defaults, variables, self._template))
        arguments.setdefault("root", template(variables.get("flexai_root", "/")))
        result.update(
            self._execute_module(
                module_name="flexai.xpu.ascend_probe", module_args=arguments, task_vars=variables
            )
        )
        return result

    def _template(self, scope: t.Mapping[str, t.Any]) -> t.Callable[[t.Any], t.Any]:
        templar = self._templar.copy_with_new_env(available_variables=scope)
        return templar.template
