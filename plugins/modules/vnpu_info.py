# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vnpu_info
short_description: Look at the chips of an Ascend host and their vNPUs
version_added: 0.1.0
description:
  - Lists every chip with the templates that it can be divided by, what is free of it, its vNPUs,
    and the processes that hold memory of it.
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes_info
seealso:
  - module: flexai.xpu.vnpu
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Look at the chips
  flexai.xpu.vnpu_info:
  register: npus

- name: Which templates the first chip has
  ansible.builtin.debug:
    msg: "{{ npus.chips[0].templates | map(attribute='name') }}"
"""

RETURN = r"""
version:
  description: The driver's version, as C(npu-smi) says it.
  returned: success
  type: str
chips:
  description: One entry a chip.
  returned: success
  type: list
  elements: dict
  sample:
    - npu: 0
      chip: 0
      name: 910B3
      health: OK
      bus: "0000:3b:00.0"
      used_mib: 3161
      total_mib: 65536
      templates:
        - {name: vir05_1c_16g, aicore: 5, memory_gb: 16, aicpu: 1}
      free: {aicore: 20, memory_gb: 64, aicpu: 6}
      vnpus: []
      processes: []
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._ascend_smi import Chip, Info, Smi
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def _chip(smi: Smi, info: Info, one: Chip) -> dict[str, t.Any]:
    layout = smi.layout(one.npu, one.chip)
    mine = [found for found in info.processes if (found.npu, found.chip) == (one.npu, one.chip)]
    return {
        **one._asdict(),
        "templates": [template._asdict() for template in smi.templates(one.npu)],
        "free": {
            "aicore": layout.aicore[0],
            "memory_gb": layout.memory_gb[0],
            "aicpu": layout.aicpu[0],
        },
        "vnpus": [vnpu._asdict() for vnpu in layout.vnpus],
        "processes": [
            {"pid": found.pid, "name": found.name, "memory_mib": found.memory_mib} for found in mine
        ],
    }


def look(host: Host) -> dict[str, t.Any]:
    smi = Smi(host)
    info = smi.info()
    return {
        "changed": False,
        "version": info.version,
        "chips": [_chip(smi, info, one) for one in info.chips],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": "/"}}, supports_check_mode=True
    )
    run_module(module, lambda m: look(Host(m.params["root"])))


if __name__ == "__main__":
    main()
