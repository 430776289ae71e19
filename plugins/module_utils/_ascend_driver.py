# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Ascend driver and firmware of a host: what is there and whose it is, what to run in which order.

Huawei's order depends on the state: a first installation is driver, then firmware; an upgrade is
firmware, then driver. Both take effect at the next boot. Which boot that is, our record says.
"""

from __future__ import annotations

import typing as t

from . import _ascend_state as state
from . import _records as records
from ._ascend_compat import version_key
from ._decision import ADOPT, BLOCKED, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._host import Host

COMPONENT = "ascend_driver"
RECORD = "ascend_driver"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
DRIVER, FIRMWARE = "driver", "firmware"
INSTALLING, INSTALLED = "installing", "installed"


class Wanted(t.NamedTuple):
    driver: str
    firmware: str
    user: str = "HwHiAiUser"
    uid: int = 1000
    allow_downgrade: bool = False
    # Family that the packages are for; empty leaves it to the packages to refuse.
    chip: str = ""


class Facts(t.NamedTuple):
    """``users`` and ``groups`` are name → number of the host's own files."""

    cards: t.Mapping[str, str]
    found: state.Driver
    users: t.Mapping[str, int]
    groups: t.Mapping[str, int]
    record: t.Mapping[str, t.Any]
    boot_id: str
    container: bool

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.cards.values())))

    @property
    def ours(self) -> bool:
        """Whether what stands there was brought by us, or by a run of ours that died."""
        return bool(self.record)

    @property
    def reboot_required(self) -> bool:
        """Whether this is still the boot in which something was installed."""
        return bool(self.record.get("boot")) and self.record["boot"] == self.boot_id


class Step(t.NamedTuple):
    """One run of a package."""

    part: str
    flags: tuple[str, ...]


def _numbers(text: str | None) -> dict[str, int]:
    """name → number, of /etc/passwd or /etc/group."""
    rows = (line.split(":") for line in (text or "").splitlines())
    return {row[0]: int(row[2]) for row in rows if len(row) > 2 and row[2].isdigit()}


def observe(host: Host) -> Facts:
    return Facts(
        cards=state.cards(host),
        found=state.read_driver(host),
        users=_numbers(host.read("/etc/passwd")),
        groups=_numbers(host.read("/etc/group")),
        record=records.read(host, RECORD),
        boot_id=(host.read(BOOT_ID) or "").strip(),
        container=host.exists("/.dockerenv"),
    )


def user_problem(facts: Facts, wanted: Wanted) -> str:
    """Why the driver's user can't be what containers expect it to be; empty where it can."""
    for kind, there in (("user", facts.users), ("group", facts.groups)):
        number = there.get(wanted.user)
        if number is not None and number != wanted.uid:
            return (
                f"{kind} {wanted.user} has id {number}, and {wanted.uid} is wanted, as on every "
                f"host and in every container; change it (`{kind}mod`) with its files, or set "
                f"ascend_driver_uid: {number} on all hosts"
            )
        taken = [name for name, other in there.items() if other == wanted.uid]
        if number is None and taken:
            return (
                f"id {wanted.uid} belongs to {kind} {taken[0]}, and {wanted.user} shall have it; "
                f"give {taken[0]} another id, or set ascend_driver_uid on all hosts"
            )
    return ""


def user_steps(facts: Facts, wanted: Wanted) -> list[list[str]]:
    """The commands that make the user, before any package runs."""
    number, name, steps = str(wanted.uid), wanted.user, []
    if name not in facts.groups:
        steps.append(["groupadd", "-g", number, name])
    if name not in facts.users:
        home = ("-d", f"/home/{name}", "-m", "-s", "/bin/bash")
        steps.append(["useradd", "-g", name, "-u", number, *home, name])
    return steps


def steps(found: state.Driver, wanted: Wanted) -> list[Step]:
    """What to run, in order, of what differs."""
    differs = {DRIVER: found.driver != wanted.driver, FIRMWARE: found.firmware != wanted.firmware}
    order = (FIRMWARE, DRIVER) if found.driver else (DRIVER, FIRMWARE)
    there = {DRIVER: found.driver, FIRMWARE: found.firmware}
    return [_step(part, bool(there[part]), wanted) for part in order if differs[part]]


def _step(part: str, there: bool, wanted: Wanted) -> Step:
    if there:
        return Step(part, ("--upgrade", "--quiet"))
    if part == FIRMWARE:
        return Step(part, ("--full", "--quiet"))
    user = (f"--install-username={wanted.user}", f"--install-usergroup={wanted.user}")
    return Step(part, ("--full", "--install-for-all", "--quiet", *user))


def claim(facts: Facts, wanted: Wanted) -> Claim | None:
    """Somebody else's driver: used where it is the version, never changed."""
    found = facts.found
    if facts.ours or not (found.recorded_driver or found.driver):
        return None
    if (found.driver, found.firmware) == (wanted.driver, wanted.firmware):
        reason = f"driver {found.driver} was not installed by flexai.xpu and is used as it is"
        return Claim(ADOPT, "the site", reason)
    return Claim(
        REFUSE,
        "the site",
        f"driver {found.driver or '(broken)'} with firmware {found.firmware or '(none)'} was not "
        f"installed by flexai.xpu, and {wanted.driver} with {wanted.firmware} is wanted; set "
        f"ascend_driver_version and ascend_driver_firmware_version to use it, or uninstall it",
    )


def _obstacle(facts: Facts, wanted: Wanted) -> str:
    if facts.container:
        return "this is a container, where neither driver nor firmware is installed"
    if not facts.cards:
        return "no Ascend accelerator is on PCI (vendor 0x19e5, class 0x1200)"
    if len(facts.families) > 1:
        mixed = ", ".join(facts.families)
        return f"the host has chips of several families ({mixed}), and a driver is for one"
    if wanted.chip and wanted.chip not in facts.families:
        return f"ascend_driver_chip is {wanted.chip}, and the host has {facts.families[0]}"
    older = [
        (part, there, asked)
        for part, there, asked in (
            (DRIVER, facts.found.driver, wanted.driver),
            (FIRMWARE, facts.found.firmware, wanted.firmware),
        )
        if there and version_key(asked) < version_key(there)
    ]
    if older and not wanted.allow_downgrade:
        part, there, asked = older[0]
        return (
            f"{part} {asked} is older than {there}, which is there; set "
            "ascend_driver_allow_downgrade: true to go back"
        )
    return user_problem(facts, wanted)


def _difference(part: str, there: str, asked: str) -> str:
    return f"{part} {there or 'absent'} → {asked}" if there != asked else ""


def plan(facts: Facts, wanted: Wanted) -> Decision:
    found = facts.found
    claimed = claim(facts, wanted)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, wanted.driver, found.driver)
    if claimed:
        return claimed.on(Decision(COMPONENT, OK, wanted.driver, found.driver))
    obstacle = _obstacle(facts, wanted)
    if obstacle:
        return Decision(COMPONENT, BLOCKED, wanted.driver, found.driver, obstacle)
    differences = [
        _difference(DRIVER, found.driver, wanted.driver),
        _difference(FIRMWARE, found.firmware, wanted.firmware),
    ]
    reason = "; ".join(difference for difference in differences if difference)
    if not reason and facts.record.get("state") == INSTALLING:
        reason = "the last installation was broken off"
    action = (CHANGE if found.driver else INSTALL) if reason else OK
    return Decision(COMPONENT, action, wanted.driver, found.driver, reason)


def describe(found: state.Driver, user: str = "") -> str:
    """The state in lines, for the diff."""
    lines = [f"driver {found.driver or 'absent'}", f"firmware {found.firmware or 'absent'}"]
    return "\n".join([*lines, *([f"user {user}"] if user else [])]) + "\n"
