#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated Ascend node on a developer's machine, as ``simnode.py`` makes one with GPUs.

``up`` builds what is missing, starts the daemon and prints the environment to export; ``down`` ends
it. Needs no root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS / "testbed"), str(TESTS.parent / "native/build")]

from simulators.simnode import FIRST_BUS, START_SECONDS, SimnodeError, down  # noqa: E402
from testbed.recipes import ascend  # noqa: E402
from xpubuild.cache import Cache  # noqa: E402

# Besides one davinci<n> for each card.
DEVICES = ("davinci_manager", "devmm_svm", "hisi_hdc")


def die_id(position: int) -> str:
    """The die id of the card at *position*, five words as ``npu-smi`` and DCMI tell them apart."""
    return f"51000000-00004000-80000000-00000000-{position:08X}"


def write_card(pci: Path, position: int, profile: Path) -> str:
    """One card in a tree like /sys/bus/pci/devices; returns its die id."""
    settings = dict(
        line.split(maxsplit=1)
        for line in profile.read_text().splitlines()
        if line and not line.startswith("#")
    )
    card = pci / f"0000:{FIRST_BUS + position:02x}:00.0"
    card.mkdir(parents=True)
    die = die_id(position)
    files = {
        "vendor": settings["pci_vendor"],
        "device": settings["pci_device"],
        "class": "0x120000",
        "numa_node": "0",
        "simgpu": f"profile {profile.stem}\nuuid {die}\nserial {1560000000000 + position}",
    }
    for name, text in files.items():
        (card / name).write_text(f"{text}\n")
    return die


@dataclass(frozen=True)
class Node:
    """A running simulated node."""

    directory: Path
    driver: Path
    dies: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to see this node's chips."""
        before = os.environ.get("LD_LIBRARY_PATH")
        libraries = str(self.driver / "lib") + (f":{before}" if before else "")
        places = {
            "SIMNPU_SOCKET": "socket",
            "SIMNPU_DEV": "dev",
            "SIMNPU_PCI": "pci",
            "SIMNPU_SHARE": "share",
            "SIMNPU_STATE": "state",
            "SIMNPU_FAULTS": "faults",
        }
        return {
            **{name: str(self.directory / place) for name, place in places.items()},
            "LD_LIBRARY_PATH": libraries,
            "PATH": f"{self.driver / 'bin'}:{os.environ['PATH']}",
        }

    def run(self, *argv: str, rc: int = 0) -> str:
        """The output of a program that sees this node and ends with *rc*."""
        done = subprocess.run(
            argv,
            env={**os.environ, **self.environment},
            text=True,
            check=False,
            capture_output=True,
        )
        if done.returncode != rc:
            raise SimnodeError(f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def pid(self) -> int:
        """The daemon's process id."""
        return int((self.directory / "pid").read_text())


def up(directory: Path, profiles: Sequence[str], version: str = ascend.DRIVER_VERSION) -> Node:
    """Start a node with one card per profile in *directory*, which must be empty or missing."""
    if directory.exists() and any(directory.iterdir()):
        raise SimnodeError(f"{directory} is not empty; end that node with `down` or take another")
    built = ascend.build(Cache())
    known = {path.stem: path for path in (built / "share/npu-sim/profiles").glob("*.conf")}
    unknown = [name for name in profiles if name not in known]
    if unknown:
        raise SimnodeError(f"no profile {unknown[0]}; there are {', '.join(sorted(known))}")
    for name in ("dev", "share", "state"):
        (directory / name).mkdir(parents=True)
    (directory / "share/profiles").symlink_to(built / "share/npu-sim/profiles")
    (directory / "share/version").write_text(f"version {version}\n")
    for name in (*DEVICES, *(f"davinci{number}" for number in range(len(profiles)))):
        (directory / "dev" / name).touch()
    dies = tuple(
        write_card(directory / "pci", position, known[name])
        for position, name in enumerate(profiles)
    )
    node = Node(directory, built, dies)
    with (directory / "daemon.log").open("w") as log:
        subprocess.run(
            [built / "bin/npu-sim-daemon", directory / "pid"],
            env={**os.environ, **node.environment},
            check=True,
            stderr=log,
        )
    deadline = time.monotonic() + START_SECONDS
    while not (directory / "pid").exists():
        if time.monotonic() > deadline:
            raise SimnodeError(f"the daemon did not start; see {directory / 'daemon.log'}")
        time.sleep(0.01)
    return node


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="simnpu")
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("up", help="start a node; prints the environment to export")
    start.add_argument("--profile", action="append", help="a card of this profile (repeatable)")
    start.add_argument("--version", default=ascend.DRIVER_VERSION, help="the driver's")
    start.add_argument("--directory", type=Path)
    end = verbs.add_parser("down", help="end the node")
    end.add_argument("directory", type=Path, nargs="?", default=os.environ.get("SIMNPU"))
    options = parser.parse_args()
    try:
        if options.verb == "down":
            if options.directory is None:
                raise SimnodeError("say which node: its directory, or $SIMNPU as `up` printed it")
            down(Path(options.directory))
            return 0
        directory = options.directory or Path(tempfile.mkdtemp(prefix="simnpu-"))
        node = up(directory, options.profile or ["ascend-910b3"], options.version)
    except SimnodeError as error:
        print(f"simnpu: {error}", file=sys.stderr)
        return 1
    print(f"export SIMNPU={shlex.quote(str(directory))}")
    for name, value in node.environment.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
