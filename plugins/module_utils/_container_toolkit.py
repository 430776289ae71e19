# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The NVIDIA container toolkit: packages, its configuration, the base CDI specification."""

from __future__ import annotations

import hashlib
import re
import typing as t

from . import _owners as owners
from . import _records as records
from ._decision import CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._host import Host
from ._packages import Packages

COMPONENT = "container_toolkit"
PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-operator-extensions",
)
RECORD = "container_toolkit"
CONFIG_FILE = "/etc/nvidia-container-runtime/config.toml"
# The site's text of CONFIG_FILE from before our settings, where the packages are not ours.
ORIGINAL_FILE = f"{records.DIRECTORY}/originals/nvidia-container-runtime-config.toml"
CDI_FILE = "/etc/cdi/nvidia.yaml"
# From the release tarball, or from repositories of the host.
TARBALL, REPOSITORY = "tarball", "packages"
# The artefact that holds packages of a manager.
ARTEFACTS = {"dpkg": "nvidia-container-toolkit", "rpm": "nvidia-container-toolkit-rpm"}
SUFFIXES = {"dpkg": ".deb", "rpm": ".rpm"}
DEB_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
REMEDY = (
    "add NVIDIA's repository (or a mirror of it) to the host, take a container_toolkit_version "
    "that it has, or set container_toolkit_method: tarball."
)

Key = t.Tuple[str, str]


class Wanted(t.NamedTuple):
    version: str
    accept_envvar_unprivileged: bool = False
    accept_volume_mounts: bool = True
    mode: str = "auto"
    method: str = TARBALL

    def settings(self) -> dict[Key, str]:
        """(table, key) → value as TOML text."""
        return {
            ("", "accept-nvidia-visible-devices-envvar-when-unprivileged"): _toml(
                self.accept_envvar_unprivileged
            ),
            ("", "accept-nvidia-visible-devices-as-volume-mounts"): _toml(
                self.accept_volume_mounts
            ),
            ("nvidia-container-runtime", "mode"): _toml(self.mode),
        }


class Facts(t.NamedTuple):
    manager: str
    packages: t.Mapping[str, str]
    config: str | None
    cdi: str | None = None
    # Packages that we installed, or were about to.
    ours: tuple[str, ...] = ()


class CdiBasis(t.NamedTuple):
    """What the base CDI specification follows from; recorded in its first line."""

    driver: str
    toolkit: str
    cards: tuple[str, ...]

    def header(self, body: str) -> str:
        digest = hashlib.sha256(body.encode()).hexdigest()
        return (
            f"# Written by flexai.xpu from `nvidia-ctk cdi generate`: driver={self.driver} "
            f"toolkit={self.toolkit} cards={','.join(self.cards)} body={digest}\n"
        )


def _toml(value: bool | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"'


# -- packages --------------------------------------------------------------------------------


def installed_packages(installed: Packages) -> dict[str, str]:
    """The toolkit's own among what is installed."""
    return {name: installed.versions[name] for name in PACKAGES if name in installed.versions}


def _package_of(path: str, manager: str) -> str:
    """``libnvidia-container1_1.17.8-1_amd64.deb`` and ``libnvidia-container1-1.17.8-1.x86_64.rpm``
    are both of libnvidia-container1."""
    file = path.rpartition("/")[2]
    return file.split("_", 1)[0] if manager == "dpkg" else file.rsplit("-", 2)[0]


def choose_packages(paths: t.Iterable[str], manager: str, machine: str) -> dict[str, str]:
    """Package name → member of the release tarball, for one manager and architecture.

    The directory between ``packages/`` and the architecture names the distribution that upstream
    built on; it changed over releases, so any is taken.
    """
    architecture = DEB_ARCHITECTURES.get(machine, machine) if manager == "dpkg" else machine
    chosen: dict[str, str] = {}
    for path in sorted(paths):
        parts = path.split("/")
        if not path.endswith(SUFFIXES[manager]) or len(parts) < 2 or parts[-2] != architecture:
            continue
        name = _package_of(path, manager)
        if name in PACKAGES:
            chosen.setdefault(name, path)
    return chosen


# -- configuration ---------------------------------------------------------------------------

_TABLE = re.compile(r"^\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"^(\s*)(#\s*)?([A-Za-z0-9_-]+)\s*=\s*(.*?)\s*$")


def read_settings(text: str) -> dict[Key, str]:
    """Every live assignment: (table, key) → the value's TOML text."""
    table = ""
    found: dict[Key, str] = {}
    for line in text.splitlines():
        header = _TABLE.match(line)
        if header:
            table = header.group(1).strip()
            continue
        assignment = _ASSIGNMENT.match(line)
        if assignment and not assignment.group(2):
            found[(table, assignment.group(3))] = assignment.group(4)
    return found


def write_settings(text: str, settings: t.Mapping[Key, str]) -> str:
    """*text* with *settings* in force; every other line, comments too, stays as it is.

    A commented-out default of the same key is replaced where it stands; upstream's file has some.
    """
    current = read_settings(text)
    missing = dict(settings)
    lines: list[str] = []
    table = ""
    for line in text.splitlines():
        header = _TABLE.match(line)
        if header:
            _append_rest(lines, table, missing)
            table = header.group(1).strip()
        assignment = _ASSIGNMENT.match(line)
        key = (table, assignment.group(3)) if assignment else ("", "")
        if assignment and key in missing and not (assignment.group(2) and key in current):
            line = f"{assignment.group(1)}{key[1]} = {missing.pop(key)}"
        lines.append(line)
    _append_rest(lines, table, missing)
    for other in sorted({where for where, _name in missing}):
        if other:
            lines.extend(["", f"[{other}]"])
            _append_rest(lines, other, missing)
    return "\n".join(_with_root_keys(lines, missing)) + "\n"


def _append_rest(lines: list[str], table: str, missing: dict[Key, str]) -> None:
    """At the end of *table*: the settings of it that no line held."""
    if not table:
        return
    for key in sorted(key for key in missing if key[0] == table):
        lines.append(f"{key[1]} = {missing.pop(key)}")


def _with_root_keys(lines: list[str], missing: t.Mapping[Key, str]) -> list[str]:
    """Keys outside tables must stand before the first table."""
    return [f"{name} = {value}" for (_table, name), value in sorted(missing.items())] + lines


# -- CDI -------------------------------------------------------------------------------------


def cdi_is_current(text: str | None, basis: CdiBasis) -> bool:
    """Whether the file was made from exactly this driver, toolkit and set of cards, unaltered."""
    if text is None:
        return False
    first, newline, body = text.partition("\n")
    return first + newline == basis.header(body)


# -- plan ------------------------------------------------------------------------------------


def observe(host: Host, installed: Packages) -> Facts:
    return Facts(
        manager=installed.manager,
        packages=installed_packages(installed),
        config=host.read(CONFIG_FILE),
        cdi=host.read(CDI_FILE),
        ours=tuple(records.read(host, RECORD).get("packages", ())),
    )


def foreign_packages(facts: Facts) -> dict[str, str]:
    """Packages of the toolkit that somebody else installed."""
    return {name: found for name, found in facts.packages.items() if name not in facts.ours}


def claim(facts: Facts, wanted: Wanted, trace: Claim | None = None) -> Claim | None:
    """Somebody else's toolkit: used where it is the wanted version, never changed."""
    foreign = foreign_packages(facts)
    if not foreign:
        return trace
    odd = {found for found in foreign.values() if found != wanted.version}
    found = odd.pop() if odd else wanted.version
    return owners.plan_packages(
        "container toolkit",
        facts.manager,
        foreign,
        found,
        wanted.version,
        "container_toolkit_version",
    )


def _differences(facts: Facts, wanted: Wanted, basis: CdiBasis) -> list[str]:
    lacking: dict[str, int] = {}
    for name in PACKAGES:
        found = facts.packages.get(name, "absent")
        lacking[found] = lacking.get(found, 0) + (found != wanted.version)
    differences = [
        f"{count} packages {found} → {wanted.version}" for found, count in lacking.items() if count
    ]
    current = read_settings(facts.config or "")
    differences += [
        f"{name} = {current.get((table, name), 'unset')} → {value}"
        for (table, name), value in wanted.settings().items()
        if current.get((table, name)) != value
    ]
    if not cdi_is_current(facts.cdi, basis):
        differences.append(f"{CDI_FILE} is missing, altered or of another driver or set of cards")
    return differences


def plan(facts: Facts, wanted: Wanted, basis: CdiBasis, trace: Claim | None = None) -> Decision:
    found = facts.packages.get("nvidia-container-toolkit", "")
    claimed = claim(facts, wanted, trace)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, wanted.version, found)
    differences = _differences(facts, wanted, basis)
    action = (CHANGE if found else INSTALL) if differences else OK
    decision = Decision(COMPONENT, action, wanted.version, found, "; ".join(differences))
    return claimed.on(decision) if claimed else decision
