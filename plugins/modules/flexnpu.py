# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: flexnpu
short_description: Register a task with flexnpud, which shares an NPU in time
version_added: 0.1.0
description:
  - A registered task gets its part of every turn on its NPU; the parts of all tasks of one NPU make
    at most the quota of C(flexnpud.conf).
  - A task that is there with other values is registered anew with these; where that is refused, its
    former registration is put back.
  - The module runs on the NPU's host, since C(flexnpud) answers there alone.
options:
  flexnpu_id:
    description: Name of the task; unique on the host.
    type: str
    required: true
  state:
    description: V(absent) takes the registration away.
    type: str
    choices: [present, absent]
    default: present
  npu:
    description: Number of the NPU that the task's process runs on. Needed with O(state=present).
    type: int
  chip:
    description: Number of the chip on it.
    type: int
    default: 0
  aicore_alloc:
    description:
      - Slots of a turn that are the task's. Of tasks with 2 and 8 the first gets a fifth.
      - Needed with O(state=present).
    type: int
  memory_alloc:
    description: Memory in MB that the task may take. Needed with O(state=present).
    type: int
  entity:
    description: Whom the task is for, as a note.
    type: str
    default: ""
  priority:
    description: From V(0) to V(9); a higher one goes first, and low ones still get their turn.
    type: int
    default: 0
  url:
    description: Where C(flexnpud) answers.
    type: str
    default: http://127.0.0.1:8080
  token_file:
    description: File on the host with the daemon's token; without it none is sent.
    type: path
    default: /etc/flexai/flexnpud.token
  conf:
    description: The daemon's configuration, for its C(quota); without it 10 is taken.
    type: path
    default: /opt/xpu/flexnpud/flexnpud.conf
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
seealso:
  - module: flexai.xpu.vnpu
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Two tasks that share NPU 0 as 2 to 8
  flexai.xpu.flexnpu:
    flexnpu_id: "{{ item.id }}"
    npu: 0
    aicore_alloc: "{{ item.slots }}"
    memory_alloc: 30720
  loop:
    - {id: small, slots: 2}
    - {id: large, slots: 8}

- name: Give it back
  flexai.xpu.flexnpu:
    flexnpu_id: small
    state: absent
"""

RETURN = r"""
flexnpus:
  description: All tasks of the host after the run; in check mode those that are there before.
  returned: success
  type: list
  elements: dict
  sample:
    - flexnpu_id: small
      npu: 0
      chip: 0
      aicore_alloc: 2
      memory_alloc: 30720
      entity: ""
      priority: 0
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _flexnpu as flexnpu
from ..module_utils import _flexnpu_http as http
from ..module_utils._errors import run_module
from ..module_utils._host import Host


def _told(task: flexnpu.Task | None) -> str:
    return f"{task}\n" if task else "absent\n"


def converge(
    params: t.Mapping[str, t.Any], check: bool, client: flexnpu.Client, quota: int
) -> dict[str, t.Any]:
    tasks = client.tasks()
    name = params["flexnpu_id"]
    found = next((task for task in tasks if task.flexnpu_id == name), None)
    wanted: flexnpu.Task | None = None
    if params["state"] == "present":
        wanted = flexnpu.Task(**{key: params[key] for key in flexnpu.Task._fields})
        flexnpu.check(wanted, [task for task in tasks if task != found], quota)
    changed = found != wanted
    if changed and not check:
        if found and wanted:
            client.replace(found, wanted)
        elif wanted:
            client.register(wanted)
        else:
            client.unregister(name)
        tasks = client.tasks()
    return {
        "changed": changed,
        "flexnpus": [task._asdict() for task in tasks],
        "diff": {
            "before_header": f"flexnpu {name}",
            "after_header": f"flexnpu {name}",
            "before": _told(found),
            "after": _told(wanted),
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "flexnpu_id": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "npu": {"type": "int"},
            "chip": {"type": "int", "default": 0},
            "aicore_alloc": {"type": "int"},
            "memory_alloc": {"type": "int"},
            "entity": {"type": "str", "default": ""},
            "priority": {"type": "int", "default": 0},
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "token_file": {
                "type": "path",
                "default": "/etc/flexai/flexnpud.token",
                "no_log": False,
            },
            "conf": {"type": "path", "default": "/opt/xpu/flexnpud/flexnpud.conf"},
        },
        required_if=[("state", "present", ("npu", "aicore_alloc", "memory_alloc"))],
        supports_check_mode=True,
    )

    def body(m: AnsibleModule) -> dict[str, t.Any]:
        host = Host(m.params["root"])
        token = host.read(m.params["token_file"]) or ""
        client = flexnpu.Client(http.sender(m.params["url"], token))
        return converge(
            m.params, m.check_mode, client, flexnpu.quota_of(host.read(m.params["conf"]))
        )

    run_module(module, body)


if __name__ == "__main__":
    main()
