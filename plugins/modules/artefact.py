# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: artefact
short_description: Bring an artefact of the manifest to a host, checked by its digest
version_added: 0.1.0
description:
  - Finds the artefact in the manifest on the controller, chooses the one for the host's
    architecture and puts it under C(/var/cache/flexai-xpu/<sha256>/<file>),
    unless it lies there already.
  - A file source is sent by the controller, a URL is fetched by the host itself.
  - The SHA-256 is checked on the host, each time, before the path is returned.
  - Where the manifest says V(first-use) in place of a digest, the controller finds it out once and
    records it in the site's lock file; ever after it is checked like any other.
options:
  name:
    description: Name of the artefact, for example V(nvidia-driver).
    type: str
    required: true
  version:
    description: Version; empty means the newest in the manifest.
    type: str
    default: ""
  manifest:
    description: The manifest, on the controller.
    type: path
    required: true
  source:
    description:
      - Where the file comes from. V(manifest) means from where its entry says, V(bundle) from the
        manifest's own directory and from nowhere else, as M(flexai.xpu.bundle) has written it.
      - Without it, C(flexai_source) of the host, or V(manifest).
    type: str
    choices: [manifest, bundle]
  lock:
    description:
      - The site's lock file, on the controller; without it C(flexai_lock) of the host, or
        C(lock.yml) beside the manifest.
    type: path
  candidates:
    description: Entries of the manifest, one per architecture. Filled in by the action plugin.
    type: list
    elements: dict
  staged:
    description: Where the action plugin has put the file on the host.
    type: path
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    support: none
    description: Artefacts are binary files.
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have the driver's installer on the host
  flexai.xpu.artefact:
    name: nvidia-driver
    version: 580.95.05
    manifest: /srv/artefacts/manifest.yml
  register: installer
"""

RETURN = r"""
path:
  description:
    - Where the artefact lies on the host. Empty in check mode where its digest is not known yet.
  returned: success
  type: str
artefact:
  description: The manifest's entry for this host.
  returned: success
  type: dict
present:
  description: Whether the file is there now, with the right digest.
  returned: success
  type: bool
"""

import os
import shutil
import typing as t
from http.client import HTTPException

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._artefacts import Artefact, check_digest, for_architecture
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host


def place(host: Host, artefact: Artefact, stream: t.BinaryIO) -> None:
    """Copy *stream* to the artefact's path, which appears only when its digest is right."""
    real = host.path(artefact.host_path)
    os.makedirs(os.path.dirname(real), mode=0o755, exist_ok=True)
    partial = f"{artefact.host_path}.partial"
    try:
        with open(host.path(partial), "wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        check_digest(
            f"{artefact.file} (from {artefact.source})",
            host.digest(partial),
            artefact.sha256,
            artefact.pinned_by,
        )
        os.rename(host.path(partial), real)
    except BaseException:
        host.remove(partial)
        host.remove_empty(os.path.dirname(partial))
        raise


class _Counted:
    """A response whose bytes are counted: one that breaks off ends like a whole one."""

    def __init__(self, response: t.Any) -> None:
        self._response, self.length = response, 0

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._response.read(size)
        self.length += len(block)
        return block


def _fetch(module: t.Any, host: Host, artefact: Artefact) -> None:
    from ansible.module_utils.urls import fetch_url

    try:
        response, info = fetch_url(module, artefact.source, timeout=60)
    except HTTPException as error:  # an error page that breaks off
        raise XpuError(
            f"{artefact.source} gave a broken answer ({error}).",
            "check the URL and the host's proxy variables, or give a file as source.",
        ) from error
    if info["status"] != 200:
        # No answer at all has a negative status, and what happened in msg.
        answered = f"answered {info['status']}" if info["status"] > 0 else "can't be fetched"
        raise XpuError(
            f"{artefact.source} {answered} ({info['msg']}).",
            "check the URL and the host's proxy variables, or give a file as source.",
        )
    counted = _Counted(response)
    try:
        place(host, artefact, t.cast(t.BinaryIO, counted))
    except (OSError, XpuError, HTTPException) as error:
        _raise_if_broken_off(artefact, counted.length, info.get("content-length", ""), error)
        raise


def _raise_if_broken_off(
    artefact: Artefact, length: int, promised: str, cause: BaseException
) -> None:
    if promised.isdigit() and length < int(promised):
        raise XpuError(
            f"{artefact.source} broke off after {length} of {promised} bytes.",
            "run again; when it breaks off there each time, the server's file or a proxy is at "
            "fault.",
        ) from cause


def bring(module: t.Any) -> dict[str, t.Any]:
    host = Host(module.params["root"])
    entries = [Artefact(**entry) for entry in module.params["candidates"]]
    artefact = for_architecture(entries, os.uname().machine)
    if not artefact.is_pinned:
        # The controller finds its digest out and calls again.
        return {
            "path": "",
            "artefact": artefact.as_dict(),
            "changed": module.check_mode,
            "present": False,
        }
    result = {"path": artefact.host_path, "artefact": artefact.as_dict()}
    found = host.digest(artefact.host_path)
    if found == artefact.sha256:
        return {**result, "changed": False, "present": True}
    if module.check_mode:
        return {**result, "changed": True, "present": False}
    if module.params["staged"]:
        with open(module.params["staged"], "rb") as stream:
            place(host, artefact, stream)
    elif artefact.is_remote:
        _fetch(module, host, artefact)
    else:
        # The controller sends the file and calls again.
        return {**result, "changed": False, "present": False}
    return {**result, "changed": True, "present": True}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "manifest": {"type": "path", "required": True},
            "source": {"type": "str", "choices": ["manifest", "bundle"]},
            "lock": {"type": "path"},
            "candidates": {"type": "list", "elements": "dict"},
            "staged": {"type": "path"},
        },
        supports_check_mode=True,
    )
    run_module(module, bring)


if __name__ == "__main__":
    main()
