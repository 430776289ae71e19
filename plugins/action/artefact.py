# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._artefacts import Artefact, require
from ..module_utils._errors import XpuError
from ..plugin_utils import _fetch as fetch
from ..plugin_utils import _lock as locks
from ..plugin_utils._controller import checked_source, load_artefacts, lock_path


class ActionModule(ActionBase):
    """Finds the manifest's entries here and sends the file only where it is missing."""

    TRANSFERS_FILES = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            answer = self._bring(task_vars or {})
        except XpuError as error:
            raise AnsibleActionFail(str(error)) from error
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        result.update(answer)
        return result

    def _bring(self, variables: dict[str, t.Any]) -> dict[str, t.Any]:
        manifest = self._task.args.get("manifest") or ""
        source = self._setting("source", "flexai_source", variables) or "manifest"
        lock = self._setting("lock", "flexai_lock", variables)
        directory, artefacts = load_artefacts(manifest, source, lock)
        version = str(self._task.args.get("version") or "")
        entries = require(artefacts, self._task.args.get("name"), version, manifest)
        answer = self._ask(entries, variables)
        if self._must_act(answer) and not answer["path"]:
            entries = [_pinned(directory, answer, lock_path(manifest, lock))]
            answer = self._ask(entries, variables)
        if self._must_act(answer):
            answer = self._send(directory, entries, answer, variables)
        return answer

    def _setting(self, option: str, variable: str, variables: dict[str, t.Any]) -> str:
        """The task's own word, else the site's."""
        said = self._task.args.get(option) or self._templar.template(variables.get(variable, ""))
        return str(said)

    def _must_act(self, answer: dict[str, t.Any]) -> bool:
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
        local = checked_source(directory, chosen)
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        staged = self._connection._shell.join_path(self._connection._shell.tmpdir, chosen.file)
        self._transfer_file(local, staged)
        return self._ask(entries, task_vars, staged=staged)


def _pinned(directory: str, answer: dict[str, t.Any], lock: str) -> Artefact:
    """The entry that the host chose, with a digest from now on."""
    chosen = Artefact(**answer["artefact"])
    return locks.pinned(chosen, lock, lambda: fetch.digest(chosen.source_in(directory)))
