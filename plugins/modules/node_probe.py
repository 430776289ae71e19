# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: node_probe
short_description: Look at a host once, and plan what its components need
version_added: 0.1.0
description:
  - Observes driver, container toolkit, container runtime, xpu runtime and images of one host in one
    execution and returns what to do about each.
  - Where the plan has nothing to do, the host is judged in the same execution, by the code of
    M(flexai.xpu.node_verdict), which knows nothing of the plan.
  - Nothing is changed. What is wanted comes from the variables of the roles, put together on the
    controller, unless O(desired) says otherwise.
options:
  name:
    description: Name of the host in the verdict; the inventory's when not given.
    type: str
  manifest:
    description:
      - The artefact manifest, on the controller; C(flexai_manifest) when not given.
      - Empty for none, where only the facts are asked for.
    type: path
  components:
    description: The components that the plan is about; all when not given.
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
  desired:
    description: The desired state as plain data; made from the roles' variables when not given.
    type: dict
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Look at the host
  flexai.xpu.node_probe:
  register: preflight_probe
"""

RETURN = r"""
facts:
  description: What was found, per component.
  returned: success
  type: dict
plan:
  description: Per component what to do; the order is that of installation.
  returned: success
  type: list
  elements: dict
  sample:
    - component: nvidia_driver
      action: install
      wanted: 580.95.05
      found: ""
      reason: driver absent → 580.95.05
verdict:
  description: The host's verdict, as M(flexai.xpu.node_verdict) returns it.
  returned: when every action of the plan is V(ok)
  type: dict
components:
  description: The components that plan and verdict are about.
  returned: success
  type: list
  elements: str
wanted:
  description: What M(flexai.xpu.node_verdict) shall ask for on this host.
  returned: success
  type: dict
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._decision import OK, Decision
from ..module_utils._errors import run_module
from ..module_utils._host import Host
from ..module_utils._judge import judge
from ..module_utils._plan import (
    COMPONENTS,
    components_of,
    not_root,
    observe,
    observe_host,
    plan,
    wanted,
)

# The texts of whole files are needed for the plan only.
NOT_RETURNED = ("drop_in", "cdi", "config")


def _facts(facts: t.Any) -> dict[str, t.Any]:
    parts = facts._asdict().items()
    return {component: _without_texts(part) for component, part in parts if part is not None}


def _without_texts(part: t.Any) -> dict[str, t.Any]:
    found = part._asdict() if hasattr(part, "_asdict") else dict(part)
    return {name: value for name, value in found.items() if name not in NOT_RETURNED}


def probe(host: Host, name: str, desired: dict[str, t.Any]) -> dict[str, t.Any]:
    seen = observe_host(host, desired)
    asked = wanted(seen, desired)
    refusal = not_root(seen)
    components = components_of(desired)
    if refusal:
        return _result({"host": seen._asdict()}, refusal, asked, components)
    facts = observe(host, desired)
    decisions = plan(facts, desired)
    result = _result(_facts(facts), decisions, asked, components)
    if all(decision.action == OK for decision in decisions):
        result["verdict"] = judge(host, name, asked, {}, components, transaction=True)
    return result


def _result(
    facts: dict[str, t.Any],
    decisions: t.Iterable[Decision],
    asked: dict[str, t.Any],
    components: list[str],
) -> dict[str, t.Any]:
    return {
        "changed": False,
        "facts": facts,
        "plan": [decision.as_dict() for decision in decisions],
        "wanted": asked,
        "components": components,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "name": {"type": "str"},
            "manifest": {"type": "path"},
            "components": {"type": "list", "elements": "str", "choices": list(COMPONENTS)},
            "desired": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    run_module(
        module,
        lambda m: probe(
            Host(m.params["root"]),
            m.params["name"] or "",
            {**m.params["desired"], "components": m.params["components"]},
        ),
    )


if __name__ == "__main__":
    main()
