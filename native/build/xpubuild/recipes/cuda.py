# SPDX-License-Identifier: Apache-2.0
"""The CUDA slice: the interception libraries and the monitor.

The directory holds::

    lib/libcuda_direct.so        in the driver's place inside a container (SONAME libcuda.so.1)
    lib/libnvidia-ml_direct.so   in NVML's place there (SONAME libnvidia-ml.so.1)
    bin/gpu-monitor              what the slice grants and uses
    bin/xpu-monitor              link to gpu-monitor
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..cache import Cache, Recipe, digest_tree
from ..toolchain import REPOSITORY, run, zig_cc, zig_cxx, zig_version

COMMON = REPOSITORY / "native" / "common"
CUDA = REPOSITORY / "native" / "cuda"
SOURCES = [
    *(COMMON / "include", COMMON / "src"),
    *(CUDA / "include", CUDA / "src", CUDA / "nvml", CUDA / "monitor"),
]
INPUTS = [*SOURCES, CUDA / "symbols.def", Path(__file__)]

COMPILE = [
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-fno-exceptions", "-fno-rtti"),
    *("-fvisibility=hidden", f"-ffile-prefix-map={REPOSITORY}=."),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
]
INCLUDES = [f"-I{COMMON / 'include'}", f"-I{CUDA / 'include'}", f"-I{CUDA}"]
# Test builds find the slice's pages by XPU_CONFIG_PAGE and XPU_LEDGER_PAGE.
FOR_TESTS = ["-DXPU_TEST_PATHS"]
SYSTEM = ["-ldl", "-lpthread", "-lrt"]


@dataclass(frozen=True)
class Interposer:
    """A library that lies where one of the driver's was: ours, and what it stands before."""

    file: str
    soname: str
    original: str
    sources: Path  # with the common ones
    table: Path


LIBRARIES = (
    Interposer(
        "libcuda_direct.so",
        "libcuda.so.1",
        "libcuda-original.so",
        CUDA / "src",
        CUDA / "symbols.def",
    ),
    Interposer(
        "libnvidia-ml_direct.so",
        "libnvidia-ml.so.1",
        "libnvidia-ml-original.so",
        CUDA / "nvml",
        CUDA / "nvml" / "symbols.def",
    ),
)


def compile_all(
    sources: Iterable[Path], into: Path, arch: str, flags: Sequence[str] = ()
) -> list[Path]:
    """Compile each source to an object in *into*; two at a time."""
    into.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        target = into / f"{source.parent.name}-{source.stem}.o"
        run([*zig_cxx(arch), *COMPILE, *INCLUDES, *flags, "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(one, sorted(sources)))


def exported_symbols(table: str) -> list[str]:
    """The names that ``symbols.def`` declares as hooks."""
    return re.findall(r"^HOOK\((\w+)[,)]", table, flags=re.MULTILINE)


def export_map(table: str) -> str:
    """A linker version script without versions, as the driver itself has none."""
    names = "".join(f"    {name};\n" for name in exported_symbols(table))
    return "{\nglobal:\n" + names + "local:\n    *;\n};\n"


def _stand_in_for(original: str, scratch: Path, arch: str) -> Path:
    """An empty library by the original's name: our NEEDED entry must name one at link time."""
    source, library = scratch / "empty.c", scratch / original
    source.write_text("")
    soname = f"-Wl,-soname,{library.name}"
    run([*zig_cc(arch), "-shared", "-nostdlib", soname, source, "-o", library])
    return library


def link_interposer(
    made: Interposer, objects: Sequence[Path], into: Path, scratch: Path, arch: str
) -> None:
    """Link one so that it can lie where the driver's own file was."""
    exports = scratch / f"{made.file}.map"
    exports.write_text(export_map(made.table.read_text()))
    options: list[str | Path] = [
        f"-Wl,-soname,{made.soname}",
        "-Wl,-rpath,/opt/xpu/lib",
        f"-Wl,--version-script={exports}",
        *("-Wl,-z,now", "-Wl,-z,relro", "-Wl,-z,nodelete"),
        "-Wl,--no-as-needed",
        _stand_in_for(made.original, scratch, arch),
    ]
    run([*zig_cxx(arch), "-shared", *objects, "-o", into / made.file, *options, *SYSTEM])


def build_into(target: Path, arch: str, flags: Sequence[str]) -> None:
    """Build libraries and monitor for *arch* into *target*."""
    scratch = target / ".objects"
    common = compile_all((COMMON / "src").glob("*.cc"), scratch, arch, flags)
    (target / "lib").mkdir()
    (target / "bin").mkdir()
    for made in LIBRARIES:
        objects = compile_all(made.sources.glob("*.cc"), scratch, arch, flags)
        link_interposer(made, [*common, *objects], target / "lib", scratch, arch)
    monitor = compile_all((CUDA / "monitor").glob("*.cc"), scratch, arch, flags)
    program = target / "bin" / "gpu-monitor"
    # Where the driver's own NVML lies in a slice.
    runpath = "-Wl,-rpath,/opt/xpu/lib"
    run([*zig_cxx(arch), *common, *monitor, "-o", program, runpath, *SYSTEM])
    (target / "bin" / "xpu-monitor").symlink_to(program.name)
    for leftover in scratch.iterdir():
        leftover.unlink()
    scratch.rmdir()


def build(cache: Cache, arch: str = "x86_64", *, for_tests: bool = False) -> Path:
    """The CUDA slice for *arch*; see the module's docstring for what the directory holds."""
    flags = FOR_TESTS if for_tests else []
    inputs = {
        "sources": digest_tree(INPUTS, REPOSITORY),
        "zig": zig_version(),
        "arch": arch,
        "flags": " ".join(flags),
    }
    return cache.get(Recipe("cuda", inputs, lambda target: build_into(target, arch, flags)))
