# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vgpu
short_description: Register a slice of a card on a host without Kubernetes
version_added: 0.1.0
description:
  - A slice is a part of one card's compute and memory under a name. Docker and Podman give it to a
    container as the CDI device C(huawei.com/vgpu=NAME).
  - The host's command and the device plugin of a cluster keep one ledger under one lock, so that
    they can't promise the same share of a card, should a host ever have both.
  - A slice that is there is resized while its containers run. What a task leaves out stays as it
    is.
options:
  name:
    description:
      - Name of the slice and of its CDI device; 1 to 63 letters, digits, C(_), C(.) and C(-), with
        a letter or digit at both ends.
    type: str
    required: true
  state:
    description:
      - V(present) registers the slice, resizes it, or mends what is broken of it.
      - V(absent) takes it away. It fails while a container has the slice, unless O(force=true).
    type: str
    choices: [present, absent]
    default: present
  card:
    description:
      - UUID or index of the card; V(auto) takes the one on which the slice fits best.
      - A slice that is there stays on its card. To name another is an error.
    type: str
    default: auto
  cores:
    description:
      - Percent of the card's compute, 1 to 100. V(0), the default of a new slice, is no compute
        limit.
    type: int
  memory_mib:
    description:
      - Memory in MiB. V(0), the default of a new slice, is all of the card's memory.
      - Less than processes of the slice hold is an error, unless O(force=true).
    type: int
  mode:
    description:
      - How O(cores) is enforced. V(hard), the default of a new slice, is never above them;
        V(elastic) is above them while others are idle; V(fixed-share) is in windows of its own.
      - V(priority) has no cores and runs in what others leave.
    type: str
    choices: [hard, elastic, fixed-share, priority]
  weight:
    description:
      - Part in what others leave, for O(mode=elastic) and O(mode=priority); 0 to 10000.
      - With V(0), the default of a new slice, mode V(elastic) counts as 1, and V(priority) runs
        only while all others are idle.
    type: int
  force:
    description:
      - With O(state=absent) take the slice from under containers that have it. They keep what they
        have mapped and the limits they had, while the card is promised to others.
      - With O(state=present) allow less memory than is in use. Processes keep what they hold and
        get no more.
    type: bool
    default: false
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
notes:
  - Needs root, and C(gpu-device-plugin), which role P(flexai.xpu.xpu_agent#role) installs.
seealso:
  - module: flexai.xpu.vgpu_info
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: A fifth of a card's compute and 3 GiB of its memory
  flexai.xpu.vgpu:
    name: train
    cores: 20
    memory_mib: 3072
  register: slice

- name: Use it
  community.docker.docker_container:
    name: trainer
    image: trainer:1
    devices:
      - "{{ slice.device }}"

- name: More compute while others are idle
  flexai.xpu.vgpu:
    name: train
    mode: elastic
    weight: 2

- name: Give it back
  flexai.xpu.vgpu:
    name: train
    state: absent
"""

RETURN = r"""
action:
  description: What was done, or would be; V(mended) is files that a kill or a reboot left wrong.
  returned: success
  type: str
  sample: added
device:
  description: The CDI device's full name.
  returned: when O(state=present)
  type: str
  sample: huawei.com/vgpu=train
slice:
  description: The slice as it is now, or would be.
  returned: when O(state=present)
  type: dict
  sample:
    name: train
    device: huawei.com/vgpu=train
    card: GPU-5a3c1f5e-7d3c-4f6a-9a51-0c8f2f6b7c11
    cores_percent: 20
    memory_mib: 3072
    mode: hard
    weight: 0
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _vgpu as vgpu
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    vgpu.check(params)
    said = vgpu.ask(host, vgpu.argv(params, check))
    before, after = said["before"], said["after"]
    result = {
        "changed": said["changed"],
        "action": said["action"],
        "warnings": [said["warning"]] if said.get("warning") else [],
        "diff": {
            "before_header": f"slice {params['name']}",
            "after_header": f"slice {params['name']}",
            "before": vgpu.told(before),
            "after": vgpu.told(after),
        },
    }
    return {**result, "device": after["device"], "slice": after} if after else result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "card": {"type": "str", "default": "auto"},
            "cores": {"type": "int"},
            "memory_mib": {"type": "int"},
            "mode": {"type": "str", "choices": ["hard", "elastic", "fixed-share", "priority"]},
            "weight": {"type": "int"},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
