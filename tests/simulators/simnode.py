#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node on a developer's machine: cards, device names and daemon in a scratch directory.

``up`` builds what is missing, starts the daemon and prints the environment to export; ``down`` ends
it. Needs no root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FIRST_BUS = 0x3B
START_SECONDS = 20.0


class SimnodeError(RuntimeError):
    """The node can't be started; the message says what to do."""


def driver() -> Path:
    """The built simulated driver."""
    sys.path[:0] = [str(REPOSITORY / "native/build"), str(REPOSITORY / "tests/testbed")]
    from testbed.recipes import simulators
    from xpubuild.cache import Cache

    return simulators.build(Cache())


def write_card(pci: Path, position: int, profile: Path) -> str:
    """One card in a tree like /sys/bus/pci/devices; returns its UUID."""
    settings = dict(
        line.split(maxsplit=1)
        for line in profile.read_text().splitlines()
        if line and not line.startswith("#")
    )
    card = pci / f"0000:{FIRST_BUS + position:02x}:00.0"
    card.mkdir(parents=True)
    uuid = f"GPU-51000000-0000-4000-8000-{position:012x}"
    files = {
        "vendor": settings["pci_vendor"],
        "device": settings["pci_device"],
        "class": "0x030200",
        "numa_node": "0",
        "simgpu": f"profile {profile.stem}\nuuid {uuid}\nserial {1560000000000 + position}",
    }
    for name, text in files.items():
        (card / name).write_text(f"{text}\n")
    return uuid


@dataclass(frozen=True)
class Node:
    """A running simulated node."""

    directory: Path
    driver: Path
    uuids: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to see this node's cards."""
        before = os.environ.get("LD_LIBRARY_PATH")
        libraries = str(self.driver / "lib") + (f":{before}" if before else "")
        return {
            "SIMGPU_SOCKET": str(self.directory / "socket"),
            "SIMGPU_DEV": str(self.directory / "dev"),
            "SIMGPU_PCI": str(self.directory / "pci"),
            "SIMGPU_PROC": str(self.directory / "proc"),
            "LD_LIBRARY_PATH": libraries,
            "PATH": f"{self.driver / 'bin'}:{os.environ['PATH']}",
        }

    def run(self, *argv: str) -> str:
        """The output of a program that sees this node."""
        return subprocess.run(
            argv, env={**os.environ, **self.environment}, text=True, check=True, capture_output=True
        ).stdout

    def pid(self) -> int:
        """The daemon's process id."""
        return int((self.directory / "pid").read_text())


def up(directory: Path, profiles: Sequence[str]) -> Node:
    """Start a node with one card per profile in *directory*, which must be empty or missing."""
    if directory.exists() and any(directory.iterdir()):
        raise SimnodeError(f"{directory} is not empty; end that node with `down` or take another")
    built = driver()
    known = {path.stem: path for path in (built / "share/nvidia-sim/profiles").glob("*.conf")}
    unknown = [name for name in profiles if name not in known]
    if unknown:
        raise SimnodeError(f"no profile {unknown[0]}; there are {', '.join(sorted(known))}")
    (directory / "dev").mkdir(parents=True)
    uuids = tuple(
        write_card(directory / "pci", position, known[name])
        for position, name in enumerate(profiles)
    )
    node = Node(directory, built, uuids)
    environment = {**os.environ, **node.environment}
    subprocess.run(
        [built / "bin/nvidia-sim-module", "start"], env=environment, check=True, stdout=sys.stderr
    )
    with (directory / "daemon.log").open("w") as log:
        subprocess.run(
            [built / "bin/nvidia-persistenced", "--pid-file", directory / "pid"],
            env=environment,
            check=True,
            stderr=log,
        )
    deadline = time.monotonic() + START_SECONDS
    while not (directory / "pid").exists():
        if time.monotonic() > deadline:
            raise SimnodeError(f"the daemon did not start; see {directory / 'daemon.log'}")
        time.sleep(0.01)
    return node


def down(directory: Path) -> None:
    """End the daemon of the node in *directory* and remove the directory."""
    pid = directory / "pid"
    if not pid.exists():
        raise SimnodeError(f"no simulated node runs in {directory} (there is no {pid})")
    os.kill(int(pid.read_text()), signal.SIGTERM)
    deadline = time.monotonic() + START_SECONDS
    while pid.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="simnode")
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("up", help="start a node; prints the environment to export")
    start.add_argument("--profile", action="append", help="a card of this profile (repeatable)")
    start.add_argument("--directory", type=Path)
    end = verbs.add_parser("down", help="end the node")
    end.add_argument("directory", type=Path, nargs="?", default=os.environ.get("SIMNODE"))
    options = parser.parse_args()
    try:
        if options.verb == "down":
            if options.directory is None:
                raise SimnodeError("say which node: its directory, or $SIMNODE as `up` printed it")
            down(Path(options.directory))
            return 0
        directory = options.directory or Path(tempfile.mkdtemp(prefix="simnode-"))
        node = up(directory, options.profile or ["a100-40g"])
    except SimnodeError as error:
        print(f"simnode: {error}", file=sys.stderr)
        return 1
    print(f"export SIMNODE={shlex.quote(str(directory))}")
    for name, value in node.environment.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
