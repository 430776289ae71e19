# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_transaction
short_description: Note on a host where a change that needs a quiet node stands
version_added: 0.1.0
description:
  - Keeps one note, C(/var/lib/flexai-xpu/transaction.json), from the first step to the last, so
    that a run that was killed is taken up by the next one, and a node that stays cordoned says why.
  - Answers what the host needs now, a reboot above all.
options:
  step:
    description: The step that begins. Needed when O(state=open).
    type: str
    choices: [drain, change, reboot, validate, release]
  reason:
    description: Why it stands there; shown in the verdict.
    type: str
    default: ""
  state:
    description:
      - V(open) notes the step.
      - V(failed) notes the reason at the step that stands there, and answers in RV(release) whether
        pods may come back all the same.
      - V(closed) takes the note away.
      - V(armed) has the host go on by itself after its next boot, by a unit that runs once
        (C(flexai-xpu-resume.service)) and needs nothing of the controller. How that ended stands in
        the note then.
      - V(settled) waits for that unit where it is at work, and takes it away. The first step of
        V(open), and V(closed), do so too.
    type: str
    choices: [open, failed, closed, armed, settled]
    default: open
  in_cluster:
    description:
      - Whether the node is one of a cluster, so that O(state=armed) leaves its cordon to a play.
        Otherwise the unit closes the note when all is right.
    type: bool
    default: true
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Note that the driver is being changed
  flexai.xpu.node_transaction:
    step: change
"""

RETURN = r"""
step:
  description: The step that stands in the note; empty where none is open.
  returned: success
  type: str
reboot_due:
  description: Why the host must boot before its driver works; empty where it need not.
  returned: success
  type: str
release:
  description: Whether pods may come back although the change failed.
  returned: when O(state=failed)
  type: bool
"""

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _nvidia_driver as driver
from ..module_utils import _packages as packages
from ..module_utils import _records as records
from ..module_utils import _resume as resume
from ..module_utils import _transaction as transaction
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def _note(found: t.Mapping[str, t.Any], params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What shall stand there."""
    if params["state"] == "closed":
        return {}
    if params["state"] in ("armed", "settled"):
        return dict(found)
    if params["state"] == "failed":
        return {**found, "reason": params["reason"]} if found else {}
    return {"step": params["step"], "reason": params["reason"]}


def _unit(host: Host, params: t.Mapping[str, t.Any]) -> bool:
    """What becomes of the unit that goes on after a boot; whether that is a change."""
    if params["state"] == "armed":
        return resume.arm(host, params["in_cluster"])
    begins = params["state"] == "open" and params["step"] == transaction.STEPS[0]
    if begins or params["state"] in ("closed", "settled"):
        return resume.settle(host)
    return False


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    unit = not check and _unit(host, params)
    found = records.read(host, transaction.RECORD)
    note = _note(found, params)
    if note != found and not check:
        records.write(host, transaction.RECORD, note)
    installed = packages.observe(host, host.read(packages.DPKG_STATUS) or "")
    facts = driver.observe(host, installed, driver.Wanted(""))
    result: dict[str, t.Any] = {
        "changed": note != found or unit,
        "step": str(note.get("step", "")),
        "reboot_due": transaction.reboot_due(facts),
        "diff": {"before": _told(found), "after": _told(note)},
    }
    if params["state"] == "failed":
        result["release"] = transaction.may_release(str(found.get("step", "")), facts)
    return result


def _told(note: t.Mapping[str, t.Any]) -> str:
    return json.dumps(note, sort_keys=True) + "\n" if note else ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "step": {"type": "str", "choices": list(transaction.STEPS)},
            "reason": {"type": "str", "default": ""},
            "state": {
                "type": "str",
                "choices": ["open", "failed", "closed", "armed", "settled"],
                "default": "open",
            },
            "in_cluster": {"type": "bool", "default": True},
        },
        required_if=[("state", "open", ("step",))],
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
