# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import typing as t
from dataclasses import replace

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils._artefacts import OPTIONAL, REQUIRED, Artefact, check_digest
from ..module_utils._errors import XpuError
from ..module_utils._host import Host
from ..plugin_utils import _fetch as fetch
from ..plugin_utils import _lock as locks
from ..plugin_utils._controller import absolute, load_artefacts, lock_path

HEADER = "# Written by flexai.xpu.bundle; use it with flexai_source: bundle.\n---\n"


def bundled(artefact: Artefact) -> dict[str, str]:
    """The entry of a bundle's manifest."""
    origin = artefact.origin or artefact.source
    entry = replace(artefact, source=artefact.bundle_path, origin=origin).as_dict()
    return {key: entry[key] for key in (*REQUIRED, *OPTIONAL) if entry[key]}


def manifest_text(artefacts: t.Iterable[Artefact]) -> str:
    """The bundle's manifest: every digest stands in it, so it needs no lock file."""
    document = {"version": 1, "artefacts": [bundled(artefact) for artefact in artefacts]}
    return HEADER + yaml.safe_dump(document, sort_keys=False)


class Bundle:
    """The directory that is written."""

    def __init__(self, dest: str, lock: str) -> None:
        self._host, self._dest, self._lock = Host(), dest, lock
        self.written: list[str] = []

    def holds(self, artefact: Artefact) -> bool:
        path = os.path.join(self._dest, artefact.bundle_path)
        return artefact.is_pinned and self._host.digest(path) == artefact.sha256

    def put(self, artefact: Artefact, source: str) -> Artefact:
        """Have it there; it appears only when it is the one. The entry, with its digest."""
        os.makedirs(self._dest, mode=0o755, exist_ok=True)
        scratch = os.path.join(self._dest, f".partial-{artefact.file}")
        try:
            with open(scratch, "wb") as out:
                found = fetch.copy(source, out)
                out.flush()
                os.fsync(out.fileno())
            pinned = locks.pinned(artefact, self._lock, lambda: found)
            what = f"{artefact.file} (from {source})"
            check_digest(what, found, pinned.sha256, pinned.pinned_by)
            real = os.path.join(self._dest, pinned.bundle_path)
            os.makedirs(os.path.dirname(real), mode=0o755, exist_ok=True)
            os.chmod(scratch, 0o644)
            os.rename(scratch, real)
        finally:
            self._host.remove(scratch)
        return pinned


def write(manifest: str, dest: str, lock: str, check: bool) -> dict[str, t.Any]:
    """Write the bundle, or say what would be written."""
    if not dest:
        raise XpuError(
            "The bundle's directory (flexai_bundle) is not set.",
            "name it: -e flexai_bundle=/media/usb/flexai.",
        )
    dest = absolute(dest)
    directory, entries = load_artefacts(manifest, lock=lock)
    bundle = Bundle(dest, lock_path(manifest, lock))
    lacking = [entry for entry in entries if not bundle.holds(entry)]
    if not check:
        entries = [
            bundle.put(entry, entry.source_in(directory)) if entry in lacking else entry
            for entry in entries
        ]
    path, text = os.path.join(dest, "manifest.yml"), manifest_text(entries)
    before = Host().read(path) or ""
    if before != text and not check:
        # Last, so that a bundle that bears a manifest is whole.
        Host().write(path, text)
    return {
        "changed": bool(lacking) or before != text,
        "manifest": path,
        "written": [entry.file for entry in lacking],
        "diff": {"before_header": path, "after_header": path, "before": before, "after": text},
    }


class ActionModule(ActionBase):
    """Brings every artefact of a manifest together in one directory."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("manifest", "dest", "lock"))

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        manifest, dest, lock = (
            str(self._task.args.get(name) or "") for name in ("manifest", "dest", "lock")
        )
        try:
            result.update(write(manifest, dest, lock, self._task.check_mode))
        except XpuError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            raise AnsibleActionFail(
                f"{error.filename or 'The bundle'}: {error.strerror or error}. Remedy: name a "
                "directory on the controller that may be written and has room."
            ) from error
        return result
