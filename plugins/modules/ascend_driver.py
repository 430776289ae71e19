# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ascend_driver
short_description: Install, upgrade or remove Ascend driver and firmware
version_added: 0.1.0
description:
  - Makes the driver's user, then runs Huawei's C(.run) packages in the order that the state of the
    host asks for. A first installation is driver, then firmware; an upgrade is firmware, then
    driver; what is there in the wanted version isn't run.
  - Stops before any change where there is no chip on PCI, where the user has another id or its id
    is taken, and where the version would be older.
  - A driver that somebody else installed is used where it is the wanted version and refused where
    it isn't; it is never changed nor removed.
  - The host isn't rebooted; RV(reboot_required) says when it must be, until it was.
options:
  version:
    description: Version of the driver that shall be there, for example V(25.0.rc1.1).
    type: str
    required: true
  firmware_version:
    description: Version of the firmware that belongs to it, for example V(7.7.0.1.231).
    type: str
    required: true
  driver:
    description: Path of the driver's C(.run) file on the host; needed when it must run.
    type: path
  firmware:
    description: Path of the firmware's C(.run) file on the host; needed when it must run.
    type: path
  user:
    description: The driver's user and group.
    type: str
    default: HwHiAiUser
  uid:
    description: Number of both; Huawei's images expect V(1000).
    type: int
    default: 1000
  chip:
    description: Family that the packages are for, such as V(910b); refused on another one's host.
    type: str
    default: ""
  allow_downgrade:
    description: Whether an older version may replace a newer one.
    type: bool
    default: false
  state:
    description: V(absent) takes away what this module installed; the user stays.
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
- name: Install driver and firmware
  flexai.xpu.ascend_driver:
    version: 25.0.rc1.1
    firmware_version: 7.7.0.1.231
    driver: "{{ driver.path }}"
    firmware: "{{ firmware.path }}"
  register: ascend

- name: Reboot where it is due
  ansible.builtin.reboot:
  when: ascend.reboot_required
"""

RETURN = r"""
reboot_required:
  description: Whether something was installed since the host booted, by this run or an earlier one.
  returned: success
  type: bool
left:
  description: What was not removed since it is not ours.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _ascend_driver as driver
from ..module_utils import _ascend_run as run
from ..module_utils import _ascend_state as state
from ..module_utils import _records as records
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

PARTS = (driver.DRIVER, driver.FIRMWARE)


def _wanted(params: t.Mapping[str, t.Any]) -> driver.Wanted:
    return driver.Wanted(
        params["version"],
        params["firmware_version"],
        params["user"],
        params["uid"],
        params["allow_downgrade"],
        params["chip"],
    )


def _note(host: Host, **values: t.Any) -> None:
    """Our record with *values* in it; None takes one out."""
    record = {**records.read(host, driver.RECORD), **values}
    kept = {name: value for name, value in record.items() if value is not None}
    records.write(host, driver.RECORD, kept)


def _way_back(found: state.Driver) -> str:
    """What to do after a package failed, where there was a driver before it."""
    again = f"read {state.LOG} on the host, mend what it names, and run this again"
    if not found.driver:
        return f"{again}."
    return (
        f"{again}; to go back, set ascend_driver_version: {found.driver}, "
        f"ascend_driver_firmware_version: {found.firmware} and ascend_driver_allow_downgrade: "
        "true. Don't reboot before: driver and firmware are of two releases now."
    )


def install(host: Host, facts: driver.Facts, params: t.Mapping[str, t.Any]) -> None:
    wanted = _wanted(params)
    asked = {driver.DRIVER: wanted.driver, driver.FIRMWARE: wanted.firmware}
    packages = {part: params[part] or "" for part in PARTS}
    kept = {part: path for part, path in packages.items() if path}
    _note(
        host,
        state=driver.INSTALLING,
        version=wanted.driver,
        boot=facts.boot_id,
        packages={**facts.record.get("packages", {}), **kept},
    )
    for argv in driver.user_steps(facts, wanted):
        run.must(host, argv, "mend what it names and run this again.")
    for step in driver.steps(facts.found, wanted):
        what = f"{step.part} {asked[step.part]}"
        run.package(host, packages[step.part], step.flags, what, _way_back(facts.found))
    found = state.read_driver(host)
    if (found.driver, found.firmware) != (wanted.driver, wanted.firmware):
        raise XpuError(
            f"The packages ended well, but the host has driver {found.driver or '(none)'} and "
            f"firmware {found.firmware or '(none)'}, not {wanted.driver} and {wanted.firmware}.",
            "check that the artefacts are of the versions they say.",
        )
    _note(host, state=driver.INSTALLED)


def remove(host: Host, facts: driver.Facts) -> None:
    """Firmware first: its package asks the driver's tools."""
    packages = facts.record.get("packages", {})
    _note(host, state=driver.INSTALLING, boot=facts.boot_id)
    there = {driver.DRIVER: facts.found.driver, driver.FIRMWARE: facts.found.firmware}
    for part in reversed(PARTS):
        if there[part]:
            run.package(host, packages.get(part, ""), ("--uninstall",), f"{part} {there[part]}")
    records.write(host, driver.RECORD, {})


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    wanted, present = _wanted(params), params["state"] == "present"
    facts = driver.observe(host)
    before = after = driver.describe(facts.found)
    left: list[str] = []
    if present:
        decision = driver.plan(facts, wanted)
        if decision.action == BLOCKED:
            raise XpuError(
                f"The Ascend driver can't be installed: {decision.reason}.",
                "see what the sentence names; nothing was changed.",
            )
        changed = decision.action != OK
        if changed:
            after = driver.describe(state.Driver(wanted.driver, wanted.firmware))
    else:
        changed = facts.ours
        if changed:
            after = driver.describe(state.Driver())
        elif facts.found.driver:
            left = [f"driver {facts.found.driver}: not installed by flexai.xpu"]
    if changed and not check:
        if present:
            install(host, facts, params)
        else:
            remove(host, facts)
    return {
        "changed": changed,
        "left": left,
        "reboot_required": changed or facts.reboot_required,
        "diff": {"before": before, "after": after},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str", "required": True},
            "firmware_version": {"type": "str", "required": True},
            "driver": {"type": "path"},
            "firmware": {"type": "path"},
            "user": {"type": "str", "default": "HwHiAiUser"},
            "uid": {"type": "int", "default": 1000},
            "chip": {"type": "str", "default": ""},
            "allow_downgrade": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
