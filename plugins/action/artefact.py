# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._artefacts import Artefact, check_digest, require
from ..module_utils._errors import XpuError
from ..module_utils._host import Host
from ..plugin_utils._controller import load_manifest, source_path


class ActionModule(ActionBase):
    """Finds the manifest's entries here and sends the file only where it is missing."""

    TRANSFERS_FILES = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            directory, entries = self._entries()
            answer = self._ask(entries, task_vars)
            if self._must_send(answer):
                answer = self._send(directory, entries, answer, task_vars)
        except XpuError as error:
            raise AnsibleActionFail(str(error)) from error
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        result.update(answer)
        return result

    def _entries(self) -> tuple[str, list[Artefact]]:
        arguments = self._task.args
        manifest = arguments.get("manifest") or ""
        directory, artefacts = load_manifest(manifest)
        version = str(arguments.get("version") or "")
        return directory, require(artefacts, arguments.get("name"), version, manifest)

    def _must_send(self, answer: dict[str, t.Any]) -> bool:
        failed = answer.get("failed") or answer.get("unreachable")
        return not failed and not answer["present"] and not self._task.check_mode

    def _ask(self, entries: list[Artefact], task_vars: t.Any, **more: t.Any) -> dict[str, t.Any]:
        arguments = {
            **self._task.args,
            "candidates": [entry.as_dict() for entry in entries],
            **more,
        }
        answer: dict[str, t.Any] = self._execute_module(
            module_name="flexai.xpu.artefact", module_args=arguments, task_vars=task_vars
        )
        return answer

    def _send(
        self, directory: str, entries: list[Artefact], answer: dict[str, t.Any], task_vars: t.Any
    ) -> dict[str, t.Any]:
        chosen = Artefact(**answer["artefact"])
        local = source_path(directory, chosen)
        check_digest(local, Host().digest(local), chosen.sha256)
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        staged = self._connection._shell.join_path(self._connection._shell.tmpdir, chosen.file)
        self._transfer_file(local, staged)
        return self._ask(entries, task_vars, staged=staged)
