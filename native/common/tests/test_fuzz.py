# SPDX-License-Identifier: Apache-2.0
"""Every file that C++ reads, as fuzz targets: the corpus; in the long form a minute each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from xpu_slice import SANITIZE
from xpubuild import clang
from xpubuild.cache import Cache, Recipe, digest_tree
from xpubuild.recipes.cuda import COMMON
from xpubuild.toolchain import REPOSITORY, run, zig_cxx

FUZZ = COMMON / "fuzz"
CORPUS = FUZZ / "corpus.json"
TARGETS = sorted(path.stem for path in FUZZ.glob("*.cc") if path.stem != "replay")
REPLAY = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
LONGEST_INPUT = 110_000  # a little over a ledger page
SECONDS = 60


def programs(compile_with: Sequence[str], more: Sequence[Path] = ()) -> Path:
    """A directory with one program for each target."""

    def build(target: Path) -> None:
        sources = [*sorted((COMMON / "src").glob("*.cc")), *more]
        includes = [f"-I{COMMON / 'include'}", f"-I{FUZZ}"]
        for name in TARGETS:
            own = FUZZ / f"{name}.cc"
            run([*compile_with, *includes, own, *sources, "-o", target / name, "-lpthread"])

    inputs = {
        "sources": digest_tree([COMMON / "include", COMMON / "src", FUZZ], REPOSITORY),
        "compiler": run([*compile_with, "--version"]),
        "flags": " ".join(compile_with[1:]),
    }
    return Cache().get(Recipe("common-fuzz", inputs, build))


def write_corpus(target: str, directory: Path) -> list[Path]:
    """The inputs of one target as files."""
    inputs: dict[str, str] = json.loads(CORPUS.read_text())[target]
    paths = []
    for name, text in inputs.items():
        paths.append(directory / name.replace(" ", "-"))
        paths[-1].write_bytes(bytes.fromhex(text))
    return paths


def test_corpus_is_what_its_generator_writes() -> None:
    written = run([sys.executable, FUZZ / "make_corpus.py"])
    assert CORPUS.read_text() == written, f"run {FUZZ}/make_corpus.py > {CORPUS}"
    assert sorted(json.loads(written)) == TARGETS, "a corpus for each target"


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str, tmp_path: Path) -> None:
    built = programs([*zig_cxx(), *REPLAY], [FUZZ / "replay.cc"])
    inputs = write_corpus(target, tmp_path)
    done = subprocess.run([built / target, *inputs], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + [done.stderr]


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target: str, tmp_path: Path) -> None:
    if not clang.available():
        pytest.skip("no clang on this machine; apt-get install clang")
    built = programs([clang.clangxx(), *SANITIZE, "-fsanitize=fuzzer"])
    write_corpus(target, tmp_path)
    options = [f"-max_total_time={SECONDS}", f"-max_len={LONGEST_INPUT}", "-print_final_stats=1"]
    done = subprocess.run(
        [built / target, *options, tmp_path], cwd=tmp_path, capture_output=True, text=True
    )
    found = [path for path in tmp_path.iterdir() if path.name.startswith(("crash", "leak", "oom"))]
    inputs = [path.read_bytes().rstrip(b"\0").hex() for path in found]
    assert (done.returncode, inputs) == (0, []), done.stderr[-4000:]
    print(done.stderr[-300:])
