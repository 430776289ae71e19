# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_verdict
short_description: Ask a host's own tools what is really in force
version_added: 0.1.0
description:
  - Judges driver, toolkit, container runtime, xpu runtime, agent and images by asking
    C(nvidia-smi), the dynamic loader, C(nvidia-ctk), the runtime's effective configuration,
    C(systemctl) and C(ctr).
  - Shares no knowledge with the plan, so that an error in the plan can't hide itself here.
  - Nothing is changed.
options:
  name:
    description: Name of the host in the verdict.
    type: str
    required: true
  wanted:
    description: RV(flexai.xpu.node_probe#module:wanted) of the host.
    type: dict
    required: true
  planned:
    description: Component to planned action; one that is right after a change is C(changed).
    type: dict
    default: {}
  components:
    description: The components to judge; all that O(wanted) says something of when not given.
    type: list
    elements: str
    choices:
      - nvidia_driver
      - cuda_toolkit
      - container_engine
      - container_toolkit
      - container_runtime
      - xpu_runtime
      - xpu_agent
      - images
  transaction:
    description: Whether a change of the node that has not come to its end is part of the verdict.
    type: bool
    default: false
  strict:
    description: Whether a verdict that is not ready is an error.
    type: bool
    default: false
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Judge the host
  flexai.xpu.node_verdict:
    name: "{{ inventory_hostname }}"
    wanted: "{{ preflight_probe.wanted }}"
  register: flexai_node_verdict
"""

RETURN = r"""
verdict:
  description: The host's verdict.
  returned: success
  type: dict
  sample:
    name: gpu1
    ready: true
    components:
      - name: nvidia_driver
        wanted: 580.95.05
        found: 580.95.05
        state: ok
        reason: 2 cards
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host
from ..module_utils._judge import JUDGES, judge
from ..module_utils._verdict import READY_STATES


def verdict(host: Host, params: dict[str, t.Any]) -> dict[str, t.Any]:
    judged = judge(
        host,
        params["name"],
        params["wanted"],
        params["planned"],
        params["components"],
        params["transaction"],
    )
    if params["strict"] and not judged["ready"]:
        raise XpuError(
            f"{judged['name']} is not ready: {'; '.join(_complaints(judged))}.",
            "run flexai.xpu.site, or the component's role, for this host.",
        )
    return {"changed": False, "verdict": judged}


def _complaints(judged: dict[str, t.Any]) -> list[str]:
    return [
        f"{part['name']} is {part['state']} (wanted {part['wanted']}, found "
        f"{part['found'] or 'nothing'}): {part['reason']}"
        for part in judged["components"]
        if part["state"] not in READY_STATES
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "name": {"type": "str", "required": True},
            "wanted": {"type": "dict", "required": True},
            "planned": {"type": "dict", "default": {}},
            "components": {
                "type": "list",
                "elements": "str",
                "choices": list(JUDGES),
            },
            "transaction": {"type": "bool", "default": False},
            "strict": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: verdict(Host(m.params["root"]), m.params))


if __name__ == "__main__":
    main()
