# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: vnpu
short_description: Divide an Ascend chip into vNPUs
version_added: 0.1.0
description:
  - Brings the hard partitions of one chip to a layout, which is a list of the driver's templates.
    vNPUs that are in the layout stay, whatever their number; those that are not go, and what lacks
    is created.
  - A layout is checked whole before any change, against the chip's templates and resources. It
    fails where a vNPU that would have to go is in use.
  - A chip that C(flexnpud) shares in time is refused; hard partitions and time slices exclude each
    other.
options:
  npu:
    description: Number of the NPU, as C(npu-smi info) tells it.
    type: int
    required: true
  chip:
    description: Number of the chip on it.
    type: int
    default: 0
  layout:
    description:
      - Names of the templates, one a vNPU, such as V(vir10_3c_32g); M(flexai.xpu.vnpu_info) lists
        them.
      - An empty list takes all vNPUs away.
    type: list
    elements: str
    required: true
  recover:
    description: Whether the driver makes the vNPUs again at boot; not given leaves it as it is.
    type: bool
  flexnpud_url:
    description: Where C(flexnpud) would answer; none answering shares nothing.
    type: str
    default: http://127.0.0.1:8080
  token_file:
    description: File on the host with the token of C(flexnpud); needn't be there.
    type: path
    default: /etc/flexai/flexnpud.token
extends_documentation_fragment:
  - flexai.xpu._host
  - flexai.xpu._host.attributes
notes:
  - Needs root and the driver's C(npu-smi). Creating a vNPU needs a chip that no process has open.
seealso:
  - module: flexai.xpu.vnpu_info
  - module: flexai.xpu.flexnpu
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Half of a 910B3 to one container, a quarter each to two others
  flexai.xpu.vnpu:
    npu: 0
    layout: [vir10_3c_32g, vir05_1c_16g, vir05_1c_16g]
    recover: true

- name: One chip again
  flexai.xpu.vnpu:
    npu: 0
    layout: []
"""

RETURN = r"""
destroyed:
  description: Numbers of the vNPUs that went, or would.
  returned: success
  type: list
  elements: int
created:
  description: Templates of the vNPUs that were made, or would be.
  returned: success
  type: list
  elements: str
vnpus:
  description: The chip's vNPUs now; in check mode those that are there before.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 100
      group: 0
      container: ffffffffffff
      status: 0
      template: vir10_3c_32g
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _flexnpu as flexnpu
from ..module_utils import _flexnpu_http as http
from ..module_utils import _vnpu as vnpu
from ..module_utils._ascend_smi import Smi, fields
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host


def _refuse_a_shared_chip(send: flexnpu.Send, npu: int, chip: int) -> None:
    """A daemon that doesn't answer schedules nothing."""
    try:
        tasks = flexnpu.Client(send).tasks()
    except http.NobodyThere:
        return
    names = [task.flexnpu_id for task in tasks if (task.npu, task.chip) == (npu, chip)]
    if names:
        raise XpuError(
            f"NPU {npu} chip {chip} is shared in time by flexnpud ({', '.join(names)}).",
            "unregister these tasks (flexai.xpu.flexnpu, state absent) before dividing the chip.",
        )


def _refuse_an_unknown_chip(smi: Smi, npu: int, chip: int) -> None:
    there = [(one.npu, one.chip) for one in smi.chips()]
    if (npu, chip) not in there:
        known = ", ".join(f"{one}/{other}" for one, other in there) or "none"
        raise XpuError(
            f"There is no NPU {npu} chip {chip}; npu-smi lists {known}.",
            "name one of these in npu and chip.",
        )


def _refuse_machines(smi: Smi) -> None:
    mode = fields(smi.ask("info", "-t", "vnpu-mode")).get("vnpu-mode", "")
    if mode == "vm":
        raise XpuError(
            "The host divides its chips for virtual machines (vnpu-mode is vm).",
            "set it for containers with `npu-smi set -t vnpu-mode -d 0`.",
        )


def _recovers(smi: Smi) -> bool:
    said = fields(smi.ask("info", "-t", "vnpu-cfg-recover"))
    return said.get("vnpu config recover mode") == "Enable"


def _nothing() -> dict[str, t.Any]:
    nothing: dict[str, t.Any] = {"destroyed": [], "created": [], "vnpus": []}
    return {"changed": False, **nothing, "diff": {"before": "", "after": ""}}


def converge(
    host: Host, params: t.Mapping[str, t.Any], check: bool, send: flexnpu.Send
) -> dict[str, t.Any]:
    npu, chip, wanted = params["npu"], params["chip"], params["layout"]
    smi = Smi(host)
    if not wanted and not smi.there:
        return _nothing()  # without a driver nothing is divided
    _refuse_an_unknown_chip(smi, npu, chip)
    layout = smi.layout(npu, chip)
    change = vnpu.plan(wanted, smi.templates(npu), layout)
    if change.create:
        _refuse_machines(smi)
        _refuse_a_shared_chip(send, npu, chip)
    recover = params["recover"]
    switch = recover is not None and recover != _recovers(smi)
    if not check:
        where = ("-i", str(npu), "-c", str(chip))
        for one in change.destroy:
            smi.order("-t", "destroy-vnpu", *where, "-v", str(one.id))
        for name in change.create:
            smi.order("-t", "create-vnpu", *where, "-f", name)
        if switch:
            smi.order("-t", "vnpu-cfg-recover", "-d", str(int(recover)))
    changed = bool(change) or switch
    now = smi.layout(npu, chip) if change and not check else layout
    return {
        "changed": changed,
        "destroyed": [one.id for one in change.destroy],
        "created": list(change.create),
        "vnpus": [one._asdict() for one in now.vnpus],
        "diff": {
            "before": vnpu.told(npu, (one.template for one in layout.vnpus))
            + (f"recover {not recover}\n" if switch else ""),
            "after": vnpu.told(npu, wanted) + (f"recover {recover}\n" if switch else ""),
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "npu": {"type": "int", "required": True},
            "chip": {"type": "int", "default": 0},
            "layout": {"type": "list", "elements": "str", "required": True},
            "recover": {"type": "bool"},
            "flexnpud_url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "token_file": {
                "type": "path",
                "default": "/etc/flexai/flexnpud.token",
                "no_log": False,
            },
        },
        supports_check_mode=True,
    )

    def body(m: AnsibleModule) -> dict[str, t.Any]:
        host = Host(m.params["root"])
        send = http.sender(m.params["flexnpud_url"], host.read(m.params["token_file"]) or "")
        return converge(host, m.params, m.check_mode, send)

    run_module(module, body)


if __name__ == "__main__":
    main()
