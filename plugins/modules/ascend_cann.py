# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ascend_cann
short_description: Install or remove CANN, toolkit, kernels and nnal
version_added: 0.1.0
description:
  - Runs Huawei's C(.run) packages of one CANN in their order, toolkit, kernels, nnal; only those
    that aren't there in the wanted version. A CANN of ours in another version gives way first.
  - Stops before any change where CANN's own record names another path, where the path is on a
    network file system, and where the kernels are for another chip than the host's.
  - A CANN that somebody else installed is used where it is what is wanted and refused where it
    isn't; it is never changed nor removed.
options:
  version:
    description: Version of all parts, for example V(8.1.RC1).
    type: str
    required: true
  parts:
    description: Which parts shall be there.
    type: list
    elements: str
    choices: [toolkit, kernels, nnal]
    default: [toolkit, kernels, nnal]
  chip:
    description: Family that the kernels are for, such as V(910b); empty takes the host's own.
    type: str
    default: ""
  path:
    description: Directory that CANN stands in.
    type: path
    default: /usr/local/Ascend
  packages:
    description: Paths of the C(.run) files on the host, by part; needed for those that must run.
    type: dict
    default: {}
  state:
    description: V(absent) takes away what this module installed; the site's own stays and is named.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Install the CANN of document 001
  flexai.xpu.ascend_cann:
    version: 8.1.RC1
    packages:
      toolkit: "{{ toolkit.path }}"
      kernels: "{{ kernels.path }}"
      nnal: "{{ nnal.path }}"
"""

RETURN = r"""
left:
  description: What was not removed since it is not ours.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _ascend_cann as cann
from ..module_utils import _ascend_run as run
from ..module_utils import _records as records
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host


def _wanted(params: t.Mapping[str, t.Any]) -> cann.Wanted:
    return cann.Wanted(
        params["version"],
        tuple(part for part in cann.PARTS if part in params["parts"]),
        params["chip"],
        params["path"],
    )


def _note(host: Host, **values: t.Any) -> None:
    records.write(host, cann.RECORD, {**records.read(host, cann.RECORD), **values})


def install(host: Host, facts: cann.Facts, params: t.Mapping[str, t.Any]) -> None:
    wanted = _wanted(params)
    if facts.ours and facts.record["version"] != wanted.version:
        remove(host, facts)
        facts = cann.observe(host, wanted)
    packages = {**facts.record.get("packages", {}), **params["packages"]}
    _note(host, state=cann.INSTALLING, version=wanted.version, packages=packages)
    for step in cann.steps(facts, wanted):
        what = f"{step.part} of CANN {wanted.version}"
        run.package(host, params["packages"].get(step.part) or "", step.flags, what)
    lacking = cann.missing(cann.observe(host, wanted), wanted)
    if lacking:
        raise XpuError(
            f"The packages ended well, but {', '.join(lacking)} of CANN {wanted.version} is not "
            f"under {wanted.path}.",
            "check that the artefacts are of the version and chip they say.",
        )
    _note(host, state=cann.INSTALLED)


def remove(host: Host, facts: cann.Facts) -> None:
    """Those that rest on others first; what a broken-off run didn't bring isn't there to go."""
    packages = facts.record.get("packages", {})
    _note(host, state=cann.INSTALLING)
    for part in reversed(cann.PARTS):
        if facts.versions[part]:
            what = f"{part} of CANN {facts.versions[part]}"
            run.package(host, packages.get(part, ""), ("--uninstall",), what)
    records.write(host, cann.RECORD, {})


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    wanted, present = _wanted(params), params["state"] == "present"
    facts = cann.observe(host, wanted)
    before = after = cann.describe(facts.versions)
    left: list[str] = []
    if present:
        decision = cann.plan(facts, wanted)
        if decision.action == BLOCKED:
            raise XpuError(
                f"CANN can't be installed: {decision.reason}.",
                "see what the sentence names; nothing was changed.",
            )
        changed = decision.action != OK
        if changed:
            asked = dict.fromkeys(wanted.parts, wanted.version)
            after = cann.describe({**facts.versions, **asked})
    else:
        changed = facts.ours
        if changed:
            after = cann.describe(dict.fromkeys(cann.PARTS, ""))
        elif any(facts.versions.values()):
            left = [f"CANN {facts.found.toolkit}: not installed by flexai.xpu"]
    if changed and not check:
        if present:
            install(host, facts, params)
        else:
            remove(host, facts)
    return {"changed": changed, "left": left, "diff": {"before": before, "after": after}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str", "required": True},
            "parts": {
                "type": "list",
                "elements": "str",
                "choices": ["toolkit", "kernels", "nnal"],
                "default": ["toolkit", "kernels", "nnal"],
            },
            "chip": {"type": "str", "default": ""},
            "path": {"type": "path", "default": "/usr/local/Ascend"},
            "packages": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
