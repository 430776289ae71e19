# SPDX-License-Identifier: Apache-2.0
"""What the shipped files are, read from their bytes: a library that must be harmless to load."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from testbed.recipes import simulators
from xpubuild.cache import Cache
from xpubuild.recipes import cuda
from xpubuild.toolchain import GLIBC_FLOOR, run, zig_cxx

NEEDED, STRTAB, SONAME, RUNPATH, FLAGS_1 = 1, 5, 14, 29, 0x6FFFFFFB
INIT, INIT_ARRAYSZ = 12, 27
NODELETE = 0x8
# A cold build for aarch64 also builds zig's C++ runtime for it, which takes minutes.
ARCHES = ["x86_64", pytest.param("aarch64", marks=pytest.mark.soak)]


@dataclass(frozen=True)
class Elf:
    """The dynamic section and symbols of a 64-bit little-endian ELF file."""

    dynamic: tuple[tuple[int, int], ...]
    strings: bytes
    symbols: tuple[tuple[str, bool], ...]  # (name, defined here)
    data: bytes

    def text(self, offset: int) -> str:
        return self.strings[offset : self.strings.index(b"\0", offset)].decode()

    def values(self, tag: int) -> list[int]:
        return [value for found, value in self.dynamic if found == tag]

    def names(self, tag: int) -> list[str]:
        return [self.text(value) for value in self.values(tag)]


def read_elf(path: Path) -> Elf:
    data = path.read_bytes()
    table, entry, count = (
        *struct.unpack_from("<Q", data, 40),
        *struct.unpack_from("<HH", data, 58),
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(count)]
    by_type = {section[1]: section for section in sections}
    dynamic, symbols = by_type[6], by_type[11]
    strings_at = sections[symbols[6]]
    strings = data[strings_at[4] : strings_at[4] + strings_at[5]]
    pairs = struct.iter_unpack("<qQ", data[dynamic[4] : dynamic[4] + dynamic[5]])
    rows = list(struct.iter_unpack("<IBBHQQ", data[symbols[4] : symbols[4] + symbols[5]]))
    names = [(strings[r[0] : strings.index(b"\0", r[0])].decode(), r[3] != 0) for r in rows[1:]]
    return Elf(tuple(pairs), strings, tuple(names), data)


FILES = [*(f"lib/{library.file}" for library in cuda.LIBRARIES), "bin/gpu-monitor"]


@pytest.fixture(params=ARCHES)
def built(request: pytest.FixtureRequest) -> Path:
    return cuda.build(Cache(), request.param)


@pytest.fixture(params=cuda.LIBRARIES, ids=lambda library: library.file)
def library(request: pytest.FixtureRequest) -> cuda.Interposer:
    made: cuda.Interposer = request.param
    return made


@pytest.fixture
def elf(built: Path, library: cuda.Interposer) -> Elf:
    return read_elf(built / "lib" / library.file)


def test_a_library_can_lie_in_the_drivers_place(elf: Elf, library: cuda.Interposer) -> None:
    assert elf.names(SONAME) == [library.soname]
    assert elf.names(RUNPATH) == ["/opt/xpu/lib"]
    assert library.original in elf.names(NEEDED)
    foreign = [name for name in elf.names(NEEDED) if re.match(r"libstdc|libc\+\+|libgcc", name)]
    assert foreign == [], "the C++ runtime is linked in"


def test_loading_runs_nothing_of_ours(elf: Elf) -> None:
    assert elf.values(INIT) == []
    assert sum(elf.values(INIT_ARRAYSZ)) == 0
    assert elf.values(FLAGS_1)[0] & NODELETE, "a fork handler must outlive dlclose"


def test_exactly_the_hooks_are_exported(elf: Elf, library: cuda.Interposer) -> None:
    wanted = cuda.exported_symbols(library.table.read_text())
    assert len(wanted) > 20
    assert sorted(name for name, defined in elf.symbols if defined) == sorted(wanted)


def test_neither_exits_nor_aborts_nor_throws(elf: Elf) -> None:
    ending = {"exit", "_exit", "_Exit", "quick_exit", "abort", "raise", "kill", "__assert_fail"}
    called = {name for name, defined in elf.symbols if not defined}
    assert called & ending == set()
    assert [name for name in called if name.startswith(("__cxa_throw", "_Unwind_"))] == []


@pytest.mark.parametrize("file", FILES)
def test_old_systems_can_run_it(built: Path, file: str) -> None:
    found = re.findall(rb"\0GLIBC_(2\.[0-9.]+)(?=\0)", read_elf(built / file).strings)
    newest = max(tuple(map(int, version.split(b"."))) for version in found)
    assert newest <= tuple(map(int, GLIBC_FLOOR.split(".")))


def test_the_shipped_build_ignores_the_environment(built: Path) -> None:
    for file in FILES:
        assert b"XPU_CONFIG_PAGE" not in read_elf(built / file).data, "a tenant sets his variables"


@pytest.mark.parametrize(
    ("library", "own", "header", "keyword", "macros"),
    [
        (cuda.LIBRARIES[0], "driver.h", "cuda.h", "CUDAAPI", "#define __CUDA_API_VERSION_INTERNAL"),
        (cuda.LIBRARIES[1], "nvml.h", "nvml.h", "DECLDIR", "#define NVML_NO_UNVERSIONED_FUNC_DEFS"),
    ],
    ids=["cuda.h", "nvml.h"],
)
def test_our_declarations_are_the_headers(
    tmp_path: Path, library: cuda.Interposer, own: str, header: str, keyword: str, macros: str
) -> None:
    """Sizes and parameter counts; types differ in name, not in kind."""
    pins = [cuda.CUDA / "tests" / "headers-13.txt"] if header == "cuda.h" else []
    headers = simulators.headers(Cache(), *pins)
    in_header = (headers / header).read_text()
    names = [
        name
        for name in re.findall(r"^(?:HOOK|USE)\((\w+)", library.table.read_text(), re.MULTILINE)
        if re.search(rf"{keyword} {name}\(", in_header)
    ]
    assert len(names) > 30
    declarations = (cuda.CUDA / "include" / "xpu_cuda" / own).read_text()
    structures = re.findall(r"^\} (\w+);$", declarations, re.MULTILINE)
    assert len(structures) > 5
    shape = (
        "template <typename R, typename... A> struct Shape<R (*)(A...)> {\n"
        "  static constexpr unsigned count = sizeof...(A);\n"
        "  static constexpr unsigned long sizes[] = {sizeof(A)..., 0}; };\n"
    )
    for side, include in (("ours", f"xpu_cuda/{own}"), ("theirs", header)):
        lines = "".join(
            f'  show("{name}", Shape<decltype(&{name})>::count, Shape<decltype(&{name})>::sizes);\n'
            for name in names
        )
        lines += "".join(
            f'  std::printf("{name} %zu\\n", sizeof({name}));\n' for name in structures
        )
        (tmp_path / f"{side}.cc").write_text(
            f"{macros}\n#include <cstdio>\n"
            f'#include "{include}"\ntemplate <typename F> struct Shape;\n{shape}'
            "template <typename R> struct Shape<R (*)()> { static constexpr unsigned count = 0;\n"
            "  static constexpr unsigned long sizes[] = {0}; };\n"
            "static void show(const char *n, unsigned c, const unsigned long *s) {\n"
            '  std::printf("%s", n); while (c--) std::printf(" %lu", *s++); std::puts(""); }\n'
            f"int main() {{\n{lines}}}\n"
        )
        include_flags: list[str | Path] = [f"-I{cuda.CUDA / 'include'}", "-isystem", headers]
        program = tmp_path / side
        run([*zig_cxx(), "-std=c++17", *include_flags, tmp_path / f"{side}.cc", "-o", program])
    assert run([tmp_path / "ours"]) == run([tmp_path / "theirs"])
