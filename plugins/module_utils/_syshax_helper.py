# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What sysHAX's units run around their engines; role syshax copies this file to the host as it is.

``wait URL PID`` returns when URL answers 200, and fails when the process PID is gone: systemd waits
for this program even when the engine has died. How long it may take is the unit's affair.
``sweep DIRECTORY`` removes segments of shared memory that engines left there when they died.
``sweep-container RUNTIME NAME`` is that, in the IPC namespace of a container that runs.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import subprocess
import sys
import time
import typing as t
import urllib.error
import urllib.request

# Blocks of sysHAX's engines, of vLLM's message queues and of Python's shared memory, torch's.
# vllm_shared_request_map is the index of all: who starts next reads or renews it.
OURS = re.compile(r"^(vllm_shared_(?!request_map$).+|psm_[0-9a-f]+|torch_\d+_\d+_\d+)$")
POLL_S = 0.5


class Segment(t.NamedTuple):
    """A file of shared memory: which it is, and when it was last written."""

    name: str
    identity: tuple[int, int]  # device, inode
    written: float


def stale(
    segments: t.Iterable[Segment],
    held: t.AbstractSet[tuple[int, int]],
    now: float,
    older_than_s: float,
) -> list[str]:
    """Names of segments that no process holds and no request can be waiting for any more.

    An engine that lives may have let go of blocks that its peer shall fetch: hence the age.
    """
    return [
        segment.name
        for segment in segments
        if OURS.match(segment.name)
        and segment.identity not in held
        and now - segment.written >= older_than_s
    ]


def segments_of(directory: str) -> list[Segment]:
    found = []
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            state = entry.stat(follow_symlinks=False)
            found.append(Segment(entry.name, (state.st_dev, state.st_ino), state.st_mtime))
    return found


def held_by_processes(proc: str = "/proc") -> set[tuple[int, int]]:
    """Every file that a process of this machine has open or mapped. Raises OSError (permission)
    where it can't be known, for then nothing may be removed."""
    held = set()
    for pattern in ("fd/*", "map_files/*"):
        for process in glob.glob(f"{proc}/[0-9]*"):
            directory = f"{process}/{pattern.partition('/')[0]}"
            try:
                names = os.listdir(directory)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended
            for name in names:
                try:
                    state = os.stat(f"{directory}/{name}")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                held.add((state.st_dev, state.st_ino))
    return held


def sweep(directory: str, older_than_s: float, proc: str = "/proc") -> list[str]:
    """Remove stale segments; their names. One that is opened meanwhile is not noticed: the units
    sweep before their engine starts."""
    found, now = segments_of(directory), time.time()
    removed: list[str] = []
    if not stale(found, frozenset(), now, older_than_s):
        return removed  # every process need not be looked at for that
    for name in stale(found, held_by_processes(proc), now, older_than_s):
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:
            continue
        removed.append(name)
    return removed


def container_shm(runtime: str, container: str) -> str:
    """Where the shared memory of a running container is seen from here; empty where none runs."""
    argv = [runtime, "inspect", "--format={{.State.Pid}}", container]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    pid = done.stdout.strip()
    return f"/proc/{pid}/root/dev/shm" if pid.isdigit() and pid != "0" else ""


def wait(url: str, pid: int) -> bool:
    """Whether *url* answered before the process was gone."""
    # No proxy: what is asked listens on this host.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while os.path.exists(f"/proc/{pid}"):
        try:
            with opener.open(url, timeout=5) as answer:
                if answer.status == 200:
                    return True
        except (OSError, ValueError):
            pass
        time.sleep(POLL_S)
    return False


def main(argv: t.Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    gate = commands.add_parser("wait")
    gate.add_argument("url")
    gate.add_argument("pid", type=int)
    plain = commands.add_parser("sweep")
    plain.add_argument("directory")
    inside = commands.add_parser("sweep-container")
    inside.add_argument("runtime")
    inside.add_argument("container")
    for command in (plain, inside):
        command.add_argument("--older-than", type=float, default=0.0)
    asked = parser.parse_args(argv)
    if asked.command == "wait":
        return 0 if wait(asked.url, asked.pid) else 1
    directory = (
        asked.directory
        if asked.command == "sweep"
        else container_shm(asked.runtime, asked.container)
    )
    try:
        removed = sweep(directory, asked.older_than) if directory else []
    except OSError as error:
        sys.stderr.write(f"nothing removed: {error}\n")
        return 1
    for name in removed:
        sys.stdout.write(f"removed {name}: nobody held it\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
