# SPDX-License-Identifier: Apache-2.0
"""A container as the slice's CDI entry makes one, from a mount and a pid namespace. Needs root.

Nothing points at the libraries but what a container has: the driver's directory is known to the
loader by ``/etc/ld.so.cache`` (as the vendor's update-ldcache hook leaves it), ours lie in the
driver's files' places, the originals in ``/opt/xpu/lib`` where RUNPATH leads, and pages in
``/etc/xpu`` and ``/run/xpu``. The libraries are the shipped build's. Only variables of the
simulated card come from outside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xpu_pages
from simulators import simnode
from xpu_pages import CardConfig
from xpu_slice import HERE
from xpubuild.cache import Cache
from xpubuild.recipes import cuda
from xpubuild.toolchain import run

# "$1" is the container's directory. /etc is seen through an overlay that no one can write to.
ENTER = """
mount -t overlay overlay -o "lowerdir=$1/etc:/etc" /etc
mount --bind "$1/slice" /etc/xpu
mount -o remount,bind,ro /etc/xpu
mount -t tmpfs tmpfs /run
mkdir /run/xpu
touch /run/xpu/ledger.page
mount --bind "$1/ledger.page" /run/xpu/ledger.page
mount -t tmpfs tmpfs /opt
mkdir -p /opt/xpu
mount --bind "$1/xpu" /opt/xpu
mount -o remount,bind,ro /opt/xpu
mount -t tmpfs tmpfs /usr/local
mkdir -p /usr/local/cuda-12.9/compat
ln -s cuda-12.9 /usr/local/cuda
cp "$1/xpu/lib/libcuda-original.so" /usr/local/cuda-12.9/compat/libcuda.so.1
[ -z "$UNMASKED" ] && mount --bind "$1/empty" /usr/local/cuda/compat
unset UNMASKED
shift
exec "$@"
"""
NAMESPACES = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
DRIVER_FILES = {"libcuda.so.1": cuda.LIBRARIES[0], "libnvidia-ml.so.1": cuda.LIBRARIES[1]}


@dataclass(frozen=True)
class Container:
    """A slice of a simulated node's card, as a container sees it."""

    directory: Path
    node: simnode.Node

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.page"

    def environment(self) -> dict[str, str]:
        """What the simulated card needs, and nothing that helps to find a library."""
        node = {k: v for k, v in self.node.environment.items() if k.startswith("SIMGPU_")}
        share = str(self.node.driver / "share" / "nvidia-sim")
        path = f"/opt/xpu/bin:{self.node.driver / 'bin'}:{os.environ['PATH']}"
        return {**node, "SIMGPU_SHARE": share, "PATH": path, "PYTHONPATH": str(HERE)}

    def argv(self, words: Sequence[object]) -> list[str]:
        enter = [*NAMESPACES, "--mount-proc", "sh", "-ec", ENTER, "container"]
        return [*enter, str(self.directory), *map(str, words)]

    def start(self, *words: object, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(words),
            env={**self.environment(), **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            self.argv(words),
            env={**self.environment(), **more},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def python(self, text: str, *words: object, **more: str) -> Any:
        """What a Python program prints, as JSON."""
        done = self.run(sys.executable, "-c", text, *words, **more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _library_directory(directory: Path, node: simnode.Node, built: Path, originals: Path) -> Path:
    """The driver's libraries with ours in their place, and a loader's cache that names them."""
    libraries = directory / "lib64"
    libraries.mkdir()
    for name, ours in DRIVER_FILES.items():
        theirs = (node.driver / "lib" / name).resolve()
        shutil.copy(built / "lib" / ours.file, libraries / theirs.name)
        # Under a name that says its version, as the driver's own file has one.
        shutil.copy(theirs, originals / ours.original)
        (libraries / name.removesuffix(".1")).symlink_to(name)
    run(["ldconfig", "-n", libraries])
    return libraries


def make(directory: Path, node: simnode.Node, grant: Mapping[str, Any], card: int = 0) -> Container:
    """A container with this grant."""
    built = cuda.build(Cache())
    for name in ("etc/xpu", "slice", "xpu/lib", "empty"):
        (directory / name).mkdir(parents=True)
    shutil.copytree(built / "bin", directory / "xpu" / "bin", symlinks=True)
    libraries = _library_directory(directory, node, built, directory / "xpu" / "lib")
    (directory / "ld.so.conf").write_text(f"{libraries}\ninclude /etc/ld.so.conf\n")
    cache = directory / "etc" / "ld.so.cache"
    run(["ldconfig", "-X", "-f", directory / "ld.so.conf", "-C", cache])
    _, ledger = xpu_pages.write_slice(directory / "slice", [CardConfig(node.uuids[card], **grant)])
    ledger.rename(directory / "ledger.page")
    return Container(directory, node)
