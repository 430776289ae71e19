# SPDX-License-Identifier: Apache-2.0
"""flexnpud's pure parts: the C++ cases, under UBSan; in the long form on aarch64 too, by qemu."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import xpu_aarch64
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.recipes import ascend
from xpubuild.toolchain import REPOSITORY, run, zig_cxx, zig_version

HERE = Path(__file__).parent
PROGRAMS = {
    "test_scheduler": ("scheduler.cc",),
    "test_parts": ("conf.cc", "http.cc", "registry.cc"),
}
FLAGS = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
UBSAN = ("-fsanitize=undefined", "-fno-sanitize-recover=undefined")


def programs(arch: str = "x86_64", more: tuple[str, ...] = UBSAN) -> Path:
    """The directory with the built test programs."""
    json = ascend.json_headers(Cache())

    def build(target: Path) -> None:
        for program, parts in PROGRAMS.items():
            sources = [HERE / f"{program}.cc", *(ascend.DAEMON / part for part in parts)]
            includes: list[str | Path] = [*ascend.INCLUDES, f"-I{ascend.DAEMON}", "-isystem", json]
            run([*zig_cxx(arch), *FLAGS, *more, *includes, *sources, "-o", target / program])

    inputs = {
        "sources": digest_tree([*ascend.INPUTS, *HERE.glob("*.cc")], REPOSITORY),
        "check": digest_tree([ascend.COMMON / "tests/check.h"], REPOSITORY),
        "zig": zig_version(),
        "arch": arch,
        "flags": " ".join((*FLAGS, *more)),
    }
    return Cache().get(Recipe("ascend-tests", inputs, build))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpp_case" in metafunc.fixturenames:
        found = [
            (program, case) for program in PROGRAMS for case in run([programs() / program]).split()
        ]
        metafunc.parametrize("cpp_case", found, ids=[case for _, case in found])


def run_case(argv: list[str | Path], scratch: Path, rounds: int) -> None:
    done = subprocess.run(
        argv,
        env={**os.environ, "XPU_TEST_DIR": str(scratch), "XPU_TEST_ROUNDS": str(rounds)},
        capture_output=True,
        text=True,
        timeout=120 * rounds,  # ends a hang, judges nothing
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_cpp(cpp_case: tuple[str, str], tmp_path: Path) -> None:
    program, case = cpp_case
    run_case([programs() / program, case], tmp_path, 1)


@pytest.mark.soak
def test_cpp_for_long(cpp_case: tuple[str, str], tmp_path: Path) -> None:
    program, case = cpp_case
    run_case([programs() / program, case], tmp_path, 20)


@pytest.mark.soak
def test_cpp_on_aarch64(cpp_case: tuple[str, str], tmp_path: Path) -> None:
    program, case = cpp_case
    run_case([*xpu_aarch64.emulator(), programs("aarch64", ()) / program, case], tmp_path, 1)


@pytest.mark.soak
def test_daemon_and_library_are_built_for_aarch64() -> None:
    built = ascend.build(Cache(), "aarch64")
    for file in ("bin/flexnpud", "lib/libascend_direct.so"):
        header = (built / file).read_bytes()[:20]
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(header[18:20], "little") == 183, f"{file} is not for aarch64"
