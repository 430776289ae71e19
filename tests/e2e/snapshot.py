# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of hosts: everything that must be equal before and after a run that changes nothing.

The list of what counts is ``snapshot.yml`` beside this file. ``take`` runs one program on the host
(``collect`` below, sent as text), so that a snapshot costs one command a host.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

LIST = Path(__file__).with_suffix(".yml")
Snapshot = dict[str, str]
OnHost = Callable[..., str]


def collect(wanted: dict[str, Any]) -> dict[str, str]:
    """Runs on the host, alone in its source text: thing → what it is. Python 3.8, no libraries."""
    import hashlib
    import os
    import stat
    import subprocess

    def ask(*argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.stdout

    def describe(path: str) -> str:
        state = os.lstat(path)
        text = f"{stat.filemode(state.st_mode)} {state.st_uid}:{state.st_gid}"
        if stat.S_ISLNK(state.st_mode):
            return f"{text} -> {os.readlink(path)}"
        if stat.S_ISREG(state.st_mode):
            with open(path, "rb") as stream:
                return f"{text} {hashlib.sha256(stream.read()).hexdigest()}"
        return text

    found = {}
    without = tuple(wanted["without"])
    for tree in wanted["trees"]:
        for directory, names, files in os.walk(tree):
            names[:] = [n for n in names if os.path.join(directory, n) not in without]
            for path in [directory, *(os.path.join(directory, n) for n in files + names)]:
                if path not in without:
                    found[path] = describe(path)
    packages = ["dpkg-query", "-W", "-f", "${Package} ${Version} ${Status}\\n"]
    if not os.path.exists("/usr/bin/dpkg-query"):
        packages = ["rpm", "-qa", "--queryformat", "%{NAME} %{EVR}\\n"]
    for line in ask(*packages).splitlines():
        name, _, rest = line.partition(" ")
        found[f"package {name}"] = rest
    units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service,socket"]
    for line in ask(*units).splitlines():
        words = line.split()
        # Runs of a one-shot or a session are no state; failed ones are.
        if len(words) >= 4 and words[2] in ("active", "failed") and words[3] != "exited":
            found[f"unit {words[0]}"] = " ".join(words[1:4])
    for unit in wanted["started"]:
        asked = ask("systemctl", "show", unit, "--property=ActiveEnterTimestampMonotonic")
        found[f"start of {unit}"] = asked.strip()
    return found


def program(wanted: Mapping[str, Any]) -> str:
    """``collect`` as a program for ``python3 -c``."""
    body = (
        inspect.getsource(collect)
        .replace("dict[str, Any]", "dict")
        .replace("dict[str, str]", "dict")
    )
    return f"import json\n{body}\nprint(json.dumps(collect({dict(wanted)!r})))\n"


def take(on_host: OnHost, host: str) -> Snapshot:
    """The snapshot of one host; *on_host* runs a command there and returns its output."""
    wanted = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    found: Snapshot = json.loads(on_host(host, "python3", "-c", program(wanted)))
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What came, went or changed, one line each."""
    lines = []
    for thing in sorted({*before, *after}):
        was, now = before.get(thing), after.get(thing)
        if was != now:
            lines.append(f"{thing}: {was or 'absent'} → {now or 'absent'}")
    return lines
