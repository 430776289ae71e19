# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""CRI-O: our runtimes as one drop-in, which names them alone: drop-ins are merged key by key."""

from __future__ import annotations

import re
import typing as t

from . import _owners as owners
from ._decision import BLOCKED, CHANGE, INSTALL, OK, REFUSE, Claim, Decision
from ._host import Host

COMPONENT = "container_runtime"
PROGRAM = "/usr/bin/crio"
CONFIG_FILE = "/etc/crio/crio.conf"
# Files are read in the order of their names; the last word counts.
DROP_INS = "/etc/crio/crio.conf.d"
DROP_IN = f"{DROP_INS}/99-flexai-xpu.conf"
SOCKET = "/run/crio/crio.sock"
RUNTIMES = {
    "nvidia": "/usr/bin/nvidia-container-runtime",
    "nvidia-cdi": "/usr/bin/nvidia-container-runtime.cdi",
}
WANTED = "+".join(RUNTIMES)
_HEADER = re.compile(r"""^\s*\[crio\.runtime\.runtimes\.["']?([A-Za-z0-9_-]+)["']?\]\s*(?:#.*)?$""")
_ANY_HEADER = re.compile(r"^\s*\[")
_PROGRAM = re.compile(r"""^\s*runtime_path\s*=\s*["']([^"']*)["']""")
TEXT = "# Written by flexai.xpu (role container_runtime).\n" + "".join(
    f'\n[crio.runtime.runtimes.{name}]\nruntime_path = "{program}"\nruntime_type = "oci"\n'
    for name, program in RUNTIMES.items()
)


class Facts(t.NamedTuple):
    installed: bool
    drop_in: str | None
    # Runtime of ours → program that the site's own files name for it.
    theirs: t.Mapping[str, str] = {}
    restart_pending: bool = False


def programs_named(text: str) -> dict[str, str]:
    """Runtimes that a configuration defines, with their programs."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header or _ANY_HEADER.match(line):
            name = header.group(1) if header else ""
            continue
        program = _PROGRAM.match(line)
        if name and program:
            found[name] = program.group(1)
    return found


def foreign_programs(host: Host) -> dict[str, str]:
    """What the site itself defines under our names."""
    found: dict[str, str] = {}
    for path in (CONFIG_FILE, *host.glob(f"{DROP_INS}/*")):
        if path != DROP_IN:
            found.update(programs_named(host.read(path) or ""))
    return {name: program for name, program in found.items() if name in RUNTIMES}


def observe(host: Host) -> Facts:
    written, started = host.stat(DROP_IN), host.stat(SOCKET)
    return Facts(
        installed=bool(host.program(PROGRAM)),
        drop_in=host.read(DROP_IN),
        theirs=foreign_programs(host),
        restart_pending=bool(written and started and written.st_mtime_ns > started.st_mtime_ns),
    )


def plan(facts: Facts, trace: Claim | None = None) -> Decision:
    found = WANTED if facts.drop_in else ""
    if not facts.installed:
        reason = f"{PROGRAM} is not installed; install CRI-O first"
        return Decision(COMPONENT, BLOCKED, WANTED, "", reason)
    claimed = owners.plan_runtimes("CRI-O's configuration", facts.theirs, RUNTIMES, trace)
    if claimed and claimed.stance == REFUSE:
        return claimed.refusal(COMPONENT, WANTED, found)
    differences = []
    if facts.drop_in != TEXT:
        differences.append(f"{DROP_IN} is {'altered' if found else 'missing'}")
    if facts.restart_pending:
        differences.append("CRI-O has not been restarted since its configuration changed")
    action = (CHANGE if found else INSTALL) if differences else OK
    decision = Decision(COMPONENT, action, WANTED, found, "; ".join(differences))
    return claimed.on(decision) if claimed else decision
