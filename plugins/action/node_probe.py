# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._artefacts import Artefact
from ..module_utils._errors import XpuError
from ..plugin_utils._controller import desired_state, load_manifest, node_defaults, node_values


class ActionModule(ActionBase):
    """Puts the desired state together from the roles' variables, then looks at the host."""

    TRANSFERS_FILES = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        template = self._template(variables)
        manifest = arguments.pop("manifest", template(variables.get("flexai_manifest", "")))
        without_artefacts = self._task.args.get("manifest") == ""
        try:
            artefacts = [] if without_artefacts else load_manifest(manifest)[1]
            arguments.setdefault("desired", self._desired(variables, artefacts))
        except XpuError as error:
            raise AnsibleActionFail(str(error)) from error
        arguments.setdefault("name", variables.get("inventory_hostname", ""))
        arguments.setdefault("root", template(variables.get("flexai_root", "/")))
        result.update(
            self._execute_module(
                module_name="flexai.xpu.node_probe", module_args=arguments, task_vars=variables
            )
        )
        return result

    def _template(self, scope: t.Mapping[str, t.Any]) -> t.Callable[[t.Any], t.Any]:
        templar = self._templar.copy_with_new_env(available_variables=scope)
        return templar.template

    def _desired(self, variables: dict[str, t.Any], artefacts: list[Artefact]) -> dict[str, t.Any]:
        values = node_values(node_defaults(self._loader), variables, self._template)
        if self._template(variables)(variables.get("images_registry") or ""):
            # The kubelet pulls them from there.
            artefacts = [artefact for artefact in artefacts if artefact.kind != "image"]
        return desired_state(values, artefacts)
