# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated Ascend driver, built from ``tests/simulators/ascend`` and the CUDA one's engine.

The directory holds what a driver installation would:

- ``lib/libdcmi.so``, and of CANN ``lib/libruntime.so`` and ``lib/libascendcl.so``
- ``bin/npu-smi``, and ``bin/npu-sim-daemon`` in the place of the kernel's module
- ``bin/simnpu``, the referee
- ``share/npu-sim/version``, ``share/npu-sim/profiles/*.conf``

The version is what ``share/npu-sim/version`` says, so another driver version is the same files with
another ``version``; npu-smi's tables follow it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from xpubuild.cache import Cache, Recipe, digest_file, digest_tree
from xpubuild.toolchain import REPOSITORY, zig_version

from . import simulators
from .simulators import ENGINE, SOURCES, Product

DRIVER_VERSION = "25.0.rc1.1"
ROOMS = ("engine", "node", "ascend/node", "ascend/dcmi", "ascend/acl", "ascend/profiles")
LAUNCHES = REPOSITORY / "native" / "ascend" / "include"
VENDOR = (*ENGINE, "ascend/node/ascend.cc")
DCMI = (*VENDOR, "ascend/dcmi/vnpu.cc", "ascend/dcmi/dcmi.cc")

PRODUCTS = (
    Product("lib/libdcmi.so", DCMI, soname="libdcmi.so", exports="ascend/dcmi/exports.map"),
    Product("bin/npu-smi", (*DCMI, "ascend/dcmi/npu_smi.cc")),
    Product(
        "lib/libruntime.so",
        (*VENDOR, "ascend/acl/device.cc", "ascend/acl/runtime.cc"),
        soname="libruntime.so",
        exports="ascend/acl/runtime.map",
    ),
    Product(
        "lib/libascendcl.so",
        ("ascend/acl/acl.cc",),
        soname="libascendcl.so",
        exports="ascend/acl/acl.map",
        needs=("lib/libruntime.so",),
    ),
    Product("bin/simnpu", (*VENDOR, "node/top.cc", "node/ledger.cc", "ascend/node/simnpu.cc")),
    Product("bin/npu-sim-daemon", (*VENDOR, "engine/daemon.cc", "ascend/node/daemon.cc")),
)


def _build(out: Path) -> None:
    includes = [*(f"-I{SOURCES / room}" for room in ROOMS), f"-I{LAUNCHES}"]
    simulators.link_all(PRODUCTS, out, includes)
    share = out / "share" / "npu-sim"
    shutil.copytree(SOURCES / "ascend" / "profiles", share / "profiles")
    (share / "version").write_text(f"version {DRIVER_VERSION}\n")


def build(cache: Cache) -> Path:
    """The simulated driver as a directory; see the module's text."""
    inputs = {
        "sources": digest_tree((SOURCES / room for room in ROOMS), SOURCES),
        "launches": digest_tree([LAUNCHES], REPOSITORY),
        "recipe": digest_file(Path(__file__)),
        "shared": digest_file(Path(simulators.__file__)),
        "zig": zig_version(),
    }
    return cache.get(Recipe("simulators-ascend", inputs, _build))


if __name__ == "__main__":
    print(build(Cache()))
