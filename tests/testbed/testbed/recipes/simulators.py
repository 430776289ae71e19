# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated NVIDIA driver, built from ``tests/simulators``.

The directory holds what a driver installation would, named with ``DRIVER_VERSION``:

- ``lib/libcuda.so.<v>``, ``lib/libnvidia-ml.so.<v>``, each with its ``.so.1`` link
- ``bin/nvidia-smi``, ``bin/nvidia-persistenced``, ``bin/nvidia-sim-module``, ``bin/simgpu``
- ``share/nvidia-sim/version``, ``share/nvidia-sim/profiles/*.conf``, ``share/nvidia-sim/spin.ptx``
- ``units/nvidia-sim-module.service``, ``units/nvidia-persistenced.service``

The libraries know their version only by their file names, so another driver version is the same
files under other names with another ``version`` file.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from xpubuild.cache import Cache, Recipe, digest_file, digest_tree
from xpubuild.toolchain import REPOSITORY, run, zig_cxx, zig_version

DRIVER_VERSION = "580.95.05"
SOURCES = REPOSITORY / "tests" / "simulators"
HEADERS = SOURCES / "headers.txt"
ROOMS = ("engine", "kernels", "cuda", "nvml", "node", "profiles")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")

ENGINE = ("engine/card.cc", "engine/hardware.cc", "engine/schedule.cc", "engine/session.cc")
VENDOR = (*ENGINE, "cuda/mig.cc", "cuda/vendor.cc")


@dataclass(frozen=True)
class Product:
    """One library or program: where it goes and what it is linked from."""

    output: str
    sources: tuple[str, ...]
    soname: str = ""
    exports: str = ""
    needs: tuple[str, ...] = ()  # outputs of products before it that it is linked against


PRODUCTS = (
    Product(
        f"lib/libcuda.so.{DRIVER_VERSION}",
        (
            *VENDOR,
            "kernels/kernels.cc",
            "kernels/image.cc",
            "cuda/driver.cc",
            "cuda/init.cc",
            "cuda/context.cc",
            "cuda/module.cc",
            "cuda/library.cc",
            "cuda/stream.cc",
            "cuda/capture.cc",
            "cuda/operation.cc",
            "cuda/graph.cc",
            "cuda/graph_api.cc",
            "cuda/graph_node.cc",
            "cuda/memory.cc",
            "cuda/book.cc",
            "cuda/pool.cc",
            "cuda/vmm.cc",
            "cuda/array.cc",
            "cuda/multicast.cc",
            "cuda/peer.cc",
            "cuda/pointer.cc",
            "cuda/values.cc",
            "cuda/context_state.cc",
            "cuda/green.cc",
            "cuda/function.cc",
            "cuda/texture.cc",
            "cuda/external.cc",
            "cuda/ipc.cc",
            "cuda/shared_event.cc",
            "cuda/launch.cc",
            "cuda/procaddress.cc",
        ),
        soname="libcuda.so.1",
        exports="cuda/exports.map",
    ),
    Product(
        f"lib/libnvidia-ml.so.{DRIVER_VERSION}",
        (*VENDOR, "nvml/faults.cc", "nvml/nvml.cc"),
        soname="libnvidia-ml.so.1",
        exports="nvml/exports.map",
    ),
    Product("bin/nvidia-smi", ("nvml/nvidia_smi.cc",)),
    Product(
        "bin/nvidia-persistenced",
        (*VENDOR, "engine/daemon.cc", "node/places.cc", "node/persistenced.cc"),
    ),
    Product("bin/nvidia-sim-module", (*VENDOR, "node/places.cc", "node/sim_module.cc")),
    Product("bin/simgpu", (*VENDOR, "node/top.cc", "node/ledger.cc", "node/simgpu.cc")),
)


def headers(cache: Cache, pins: Path = HEADERS) -> Path:
    """A directory with cuda.h and nvml.h, from wheels that *pins* pins by hash."""

    def fetch(out: Path) -> None:
        wheels = out / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        run([*pip, "--dest", wheels, "--requirement", pins])
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith(("/include/cuda.h", "/include/nvml.h")):
                        (out / Path(name).name).write_bytes(archive.read(name))
        shutil.rmtree(wheels)

    return cache.get(Recipe("nvidia-headers", {"wheels": digest_file(pins)}, fetch))


def _compile(source: str, out: Path, includes: Sequence[str | Path]) -> Path:
    objects = out / (source.replace("/", "-") + ".o")
    run([*zig_cxx(), *FLAGS, *includes, "-c", SOURCES / source, "-o", objects], cwd=SOURCES)
    return objects


def _link(product: Product, objects: list[Path], out: Path) -> None:
    target = out / product.output
    target.parent.mkdir(parents=True, exist_ok=True)
    shared: list[str | Path] = []
    if product.soname:
        shared = ["-shared", f"-Wl,-soname,{product.soname}"]
        shared += [f"-Wl,--version-script={SOURCES / product.exports}", "-Wl,-z,defs"]
    needed = [out / output for output in product.needs]
    run([*zig_cxx(), *shared, *objects, *needed, "-s", "-o", target, "-lpthread", "-ldl"])
    if product.soname not in ("", target.name):
        (target.parent / product.soname).symlink_to(target.name)


def link_all(products: Sequence[Product], out: Path, includes: Sequence[str | Path]) -> None:
    """Compile what *products* are made of, and link them into *out*."""
    scratch = out / "objects"
    scratch.mkdir()
    sources = sorted({source for product in products for source in product.sources})
    # Two at a time: the machines this runs on have two cores, and others want one of them.
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = dict(
            zip(sources, pool.map(lambda s: _compile(s, scratch, includes), sources), strict=True)
        )
    for product in products:
        _link(product, [objects[source] for source in product.sources], out)
    shutil.rmtree(scratch)


def _build(out: Path, include: Path) -> None:
    rooms = [f"-I{SOURCES / room}" for room in ("engine", "kernels", "cuda", "nvml", "node")]
    link_all(PRODUCTS, out, [*rooms, "-isystem", include])
    shutil.copytree(SOURCES / "node" / "units", out / "units")
    share = out / "share" / "nvidia-sim"
    shutil.copytree(SOURCES / "profiles", share / "profiles")
    shutil.copy(SOURCES / "kernels" / "spin.ptx", share / "spin.ptx")
    (share / "version").write_text(f"version {DRIVER_VERSION}\n")


def build(cache: Cache) -> Path:
    """The simulated driver as a directory; see the module's text."""
    include = headers(cache)
    inputs = {
        "sources": digest_tree((SOURCES / room for room in ROOMS), SOURCES),
        "recipe": digest_file(Path(__file__)),
        "headers": digest_file(HEADERS),
        "zig": zig_version(),
    }
    return cache.get(Recipe("simulators", inputs, lambda out: _build(out, include)))


if __name__ == "__main__":
    print(build(Cache()))
