# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""CANN of a host: toolkit, then the kernels of its chips, then nnal; each rests on the former."""

from __future__ import annotations

import os
import typing as t

from . import _ascend_state as state
from . import _records as records
from ._decision import ADOPT, BLOCKED, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._host import Host

COMPONENT = "ascend_cann"
RECORD = "ascend_cann"
TOOLKIT, KERNELS, NNAL = "toolkit", "kernels", "nnal"
PARTS = (TOOLKIT, KERNELS, NNAL)
INSTALLING, INSTALLED = "installing", "installed"
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p")


class Wanted(t.NamedTuple):
    """``chip`` is the family of the kernels; empty takes that of the host's cards."""

    version: str
    parts: tuple[str, ...] = PARTS
    chip: str = ""
    path: str = state.PREFIX


class Facts(t.NamedTuple):
    found: state.Cann
    driver: str
    families: tuple[str, ...]
    record: t.Mapping[str, t.Any]
    file_system: str

    @property
    def ours(self) -> bool:
        return bool(self.record)

    @property
    def versions(self) -> dict[str, str]:
        found = self.found
        return {TOOLKIT: found.toolkit, KERNELS: found.kernels, NNAL: found.nnal}


class Step(t.NamedTuple):
    """One run of a package."""

    part: str
    flags: tuple[str, ...]


def file_system(mounts: str, path: str) -> str:
    """The type of the file system that *path* is, or would be, on; *mounts* is /proc/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = words[1].replace("\\040", " ")
        below = point == "/" or path == point or path.startswith(point + "/")
        if below and len(point) >= len(best):
            best, kind = point, words[2]
    return kind


def observe(host: Host, wanted: Wanted, architecture: str | None = None) -> Facts:
    return Facts(
        found=state.read_cann(host, architecture or os.uname().machine),
        driver=state.read_driver(host).driver,
        families=tuple(sorted(set(state.cards(host).values()))),
        record=records.read(host, RECORD),
        file_system=file_system(host.read("/proc/mounts") or "", wanted.path),
    )


def chip_of(facts: Facts, wanted: Wanted) -> str:
    """The family that kernels are wanted for; empty where neither site nor host says one."""
    return wanted.chip or (facts.families[0] if len(facts.families) == 1 else "")


def missing(facts: Facts, wanted: Wanted) -> list[str]:
    """The parts that are not there as wanted, in order of installation."""
    lacking = [part for part in wanted.parts if facts.versions[part] != wanted.version]
    if KERNELS in wanted.parts and chip_of(facts, wanted) not in facts.found.chips:
        lacking.append(KERNELS)
    return [part for part in PARTS if part in lacking]


def steps(facts: Facts, wanted: Wanted) -> list[Step]:
    """What to run, in order. The path is said at the first installation only: later ones follow the
    vendor's own record, and refuse another."""
    found = []
    for part in missing(facts, wanted):
        # Without a driver only --full is accepted.
        action = "--full" if part == TOOLKIT and not facts.driver else "--install"
        path = (
            (f"--install-path={wanted.path}",) if part == TOOLKIT and not facts.found.path else ()
        )
        found.append(Step(part, (action, "--quiet", *path)))
    return found


def claim(facts: Facts, wanted: Wanted) -> Claim | None:
    """Somebody else's CANN: used where it is what is wanted, never changed."""
    if facts.ours or not any(facts.versions.values()):
        return None
    there = ", ".join(f"{part} {version}" for part, version in facts.versions.items() if version)
    if not missing(facts, wanted):
        reason = f"CANN ({there}) was not installed by flexai.xpu and is used as it is"
        return Claim(ADOPT, "the site", reason)
    return Claim(
        REFUSE,
        "the site",
        f"CANN ({there}) was not installed by flexai.xpu, and {wanted.version} with "
        f"{', '.join(wanted.parts)} is wanted; set ascend_cann_version and ascend_cann_parts to "
        "use it, or uninstall it",
    )


def _obstacle(facts: Facts, wanted: Wanted) -> str:
    if facts.found.path and facts.found.path != wanted.path:
        return (
            f"CANN's record {state.CANN_INFO} says {facts.found.path}, and ascend_cann_path is "
            f"{wanted.path}; set ascend_cann_path: {facts.found.path}, or uninstall what is there"
        )
    if facts.file_system in NETWORK_FILE_SYSTEMS:
        return (
            f"ascend_cann_path {wanted.path} is on {facts.file_system}, which lacks the file locks "
            "that CANN needs; name a path on a disk of the host"
        )
    if TOOLKIT not in wanted.parts:
        return (
            f"ascend_cann_parts {', '.join(wanted.parts)} lacks toolkit, on which the others rest"
        )
    if KERNELS not in wanted.parts:
        return ""
    chip = chip_of(facts, wanted)
    if not chip:
        has = ", ".join(facts.families) or "none on PCI"
        return f"kernels are for one family of chips, and the host has {has}; set ascend_cann_chip"
    if facts.families and chip not in facts.families:
        return (
            f"ascend_cann_chip is {chip}, and the host has {', '.join(facts.families)}; kernels of "
            "another chip don't run on it"
        )
    return ""


def plan(facts: Facts, wanted: Wanted) -> Decision:
    there = facts.found.toolkit
    claimed = claim(facts, wanted)
    obstacle = _obstacle(facts, wanted)
    if obstacle:
        return Decision(COMPONENT, BLOCKED, wanted.version, there, obstacle)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, wanted.version, there)
    if claimed:
        return claimed.on(Decision(COMPONENT, OK, wanted.version, there))
    lacking = missing(facts, wanted)
    reason = "; ".join(
        f"{part} {facts.versions[part] or 'absent'} → {wanted.version}" for part in lacking
    )
    if not reason and facts.record.get("state") == INSTALLING:
        reason = "the last installation was broken off"
    action = (CHANGE if there else INSTALL) if reason else OK
    return Decision(COMPONENT, action, wanted.version, there, reason)


def describe(versions: t.Mapping[str, str]) -> str:
    """The state in lines, for the diff."""
    return "".join(f"{part} {versions[part] or 'absent'}\n" for part in PARTS)
