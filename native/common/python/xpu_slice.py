# SPDX-License-Identifier: Apache-2.0
"""A slice for tests: the library in the driver's place, its pages in a scratch directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xpu_pages
from simulators import simnode
from xpu_pages import CardConfig, Ledger, ProcessSlot
from xpubuild.cache import Cache, Recipe, digest_file, digest_tree
from xpubuild.clang import clangxx
from xpubuild.recipes import cuda
from xpubuild.toolchain import REPOSITORY, run, zig_cxx, zig_version

HERE = cuda.CUDA / "tests"
LOAD = REPOSITORY / "tests" / "e2e" / "workload" / "gpu_load.py"
STUB_UUID = "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"  # as stub_driver.cc says
GIB = 1 << 30


def _stub(source: Path, library: str, soname: str, arch: str) -> Path:
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-shared"]
    flags += [f"-I{cuda.CUDA / 'include'}", f"-Wl,-soname,{soname}"]

    def build(target: Path) -> None:
        run([*zig_cxx(arch), *flags, source, "-o", target / library, "-lpthread"])

    inputs = {
        "source": digest_tree({source, HERE / "stub_driver.cc", cuda.CUDA / "include"}, REPOSITORY),
        "flags": " ".join(flags).replace(str(REPOSITORY), ""),
        "arch": arch,
        "zig": zig_version(),
    }
    return Cache().get(Recipe("cuda-stub", inputs, build)) / library


def stub_driver(arch: str = "x86_64", file: str = "stub_driver.cc") -> Path:
    """The one-page driver of these tests, or one made of it, with the SONAME a real one has."""
    return _stub(HERE / file, "libcuda-original.so", "libcuda.so.1", arch)


def stub_nvml(arch: str = "x86_64") -> Path:
    """The one-page NVML of these tests."""
    return _stub(HERE / "stub_nvml.cc", "libnvidia-ml-original.so", "libnvidia-ml.so.1", arch)


WATCHED = ["-std=c++17", "-O1", "-g", "-fPIC", "-fno-omit-frame-pointer"]
SANITIZE = [*WATCHED, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# The runtime is preloaded, since Python isn't watched.
ASAN = [*SANITIZE, "-shared-libsan"]
TSAN = [*WATCHED, "-fsanitize=thread"]


def sanitized(watch: Sequence[str]) -> Path:
    """Library and monitor as cuda.build() makes them for tests, but by clang and watched."""
    compiler = clangxx()

    def build(target: Path) -> None:
        common = sorted((cuda.COMMON / "src").glob("*.cc"))
        flags = [*watch, "-fno-exceptions", "-fno-rtti", *cuda.FOR_TESTS, *cuda.INCLUDES]
        (target / "lib").mkdir()
        (target / "bin").mkdir()
        for made in cuda.LIBRARIES:
            exports = target / f"{made.file}.map"
            exports.write_text(cuda.export_map(made.table.read_text()))
            needed = target / made.original
            empty = ["-shared", "-nostdlib", f"-Wl,-soname,{needed.name}", "-x", "c", os.devnull]
            run([compiler, *empty, "-o", needed])
            library = ["-shared", "-fvisibility=hidden", f"-Wl,-soname,{made.soname}"]
            library += [f"-Wl,--version-script={exports}", "-Wl,-z,nodelete", "-Wl,--no-as-needed"]
            hooks = sorted(made.sources.glob("*.cc"))
            file = target / "lib" / made.file
            run([compiler, *flags, *library, *common, *hooks, needed, "-o", file, *cuda.SYSTEM])
        monitor = sorted((cuda.CUDA / "monitor").glob("*.cc"))
        program = target / "bin" / "gpu-monitor"
        run([compiler, *flags, *common, *monitor, "-o", program, *cuda.SYSTEM])
        (target / "bin" / "xpu-monitor").symlink_to(program.name)

    inputs = {
        "sources": digest_tree(cuda.INPUTS, REPOSITORY),
        "recipe": digest_file(Path(__file__)),
        "compiler": run([compiler, "--version"]),
        "watch": " ".join(watch),
    }
    return Cache().get(Recipe("cuda-sanitized", inputs, build))


@dataclass(frozen=True)
class Slice:
    """A container's view: our library as libcuda.so.1, the driver as libcuda-original.so, pages."""

    directory: Path
    built: Path
    uuid: str
    outside: dict[str, str]  # what the driver itself needs

    @property
    def config(self) -> Path:
        return self.directory / "config.page"

    @property
    def ledger_file(self) -> Path:
        return self.directory / "ledger.page"

    @property
    def libraries(self) -> Path:
        return self.directory / "lib"

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(self.libraries), *filter(None, [self.outside.get("LD_LIBRARY_PATH")])]
        return {
            **os.environ,
            **self.outside,
            "LD_LIBRARY_PATH": ":".join(paths),
            "XPU_CONFIG_PAGE": str(self.config),
            "XPU_LEDGER_PAGE": str(self.ledger_file),
        }

    def card(self, **grant: Any) -> CardConfig:
        return CardConfig(self.uuid, **grant)

    def grant(self, **grant: Any) -> None:
        """Fresh pages with this grant."""
        xpu_pages.write_slice(self.directory, [self.card(**grant)])

    def grant_upstream(self, memory_mib: int, cores_percent: int) -> None:
        """A grant as another node agent writes it: two text files, a ledger, no config page."""
        self.grant()
        self.config.unlink()
        limits = f"UsedMem:{memory_mib}\nUsedCores:{cores_percent}\n"
        self.config.with_name("vgpu.config").write_text(limits)
        self.config.with_name("vgpu-ids.config").write_text(f"{self.uuid}-0\n")

    def regrant(self, **grant: Any) -> None:
        """Change the grant of running processes."""
        xpu_pages.change_config(self.config, [self.card(**grant)])

    def ledger(self) -> Ledger:
        return xpu_pages.read_ledger(self.ledger_file)

    def living(self) -> tuple[ProcessSlot, ...]:
        return xpu_pages.living(self.ledger_file)

    def start(self, argv: Sequence[str | Path], **more: str) -> subprocess.Popen[str]:
        """Start a program in the slice, stdin and stdout as pipes."""
        return subprocess.Popen(
            [str(word) for word in argv],
            env={**self.environment, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def scenario(self, name: str, *arguments: object, **more: str) -> Any:
        """Run a scenario of tenant.py to its end and return what it reports."""
        words = [sys.executable, str(HERE / "tenant.py"), name, *map(str, arguments)]
        done = subprocess.run(
            words,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{name} exited {done.returncode}: {done.stderr}"
        return json.loads(done.stdout) | {"stderr": done.stderr}

    def monitor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run gpu-monitor in the slice."""
        program = self.built / "bin" / "gpu-monitor"
        return subprocess.run(
            [str(program), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


def make_slice(
    directory: Path,
    driver: Path,
    uuid: str,
    outside: dict[str, str],
    built: Path | None = None,
    nvml: Path | None = None,
) -> Slice:
    """A slice on *driver*; *built* is what to put in its place, by default the build for tests.

    With *nvml*, the driver's, ours stands before it too.
    """
    built = built or cuda.build(Cache(), for_tests=True)
    made = Slice(directory, built, uuid, outside)
    made.libraries.mkdir(parents=True)
    (made.libraries / "libcuda.so.1").symlink_to(built / "lib" / "libcuda_direct.so")
    (made.libraries / "libcuda-original.so").symlink_to(driver)
    if nvml is not None:
        ours = built / "lib" / "libnvidia-ml_direct.so"
        (made.libraries / "libnvidia-ml.so.1").symlink_to(ours)
        (made.libraries / "libnvidia-ml-original.so").symlink_to(nvml)
    return made


def slice_of(
    node: simnode.Node, directory: Path, card: int = 0, built: Path | None = None
) -> Slice:
    """A slice of a simulated node's card, with our NVML before the driver's."""
    driver, nvml = (
        (node.driver / "lib" / name).resolve() for name in ("libcuda.so.1", "libnvidia-ml.so.1")
    )
    return make_slice(directory, driver, node.uuids[card], node.environment, built, nvml)
