# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vgpu_info
short_description: Which slices a host has given out, who uses them, and what is free
version_added: 0.1.0
description:
  - Reads the host's ledger of slices, those of pods among them, and its cards.
  - Works without a driver too; then the cards, and whether a slice can be used, are not known.
options:
  name:
    description: Return the host's slice of this name only.
    type: str
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes_info
notes:
  - Needs root, and C(gpu-device-plugin), which role P(flexai.xpu.xpu_agent#role) installs.
seealso:
  - module: flexai.xpu.vgpu
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Look
  flexai.xpu.vgpu_info:
  register: vgpus

- name: Name the slices that no container has
  ansible.builtin.debug:
    msg: "{{ vgpus.slices | rejectattr('use.containers') | map(attribute='name') }}"
"""

RETURN = r"""
slices:
  description: One entry for each slice of a card.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the CDI device without its kind.
      type: str
    device:
      description: Name of the CDI device.
      type: str
    owner:
      description: V(host), or the pod and container that have it.
      type: str
    card:
      description: UUID of the card.
      type: str
    cores_percent:
      description: Percent of the card's compute; V(0) is no limit.
      type: int
    memory_mib:
      description: Memory in MiB.
      type: int
    mode:
      description: How the compute share is enforced.
      type: str
    weight:
      description: Part in what others leave.
      type: int
    state:
      description: >-
        V(ready); V(card-missing) when the card has left the host; V(incomplete) when files are
        missing or not what the ledger says, which M(flexai.xpu.vgpu) mends; V(unknown) without a
        driver.
      type: str
    use:
      description: >-
        C(processes) that use the card by pid, C(containers) that have the slice by pid and
        cgroup, and C(memory_bytes) that the processes hold.
      type: dict
cards:
  description: Cards with what is free of each, in C(free_cores_percent) and C(free_memory_mib).
  returned: success
  type: list
  elements: dict
problem:
  description: Why the cards could not be read; empty when they could.
  returned: success
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _vgpu as vgpu
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def look(host: Host, name: str | None) -> dict[str, t.Any]:
    said = vgpu.ask(host, [vgpu.PROGRAM, "slice", "list", "--output=json"])
    if name is not None:
        said["slices"] = [
            one for one in said["slices"] if one["owner"] == "host" and one["name"] == name
        ]
    return {"changed": False, **said}


def main() -> None:
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": "/"}, "name": {"type": "str"}},
        supports_check_mode=True,
    )
    run_module(module, lambda m: look(Host(m.params["root"]), m.params["name"]))


if __name__ == "__main__":
    main()
