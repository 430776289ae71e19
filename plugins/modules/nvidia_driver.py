# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Install or remove the NVIDIA driver by its .run installer
version_added: 0.1.0
description:
  - Runs the installer with document 000's flags when the wanted version isn't there, bars nouveau
    by a file of its own in C(/etc/modprobe.d), and enables the persistence daemon.
  - The host isn't rebooted; RV(reboot_required) says when it should be.
options:
  version:
    description: Version that shall be there.
    type: str
    required: true
  installer:
    description: Path of the C(.run) file on the host; needed when something must be installed.
    type: path
  kernel_module_type:
    description: V(open) or V(proprietary); empty takes the installer's own choice for the version.
    type: str
    choices: ["", "open", "proprietary"]
    default: ""
  persistenced:
    description: Whether C(nvidia-persistenced) is enabled and started.
    type: bool
    default: true
  allow_downgrade:
    description: Whether an older version may replace a newer one.
    type: bool
    default: false
  state:
    description: V(absent) runs C(nvidia-uninstall) and takes our file away.
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
- name: Install the driver
  flexai.xpu.nvidia_driver:
    version: 580.95.05
    installer: /var/cache/flexai-xpu/NVIDIA-Linux-x86_64-580.95.05.run
"""

RETURN = r"""
reboot_required:
  description: The running kernel module is of another version than the installed driver.
  returned: success
  type: bool
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _nvidia_driver as driver
from ..module_utils._container_toolkit import DPKG_STATUS
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

INSTALL_LIMIT_S = 1800
LOG = "/var/log/nvidia-installer.log"


def _describe(facts: driver.Facts) -> str:
    """The state in lines, for the diff."""
    barred = "nouveau barred\n" if facts.nouveau_barred else ""
    daemon = "persistenced enabled\n" if facts.persistenced_enabled else ""
    return f"driver {facts.library or 'absent'}\n{barred}{daemon}"


def _predict(facts: driver.Facts, params: t.Mapping[str, t.Any]) -> str:
    if params["state"] == "absent":
        return "driver absent\n"
    daemon = params["persistenced"] or facts.persistenced_enabled
    return (
        f"driver {params['version']}\nnouveau barred\n{'persistenced enabled' if daemon else ''}\n"
    ).replace("\n\n", "\n")


def _must(host: Host, argv: list[str], limit_s: float, remedy: str) -> None:
    done = host.run(argv, timeout_s=limit_s)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-800:]
        raise XpuError(f"{' '.join(argv)} ended with rc {done.rc}: {tail}.", remedy)


def _run_installer(host: Host, wanted: driver.Wanted, installer: str) -> None:
    if not installer or not host.exists(installer):
        raise XpuError(
            f"The installer {installer or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    # Through sh, so that a cache mounted noexec does no harm.
    _must(
        host,
        ["sh", host.path(installer), *driver.installer_flags(wanted)],
        INSTALL_LIMIT_S,
        f"read {LOG} on the host; nothing else was changed.",
    )
    found = driver.library_version(host)
    if found != wanted.version:
        raise XpuError(
            f"The installer ended well, but libcuda.so.1 leads to {found or 'no driver'}, not to "
            f"{wanted.version}.",
            f"read {LOG} on the host, and check that the artefact is the version it says.",
        )


def install(host: Host, facts: driver.Facts, wanted: driver.Wanted, installer: str) -> None:
    if not facts.nouveau_barred:
        host.write(driver.MODPROBE_FILE, driver.MODPROBE_TEXT)
    if facts.library != wanted.version:
        _run_installer(host, wanted, installer)
    if wanted.persistenced:
        _must(
            host,
            ["systemctl", "enable", "--now", driver.PERSISTENCED_UNIT],
            120,
            f"look at `journalctl -u {driver.PERSISTENCED_UNIT}`, or set "
            "nvidia_driver_persistenced: false.",
        )


def uninstall(host: Host) -> None:
    if host.program(driver.UNINSTALLER):
        _must(
            host,
            [driver.UNINSTALLER, "--silent"],
            INSTALL_LIMIT_S,
            "stop what uses the cards, then run it again.",
        )
    if host.read(driver.MODPROBE_FILE) == driver.MODPROBE_TEXT:
        host.remove(driver.MODPROBE_FILE)


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    facts = driver.observe(host, host.read(DPKG_STATUS) or "")
    wanted = driver.Wanted(
        params["version"],
        params["kernel_module_type"],
        params["persistenced"],
        params["allow_downgrade"],
    )
    absent = params["state"] == "absent"
    if absent:
        decision = driver.plan_removal(facts, bool(host.program(driver.UNINSTALLER)))
    else:
        decision = driver.plan(facts, wanted)
    if decision.action == BLOCKED:
        raise XpuError(f"The NVIDIA driver can't be installed: {decision.reason}.", "see above.")
    changed = decision.action != OK
    if changed and not check:
        if absent:
            uninstall(host)
        else:
            install(host, facts, wanted, params["installer"] or "")
    loaded = driver.loaded_version(host)
    return {
        "changed": changed,
        "reboot_required": bool(loaded) if absent else loaded != wanted.version and not check,
        "diff": {
            "before": _describe(facts),
            "after": _predict(facts, params) if changed else _describe(facts),
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "version": {"type": "str", "required": True},
            "installer": {"type": "path"},
            "kernel_module_type": {
                "type": "str",
                "choices": ["", "open", "proprietary"],
                "default": "",
            },
            "persistenced": {"type": "bool", "default": True},
            "allow_downgrade": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
