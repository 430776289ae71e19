# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What is ours on a host: one small JSON file per component under /var/lib/flexai-xpu.

A record is written before what it tells of, so that a run killed in between leaves nothing of ours
that looks like somebody else's.
"""

from __future__ import annotations

import json
import typing as t

from ._errors import XpuError
from ._host import Host

DIRECTORY = "/var/lib/flexai-xpu"


def path(name: str) -> str:
    return f"{DIRECTORY}/{name}.json"


def read(host: Host, name: str) -> dict[str, t.Any]:
    """The record; empty where there is none."""
    text = host.read(path(name))
    if text is None:
        return {}
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise XpuError(
            f"{path(name)}, our own record, holds no JSON object.",
            "bring it back from a backup; without one remove it, and what it told of is taken for "
            "somebody else's.",
        )
    return record


def write(host: Host, name: str, record: t.Mapping[str, t.Any]) -> None:
    """Replace the record; an empty one is removed."""
    if record:
        host.write(path(name), json.dumps(record, indent=2, sort_keys=True) + "\n", mode=0o600)
        return
    host.remove(path(name))
    host.remove_empty(DIRECTORY)
