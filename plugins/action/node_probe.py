# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._errors import XpuError
from ..plugin_utils._controller import desired_state, load_manifest, node_defaults, node_values


class ActionModule(ActionBase):
    """Puts the desired state together from the roles' variables, then looks at the host."""

    TRANSFERS_FILES = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        try:
            arguments.setdefault("desired", self._desired(variables))
        except XpuError as error:
            raise AnsibleActionFail(str(error)) from error
        arguments.setdefault("name", variables.get("inventory_hostname", ""))
        arguments.setdefault("root", self._template(variables)(variables.get("flexai_root", "/")))
        result.update(
            self._execute_module(
                module_name="flexai.xpu.node_probe", module_args=arguments, task_vars=variables
            )
        )
        return result

    def _template(self, scope: t.Mapping[str, t.Any]) -> t.Callable[[t.Any], t.Any]:
        templar = self._templar.copy_with_new_env(available_variables=scope)
        return templar.template

    def _desired(self, variables: dict[str, t.Any]) -> dict[str, t.Any]:
        manifest = self._template(variables)(variables.get("flexai_manifest", ""))
        _directory, artefacts = load_manifest(manifest)
        values = node_values(node_defaults(self._loader), variables, self._template)
        return desired_state(values, artefacts)
