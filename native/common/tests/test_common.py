# SPDX-License-Identifier: Apache-2.0
"""native/common: the C++ cases, and the page layout against its vectors in C++ and Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import xpu_pages
from xpu_slice import SANITIZE, TSAN
from xpubuild import clang
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.recipes.cuda import COMMON
from xpubuild.toolchain import REPOSITORY, run, zig_cxx

HERE = Path(__file__).parent
VECTORS = COMMON / "vectors" / "pages.json"
WITH_CASES = [
    *("test_faults", "test_limiter", "test_place"),
    *("test_slice", "test_terms", "test_upstream"),
]
PROGRAMS = [*WITH_CASES, "test_vectors"]
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]


def build_programs(target: Path, compile_with: Sequence[str]) -> None:
    for program in PROGRAMS:
        sources = [HERE / f"{program}.cc", *sorted((COMMON / "src").glob("*.cc"))]
        include = f"-I{COMMON / 'include'}"
        run([*compile_with, include, *sources, "-o", target / program, "-ldl", "-lpthread"])


def programs(compile_with: Sequence[str] = (*zig_cxx(), *FLAGS)) -> Path:
    inputs = {
        "sources": digest_tree([COMMON / "include", COMMON / "src", *HERE.glob("*.*")], REPOSITORY),
        "compiler": run([*compile_with, "--version"]),
        "flags": " ".join(compile_with[1:]),
    }
    return Cache().get(
        Recipe("common-tests", inputs, lambda target: build_programs(target, compile_with))
    )


def cases(program: str) -> list[str]:
    return run([programs() / program]).split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpp_case" in metafunc.fixturenames:
        found = [(program, case) for program in WITH_CASES for case in cases(program)]
        metafunc.parametrize("cpp_case", found, ids=[case for _, case in found])


def run_case(
    cpp_case: tuple[str, str], scratch: Path, rounds: int, built: Path | None = None
) -> None:
    program, case = cpp_case
    done = subprocess.run(
        [*(clang.unshuffled() if built else []), (built or programs()) / program, case],
        env={**os.environ, "XPU_TEST_DIR": str(scratch), "XPU_TEST_ROUNDS": str(rounds)},
        capture_output=True,
        text=True,
        timeout=120 * rounds,  # ends a hang, judges nothing
    )
    assert done.returncode == 0, done.stderr


def test_cpp(cpp_case: tuple[str, str], tmp_path: Path) -> None:
    run_case(cpp_case, tmp_path, 1)


@pytest.mark.soak
def test_cpp_for_long(cpp_case: tuple[str, str], tmp_path: Path) -> None:
    """Cases that leave something to chance repeat it twenty times as often."""
    run_case(cpp_case, tmp_path, 20)


@pytest.mark.soak
@pytest.mark.parametrize("watch", [SANITIZE, TSAN], ids=["asan+ubsan", "tsan"])
def test_cpp_sanitized(cpp_case: tuple[str, str], tmp_path: Path, watch: list[str]) -> None:
    if not clang.available():
        pytest.skip("no clang on this machine; apt-get install clang")
    run_case(cpp_case, tmp_path, 1, programs([clang.clangxx(), *watch]))


def test_ledger_on_a_full_filesystem(tmp_path: Path) -> None:
    """To touch a hole there is SIGBUS; a ledger with holes is filled, or not used."""
    small = f"mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec {programs()}/test_faults"
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *rights, "--mount", "sh", "-c", f"{small} full_filesystem"],
        env={**os.environ, "XPU_TEST_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def vectors() -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = json.loads(VECTORS.read_text())["config"]
    return pages


def page_bytes(page: dict[str, Any]) -> bytes:
    return bytes.fromhex(page["bytes_hex"]).ljust(xpu_pages.CONFIG_BYTES, b"\0")


def test_vector_file_is_what_its_generator_writes() -> None:
    written = run([sys.executable, COMMON / "vectors" / "make.py"])
    assert VECTORS.read_text() == written, f"run {COMMON}/vectors/make.py {VECTORS}"


@pytest.mark.parametrize("page", vectors(), ids=lambda page: page["name"])
def test_python_writes_the_vector(page: dict[str, Any]) -> None:
    modes = {number: name for name, number in xpu_pages.MODES.items()}
    cards = [xpu_pages.CardConfig(**{**c, "mode": modes[c["mode"]]}) for c in page["cards"]]
    assert xpu_pages.pack_config(cards, page["epoch"]) == page_bytes(page)


@pytest.mark.parametrize("page", vectors(), ids=lambda page: page["name"])
def test_cpp_reads_the_vector(page: dict[str, Any]) -> None:
    done = subprocess.run(
        [programs() / "test_vectors"], input=page_bytes(page), capture_output=True, check=True
    )
    found = dict(line.split(" ", 1) for line in done.stdout.decode().splitlines())
    wanted = {"state": "0", "epoch": str(page["epoch"]), "cards": str(len(page["cards"]))}
    for index, card in enumerate(page["cards"]):
        wanted |= {f"{index}.{name}": str(value) for name, value in card.items()}
    assert found == wanted


def test_ledger_size_is_pinned() -> None:
    assert json.loads(VECTORS.read_text())["ledger_bytes"] == xpu_pages.LEDGER_BYTES


def test_the_default_burst_is_the_device_plugin_s() -> None:
    """A grant from upstream's files must be the one that config.page would hold."""
    ours = re.search(r"XPU_DEFAULT_TAU_NS (\d+)u", (COMMON / "include/xpu/pages.h").read_text())
    store = REPOSITORY / "native/cluster/store/store.go"
    theirs = re.search(r"const burstNs = ([\d_]+)", store.read_text())
    assert ours and theirs and int(ours[1]) == int(theirs[1])
