# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Slices that a host registers itself: what a task asks, as one call of the program that knows.

Which card has room, what is in use and what a change comes to, ``gpu-device-plugin slice`` decides
under the lock that the device plugin takes, too. Here is only what can be told without the host.
"""

from __future__ import annotations

import json
import re
import typing as t

from ._errors import XpuError
from ._host import NOT_FOUND, Host

PROGRAM = "gpu-device-plugin"
# A change waits at most 10 s for the ledger and 10 s for who looks after running slices.
LIMIT_S = 60
MODES = ("hard", "elastic", "fixed-share", "priority")
NEEDS_CORES = ("elastic", "fixed-share")
HAS_WEIGHT = ("elastic", "priority")
# As xpu.CheckHostName of native/cluster has them.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
POD_KEY = re.compile(r"s[0-9a-f]{20}")
MAX_WEIGHT = 10_000
TERMS = ("card", "cores_percent", "memory_mib", "mode", "weight")

Params = t.Mapping[str, t.Any]


def _between(params: Params, key: str, least: int, most: int, meaning: str) -> list[str]:
    value = params.get(key)
    if value is None or least <= value <= most:
        return []
    return [f"{key} {value} is not {least} to {most} ({meaning})"]


def faults(params: Params) -> list[str]:
    """What is wrong with a task whatever the host is like."""
    name = params["name"]
    found = []
    if not NAME.fullmatch(name):
        found.append(
            f"name {name!r}: 1 to 63 letters, digits, '_', '.' and '-' are allowed, with a letter "
            "or digit at both ends"
        )
    elif name == "all" or POD_KEY.fullmatch(name):
        found.append(f"name {name!r} is taken by devices that are none of the host's")
    if params["state"] == "absent":
        return found
    mode, cores, weight = params.get("mode"), params.get("cores"), params.get("weight")
    found += _between(params, "cores", 0, 100, "percent of a card; 0: no compute limit")
    found += _between(params, "memory_mib", 0, 1 << 43, "MiB; 0: all of the card's memory")
    found += _between(params, "weight", 0, MAX_WEIGHT, "part in what others leave")
    if mode in NEEDS_CORES and cores == 0:
        found.append(f"mode {mode} needs cores, 1 to 100: they are what the slice is promised")
    if mode == "priority" and cores:
        found.append(
            f"mode priority is promised no cores, it runs in what others leave; leave cores "
            f"({cores}) out"
        )
    if weight and mode and mode not in HAS_WEIGHT:
        found.append(f"weight {weight}: only modes elastic and priority have one, not {mode}")
    return found


def check(params: Params) -> None:
    """Refuse a task before its host is asked anything."""
    found = faults(params)
    if found:
        raise XpuError(f"{'; '.join(found)}.", "mend the task; nothing was changed.")


def argv(params: Params, dry_run: bool) -> list[str]:
    """The one call that a task is; what it leaves open isn't named."""
    name = params["name"]
    if params["state"] == "absent":
        call = [PROGRAM, "slice", "remove", name]
    else:
        call = [PROGRAM, "slice", "ensure", name, f"--card={params['card']}"]
        call += [
            f"--{option.replace('_', '-')}={params[option]}"
            for option in ("cores", "memory_mib", "mode", "weight")
            if params.get(option) is not None
        ]
    call += ["--force"] if params["force"] else []
    call += ["--dry-run"] if dry_run else []
    return [*call, "--output=json"]


def ask(host: Host, call: t.Sequence[str]) -> dict[str, t.Any]:
    """What the program says, or its own complaint as ours."""
    done = host.run(call, timeout_s=LIMIT_S)
    if done.rc == NOT_FOUND:
        raise XpuError(
            f"{PROGRAM} is not installed on the host.",
            "role xpu_agent installs it; a node of the cluster has it in the device plugin's pod "
            "only.",
        )
    try:
        said = json.loads(done.out)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        told = (done.err.strip() or done.out.strip())[-400:] or "nothing"
        raise XpuError(
            f"`{' '.join(call)}` ended with {done.rc} and said: {told}",
            "bring role xpu_agent and this collection to one version.",
        )
    if "error" in said:
        raise XpuError(f"{said['error']}.", "see above; nothing was promised beyond that.")
    return said


def told(terms: t.Mapping[str, t.Any] | None) -> str:
    """The terms of a slice as lines of a diff."""
    return "".join(f"{key}: {terms[key]}\n" for key in TERMS) if terms else ""
