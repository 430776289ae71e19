# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""A change that waits for a boot, taken up after it by the host itself.

Before the boot the host gets what it needs for that: one order, this code as one file, and a unit
that starts it once. Nothing of the controller is needed then. Whoever works on the change, the unit
or a play, holds a lock on the directory of the records; the play takes the order away first, so
that a unit that starts later finds nothing to do.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import importlib.util
import io
import os
import sys
import time
import typing as t
import zipfile

from . import _driver_change as change
from . import _nvidia_driver as driver
from . import _records as records
from . import _transaction as transaction
from ._errors import XpuError
from ._host import Host
from ._judge import judge

RECORD = "resume"
PROGRAM = f"{records.DIRECTORY}/resume.pyz"
UNIT = "flexai-xpu-resume.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
UNIT_TEXT = """\
# Written by flexai.xpu before a boot that a change of this host waits for; gone after it.
[Unit]
Description=Take up the change of this node that waited for a boot (flexai.xpu)
ConditionPathExists={program}
After=nvidia-persistenced.service nvidia-fabricmanager.service systemd-modules-load.service

[Service]
Type=oneshot
ExecStart={python} {program}
# Each step has a limit of its own.
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""
# What the code is called inside its one file.
PACKAGE = "flexai_xpu_resume"
MAIN = f"from {PACKAGE}._resume import main\nraise SystemExit(main())\n"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LOCK_LIMIT_S = 3600
UNIT_LIMIT_S = 60


def boot_id(host: Host) -> str:
    return (host.read(BOOT_ID) or "").strip()


# -- the code as one file --------------------------------------------------------------------


def _source(name: str) -> str:
    """A module beside this one, wherever Ansible has put it: a directory or an archive."""
    spec = importlib.util.find_spec(f"{__package__}.{name}")
    if spec is None or spec.loader is None:
        raise XpuError(f"{__package__}.{name} can't be found.", "install the collection anew.")
    return str(spec.loader.get_source(spec.name))  # type: ignore[attr-defined]


def _siblings(text: str) -> t.Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            if node.module:
                yield node.module
            else:
                yield from (alias.name for alias in node.names)


def sources() -> dict[str, str]:
    """This module and all that it rests on, which is Python's own library and nothing else."""
    found: dict[str, str] = {}
    due = ["_resume"]
    while due:
        name = due.pop()
        if name not in found:
            found[name] = _source(name)
            due += _siblings(found[name])
    return found


def archive() -> bytes:
    """The file that Python runs."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("__main__.py", MAIN)
        made.writestr(f"{PACKAGE}/__init__.py", "")
        for name, text in sorted(sources().items()):
            made.writestr(f"{PACKAGE}/{name}.py", text)
    return packed.getvalue()


# -- before and after the boot -----------------------------------------------------------------


def arm(host: Host, in_cluster: bool) -> bool:
    """Have the host go on by itself after its next boot; whether it has anything to go on with."""
    waiting = records.read(host, driver.RECORD).get("waiting")
    if not waiting:
        return False
    host.write_bytes(PROGRAM, archive(), mode=0o600)
    python = host.program(sys.executable) or "/usr/bin/python3"
    host.write(UNIT_FILE, UNIT_TEXT.format(python=python, program=PROGRAM))
    records.write(host, RECORD, {**waiting, "boot": boot_id(host), "in_cluster": in_cluster})
    for words in (["daemon-reload"], ["enable", UNIT]):
        done = host.run(["systemctl", *words], timeout_s=UNIT_LIMIT_S)
        if done.rc != 0:
            raise XpuError(
                f"systemctl {' '.join(words)} ended with rc {done.rc}: {done.err.strip()[-400:]}.",
                "mend systemd on the host and run this again.",
            )
    return True


def disarm(host: Host) -> bool:
    """Take the order, the code and the unit away; whether there were any."""
    there = [path for path in (records.path(RECORD), PROGRAM, UNIT_FILE) if host.exists(path)]
    records.write(host, RECORD, {})
    if host.exists(UNIT_FILE):
        host.run(["systemctl", "disable", UNIT], timeout_s=UNIT_LIMIT_S)
        host.remove(UNIT_FILE)
        host.run(["systemctl", "daemon-reload"], timeout_s=UNIT_LIMIT_S)
    host.remove(PROGRAM)
    host.remove_empty(records.DIRECTORY)
    return bool(there)


@contextlib.contextmanager
def alone(host: Host, limit_s: float = LOCK_LIMIT_S) -> t.Iterator[None]:
    """While nobody else takes a change of this host up."""
    os.makedirs(host.path(records.DIRECTORY), mode=0o755, exist_ok=True)
    handle = os.open(host.path(records.DIRECTORY), os.O_RDONLY)
    deadline = time.monotonic() + limit_s
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise XpuError(
                        f"{UNIT} still works on the change after {limit_s:.0f} s.",
                        f"look at `journalctl -u {UNIT}` on the host.",
                    ) from None
                time.sleep(0.5)
        yield
    finally:
        os.close(handle)


def settle(host: Host) -> bool:
    """Wait for a unit that is at work, and keep one that is not from beginning."""
    if not host.is_directory(records.DIRECTORY):
        return False
    with alone(host):
        return disarm(host)


# -- by the unit -------------------------------------------------------------------------------


def _carry_out(host: Host, order: t.Mapping[str, t.Any]) -> str:
    """The change gone on with and judged; why it isn't right, empty where it is."""
    wanted = driver.Wanted(**order["wanted"])
    try:
        change.converge(host, wanted, order["installer"])
    except XpuError as error:
        return str(error)
    (judged,) = judge(host, "", {driver.COMPONENT: wanted.version}, {}, [driver.COMPONENT])[
        "components"
    ]
    return "" if judged["state"] == "ok" else f"{judged['state']}: {judged['reason']}"


def go_on(host: Host) -> str:
    """What the unit does; its words for the journal."""
    order, note = records.read(host, RECORD), records.read(host, transaction.RECORD)
    if not order or not note:
        disarm(host)
        return "nothing waits for a boot"
    if order["boot"] == boot_id(host):
        return "the host has not booted since the change was prepared"
    wrong = _carry_out(host, order)
    if wrong:
        told = f"taken up after the boot, and not right: {wrong}"
        records.write(host, transaction.RECORD, {"step": "validate", "reason": told})
    elif order["in_cluster"]:
        told = "taken up after the boot, and right; the next run of the play lets pods come back"
        records.write(host, transaction.RECORD, {"step": "release", "reason": told})
    else:
        told = "taken up after the boot, and right"
        records.write(host, transaction.RECORD, {})
    disarm(host)
    return told


def main() -> int:
    host = Host(sys.argv[1] if len(sys.argv) > 1 else "/")
    with alone(host):
        told = go_on(host)
    sys.stdout.write(f"{told}\n")
    return 1 if "not right" in told else 0
