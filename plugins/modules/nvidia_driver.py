# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Install or remove the NVIDIA driver by its .run installer
version_added: 0.1.0
description:
  - Runs the installer with document 000's flags when the wanted version isn't there, bars nouveau
    by a file of its own in C(/etc/modprobe.d), and enables the persistence daemon. When that file
    changes, C(update-initramfs) or C(dracut) makes the initramfs of the running kernel anew.
  - Stops before any change where the module couldn't be built or loaded (headers, compiler, Secure
    Boot, cards that the flavour doesn't drive), where Fabric Manager is of another version, and
    where programs use the cards.
  - A driver that fails after its installation is replaced by the former one, whose installer lies
    in the cache of artefacts.
  - A driver of the package manager, or of a C(.run) file that somebody else ran, is used where it
    is the wanted version and refused where it isn't; it is never changed nor removed.
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
  signing_key:
    description: Path on the host of the private key that signs the module, for Secure Boot.
    type: str
    default: ""
  signing_certificate:
    description: Path on the host of its certificate, enrolled there (C(mokutil --import)).
    type: str
    default: ""
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
  description: The running kernel module is of another version than the installed driver, or nouveau
    holds the cards until the next boot.
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

from ..module_utils import _kernel as kernel
from ..module_utils import _nvidia_driver as driver
from ..module_utils import _packages as packages
from ..module_utils import _records as records
from ..module_utils._decision import BLOCKED, OK
from ..module_utils._errors import XpuError, run_module
from ..module_utils._host import Host

INSTALL_LIMIT_S = 1800
INITRAMFS_LIMIT_S = 600
UNIT_LIMIT_S = 120
TOOL_LIMIT_S = 60
LOG = "/var/log/nvidia-installer.log"
FABRIC_UNIT = "nvidia-fabricmanager.service"


def _describe(facts: driver.Facts) -> str:
    """The state in lines, for the diff."""
    barred = "nouveau barred\n" if facts.nouveau_barred else ""
    daemon = "persistenced enabled\n" if facts.persistenced_enabled else ""
    return f"driver {facts.library or 'absent'}\n{barred}{daemon}"


def _predict(facts: driver.Facts, params: t.Mapping[str, t.Any]) -> str:
    if params["state"] == "absent":
        return f"driver {'absent' if facts.ours else facts.library or 'absent'}\n"
    if driver.waits_for_nouveau(facts):
        return _describe(facts._replace(nouveau_barred=True))
    daemon = params["persistenced"] or facts.persistenced_enabled
    return _describe(
        facts._replace(library=params["version"], nouveau_barred=True, persistenced_enabled=daemon)
    )


def _must(host: Host, argv: list[str], limit_s: float, remedy: str) -> None:
    done = host.run(argv, timeout_s=limit_s)
    if done.rc != 0:
        tail = (done.err.strip() or done.out.strip())[-800:]
        raise XpuError(f"{' '.join(argv)} ended with rc {done.rc}: {tail}.", remedy)


# -- nouveau ---------------------------------------------------------------------------------


def _note(host: Host, **values: t.Any) -> dict[str, t.Any]:
    """Our record with *values* in it; None takes one out."""
    record = {**records.read(host, driver.RECORD), **values}
    kept = {name: value for name, value in record.items() if value is not None}
    records.write(host, driver.RECORD, kept)
    return kept


def _set_bar(host: Host, facts: driver.Facts, barred: bool) -> None:
    """Our file, and the initramfs that must know of it; noted first, so that no rebuild is lost."""
    if facts.nouveau_barred != barred:
        _note(host, initramfs_due=True)
        if barred:
            host.write(driver.MODPROBE_FILE, driver.MODPROBE_TEXT)
        else:
            host.remove(driver.MODPROBE_FILE)
    if not records.read(host, driver.RECORD).get("initramfs_due"):
        return
    argv = kernel.initramfs_argv(facts.kernel)
    if argv:
        _must(
            host,
            argv,
            INITRAMFS_LIMIT_S,
            "mend what it names (room under /boot, most often) and run this again.",
        )
    _note(host, initramfs_due=None)


# -- install ---------------------------------------------------------------------------------


def _run_installer(host: Host, version: str, installer: str, flags: t.Sequence[str]) -> None:
    # Through sh, so that a cache mounted noexec does no harm.
    _must(
        host,
        ["sh", host.path(installer), *flags],
        INSTALL_LIMIT_S,
        f"read {LOG} on the host, mend what it names, and run this again.",
    )
    found = driver.library_version(host)
    if found != version:
        raise XpuError(
            f"The installer ended well, but libcuda.so.1 leads to {found or 'no driver'}, not to "
            f"{version}.",
            f"read {LOG} on the host, and check that the artefact is the version it says.",
        )


def _check_it_works(host: Host, version: str) -> None:
    """Where the new module runs already, the driver's own tool must reach the cards."""
    if driver.loaded_version(host) != version:
        return
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = host.run(query, timeout_s=TOOL_LIMIT_S)
    # The first word: a card's line may say more.
    said = {line.split(",")[0].strip() for line in done.out.splitlines() if line.strip()}
    if done.rc != 0 or said != {version}:
        words = (done.err.strip() or done.out.strip())[-400:] or "nothing"
        raise XpuError(
            f"Driver {version} is installed, but nvidia-smi ended with rc {done.rc} and said: "
            f"{words}.",
            "read `dmesg` on the host for what the kernel module says of the cards.",
        )


def _is_as_fetched(host: Host, installer: str) -> bool:
    """An artefact lies in a directory that its digest names; only an unaltered one runs again."""
    return bool(installer) and host.digest(installer) == installer.split("/")[-2]


def _former(facts: driver.Facts) -> dict[str, t.Any] | None:
    """The driver to go back to; a run that died has noted it already."""
    if facts.record.get("state") == "installing":
        found: dict[str, t.Any] | None = facts.record.get("former")
        return found
    names = ("version", "installer", "flags")
    if facts.ours and facts.library:
        return {name: facts.record.get(name) for name in names}
    return None


def _roll_back(host: Host, former: t.Mapping[str, t.Any] | None, error: XpuError) -> t.NoReturn:
    """Bring the former driver back, and say how that went beside what went wrong first."""
    if not former:
        raise XpuError(
            f"{error.msg} There was no driver before, and none is in force.", error.remedy
        )
    version, installer = former["version"], former.get("installer") or ""
    if not _is_as_fetched(host, installer):
        raise XpuError(
            f"{error.msg} The former driver {version} can't be brought back: its installer "
            f"{installer or '(unknown)'} is not there, or not as it was fetched.",
            error.remedy,
        )
    _note(host, **former, state="installing", former=None)
    try:
        _run_installer(host, version, installer, former.get("flags") or ())
        _check_it_works(host, version)
    except XpuError as second:
        raise XpuError(
            f"{error.msg} The former driver {version} could not be brought back either: "
            f"{second.msg}",
            error.remedy,
        ) from error
    _note(host, state="installed")
    raise XpuError(f"{error.msg} The former driver {version} is in force again.", error.remedy)


def _refuse_holders(host: Host) -> None:
    names = ", ".join(map(str, driver.holders(host)))
    if names:
        raise XpuError(
            f"The driver can't be replaced while programs use the cards: {names}. "
            "Nothing was changed.",
            "stop them (role node_transaction drains pods), then run this again.",
        )


def _replace(host: Host, facts: driver.Facts, wanted: driver.Wanted, installer: str) -> None:
    if not installer or not host.exists(installer):
        raise XpuError(
            f"The installer {installer or '(none given)'} is not on the host.",
            "bring it there with flexai.xpu.artefact first.",
        )
    if facts.loaded:
        _refuse_holders(host)
    flavour = driver.module_type(facts, wanted)
    flags = driver.installer_flags(wanted, flavour, facts.kernel.secure_boot)
    former = _former(facts)
    _note(
        host,
        version=wanted.version,
        installer=installer,
        flags=flags,
        state="installing",
        former=former,
    )
    if facts.loaded:
        # These hold the module; a daemon that isn't there is as good as stopped.
        for unit in (driver.PERSISTENCED_UNIT, FABRIC_UNIT):
            host.run(["systemctl", "stop", unit], timeout_s=UNIT_LIMIT_S)
    try:
        _run_installer(host, wanted.version, installer, flags)
        _check_it_works(host, wanted.version)
    except XpuError as error:
        _roll_back(host, former, error)
    _note(host, state="installed", former=None)


def install(host: Host, facts: driver.Facts, wanted: driver.Wanted, installer: str) -> None:
    _set_bar(host, facts, True)
    if driver.waits_for_nouveau(facts):
        return
    replacing = driver.needs_installer(facts, wanted)
    if replacing:
        _replace(host, facts, wanted, installer)
    if wanted.persistenced:
        _must(
            host,
            ["systemctl", "enable", "--now", driver.PERSISTENCED_UNIT],
            UNIT_LIMIT_S,
            f"look at `journalctl -u {driver.PERSISTENCED_UNIT}`, or set "
            "nvidia_driver_persistenced: false.",
        )
    if replacing and facts.fabric.switches:
        _must(
            host,
            ["systemctl", "restart", FABRIC_UNIT],
            UNIT_LIMIT_S,
            f"look at `journalctl -u {FABRIC_UNIT}`: its version must be the driver's.",
        )


def uninstall(host: Host, facts: driver.Facts) -> None:
    if facts.ours and facts.uninstaller:
        _must(
            host,
            [driver.UNINSTALLER, "--silent"],
            INSTALL_LIMIT_S,
            "stop what uses the cards, then run it again.",
        )
    _set_bar(host, facts, False)
    records.write(host, driver.RECORD, {})


def _wanted(params: t.Mapping[str, t.Any]) -> driver.Wanted:
    return driver.Wanted(
        params["version"],
        params["kernel_module_type"],
        params["persistenced"],
        params["allow_downgrade"],
        params.get("signing_key") or "",
        params.get("signing_certificate") or "",
    )


def observe(host: Host, wanted: driver.Wanted) -> driver.Facts:
    installed = packages.observe(host, host.read(packages.DPKG_STATUS) or "")
    # Of the system only its family matters here, and its package manager tells that.
    system = "debian" if installed.manager == "dpkg" else "rpm"
    return driver.observe(host, installed, wanted, system)


def converge(host: Host, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    wanted = _wanted(params)
    facts = observe(host, wanted)
    absent = params["state"] == "absent"
    decision = driver.plan_removal(facts) if absent else driver.plan(facts, wanted)
    if decision.action == BLOCKED:
        raise XpuError(f"The NVIDIA driver can't be installed: {decision.reason}.", "see above.")
    changed = decision.action != OK
    if not absent and driver.waits_for_nouveau(facts):
        changed = not facts.nouveau_barred or bool(facts.record.get("initramfs_due"))
    if changed and not check:
        if absent:
            uninstall(host, facts)
        else:
            install(host, facts, wanted, params["installer"] or "")
    loaded = driver.loaded_version(host)
    left = [decision.reason] if absent and decision.action == OK and decision.reason else []
    return {
        "changed": changed,
        "left": left,
        "reboot_required": bool(loaded and facts.ours)
        if absent
        else loaded != wanted.version and not check,
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
            # A path, not a secret.
            "signing_key": {"type": "str", "default": "", "no_log": False},
            "signing_certificate": {"type": "str", "default": "", "no_log": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda m: converge(Host(m.params["root"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
