# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ascend_probe
short_description: Look at an Ascend host once, plan what it needs, judge what is in force
version_added: 0.1.0
description:
  - Observes driver, firmware and CANN of one host in one execution and returns what to do about
    each. Nothing is changed.
  - Where the plan has nothing to do and no reboot is due, the host is judged in the same execution,
    by what C(npu-smi) and CANN's own environment say.
  - What is wanted comes from the variables of roles P(flexai.xpu.ascend_driver#role) and
    P(flexai.xpu.ascend_cann#role), put together on the controller, unless O(desired) says
    otherwise.
options:
  desired:
    description:
      - What is wanted of C(ascend_driver) and C(ascend_cann), as plain data; made from the roles'
        variables when not given.
    type: dict
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Look at the host
  flexai.xpu.ascend_probe:
  register: ascend
"""

RETURN = r"""
plan:
  description: Per component what to do; the order is that of installation.
  returned: success
  type: list
  elements: dict
  sample:
    - component: ascend_driver
      action: install
      wanted: 25.0.rc1.1
      found: ""
      reason: driver absent → 25.0.rc1.1; firmware absent → 7.7.0.1.231
actions:
  description: Component → action of the plan.
  returned: success
  type: dict
  sample: {ascend_driver: install, ascend_cann: install}
blocked:
  description: What stands in the way, by component; empty where nothing does.
  returned: success
  type: list
  elements: str
reboot_required:
  description: Whether something was installed since the host booted.
  returned: success
  type: bool
verdict:
  description: C(ready), and C(problems) as sentences.
  returned: when every action of the plan is V(ok) and no reboot is due
  type: dict
  sample: {ready: true, problems: []}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _ascend_cann as cann
from ..module_utils import _ascend_driver as driver
from ..module_utils import _ascend_judge as judge
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def probe(host: Host, desired: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    wanted_driver = driver.Wanted(**desired["ascend_driver"])
    asked = desired["ascend_cann"]
    wanted_cann = cann.Wanted(**{**asked, "parts": tuple(asked["parts"])})
    facts = driver.observe(host)
    plan = [
        driver.plan(facts, wanted_driver),
        cann.plan(cann.observe(host, wanted_cann), wanted_cann),
    ]
    result: dict[str, t.Any] = {
        "changed": False,
        "plan": [decision.as_dict() for decision in plan],
        "actions": {decision.component: decision.action for decision in plan},
        "blocked": [
            f"{decision.component}: {decision.reason}"
            for decision in plan
            if decision.action == BLOCKED
        ],
        "reboot_required": facts.reboot_required,
    }
    if not facts.reboot_required and all(decision.action == OK for decision in plan):
        problems = judge.driver(host, wanted_driver.driver, wanted_driver.firmware)
        problems += judge.cann(host, wanted_cann.path, wanted_cann.version, wanted_cann.parts)
        result["verdict"] = {"ready": not problems, "problems": problems}
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": "/"}, "desired": {"type": "dict"}},
        supports_check_mode=True,
    )
    run_module(module, lambda m: probe(Host(m.params["root"]), m.params["desired"]))


if __name__ == "__main__":
    main()
