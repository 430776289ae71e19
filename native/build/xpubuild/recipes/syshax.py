# SPDX-License-Identifier: Apache-2.0
"""What the sysHAX conductor imports, apart from the environment this project is built in.

The conductor is deployed with exactly these versions; its tests and benchmarks run with them too.
The bundle holds them as wheels, for every Python that the conductor runs on, so that a host needs
no index to install from.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement

from .. import archive
from ..cache import Cache, Recipe, digest_file, digest_tree
from ..toolchain import REPOSITORY, collection_version, run

SOURCES = REPOSITORY / "native/syshax"
REQUIREMENTS = SOURCES / "requirements.txt"
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
# It installs the wheels; a host's own Python may have none (Debian's), or one that is too old.
PIP = "pip==25.0.1"
# From the oldest: Debian 12, Ubuntu 22.04 and openEuler 22.03 have a C library of 2.34 or later.
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")


def build(cache: Cache, python: str = sys.executable) -> Path:
    """``site``: a directory of packages for PYTHONPATH, for the *python* that it is built with."""

    def fill(out: Path) -> None:
        run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "--only-binary", ":all:", "--target", out / "site",
             "-r", REQUIREMENTS]
        )  # fmt: skip

    version = run([python, "-c", "import sys; print(sys.version)"]).strip()
    inputs = {
        "requirements": digest_file(REQUIREMENTS),
        "recipe": digest_file(Path(__file__)),
        "python": version,
        "platform": sysconfig.get_platform(),
    }
    return cache.get(Recipe("syshax", inputs, fill))


def lines_for(text: str, python: str, arch: str) -> Iterator[str]:
    """The pinned lines of *text* that count on *python* and *arch*, without their conditions.

    pip would take the conditions for those of the Python that it runs in itself.
    """
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": arch,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
    }
    for line in text.replace("\\\n", " ").splitlines():
        pinned, *hashes = line.partition("#")[0].split("--hash=")
        if pinned.strip():
            wanted = Requirement(pinned.strip())
            if wanted.marker is None or wanted.marker.evaluate(environment):
                options = " ".join(f"--hash={digest.strip()}" for digest in hashes)
                yield f"{wanted.name}{wanted.specifier} {options}"


def _pins(python: str, arch: str, scratch: Path) -> Path:
    """A file of requirements for *python* alone."""
    pins = scratch / f"{python}.txt"
    lines = lines_for(REQUIREMENTS.read_text(encoding="utf-8"), python, arch)
    pins.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return pins


def _wheels_of(python: str, arch: str) -> list[str]:
    """pip's options for wheels of another *python* than its own."""
    platforms = [word for p in PLATFORMS for word in ("--platform", f"{p}_{arch}")]
    tag = f"cp{python.replace('.', '')}"
    return [
        "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
        "--python-version", python, "--implementation", "cp", *platforms,
        "--abi", tag, "--abi", "abi3", "--abi", "none",
    ]  # fmt: skip


def _download(python: str, arch: str, out: Path, scratch: Path) -> None:
    run(
        [sys.executable, "-m", "pip", "download", *_wheels_of(python, arch), "--require-hashes",
         "--dest", out, "-r", _pins(python, arch, scratch)]
    )  # fmt: skip


def bundle(cache: Cache, arch: str = "x86_64") -> Path:
    """``syshax-<version>-<arch>.tar.gz``: ``wheels/``, ``requirements.txt``, ``VERSION``."""
    stamp = collection_version()
    name = f"syshax-{stamp}-{arch}.tar.gz"

    def pack(out: Path) -> None:
        stage, scratch = out / "stage", out / "scratch"
        wheels = stage / "wheels"
        wheels.mkdir(parents=True)
        sources = scratch / "sources"
        shutil.copytree(
            SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
        )
        pip = [sys.executable, "-m", "pip"]
        quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
        # Zip keeps no time before 1980.
        clock = {"SOURCE_DATE_EPOCH": "315532800"}
        run([*pip, "wheel", *quiet, "--wheel-dir", wheels, sources], env=clock)
        run([*pip, "download", *quiet, "--dest", wheels, PIP])
        # Each waits for the network, and most files are the same: pip keeps what it has.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda python: _download(python, arch, wheels, scratch), PYTHONS))
        shutil.copy(REQUIREMENTS, stage)
        (stage / "VERSION").write_text(stamp + "\n", encoding="utf-8")
        members = [str(p.relative_to(stage)) for p in stage.rglob("*") if not p.is_dir()]
        archive.write_tarball(out / name, stage, members)
        shutil.rmtree(stage)
        shutil.rmtree(scratch)

    inputs = {
        "sources": digest_tree([SOURCES / "src", SOURCES / "pyproject.toml"], SOURCES),
        "requirements": digest_file(REQUIREMENTS),
        "recipe": digest_file(Path(__file__)),
        "version": stamp,
        "arch": arch,
    }
    return cache.get(Recipe("syshax-bundle", inputs, pack)) / name


# The command as on a host. Nothing beside the program itself is imported.
PROGRAM = """#!/usr/bin/python3 -P
import sys

from syshax.cli import main

sys.exit(main())
"""


def installed(cache: Cache, python: str, arch: str = "x86_64") -> Path:
    """``site`` and the program ``syshax``, for an image: the bundle's wheels, unpacked for *python*
    whichever this one is."""
    source = bundle(cache, arch)

    def unpack(out: Path) -> None:
        scratch = out / "scratch"
        scratch.mkdir()
        archive.unpack(source, scratch)
        wheels = scratch / "wheels"
        # Compiled modules would carry times of today.
        pip: list[str | Path] = [
            sys.executable, "-m", "pip", "install", *_wheels_of(python, arch), "--no-index",
            "--no-compile", "--find-links", wheels, "--target", out / "site",
        ]  # fmt: skip
        run([*pip, "--require-hashes", "-r", _pins(python, arch, scratch)])
        run([*pip, next(wheels.glob("flexai_syshax-*.whl"))])
        # Programs of this machine's Python, and where pip found its files.
        shutil.rmtree(out / "site/bin")
        for record in (*out.glob("site/*/RECORD"), *out.glob("site/*/direct_url.json")):
            record.unlink()
        (out / "syshax").write_text(PROGRAM, encoding="utf-8")
        (out / "syshax").chmod(0o755)
        shutil.rmtree(scratch)

    inputs = {"bundle": source.parent.name, "python": python, "recipe": digest_file(Path(__file__))}
    return cache.get(Recipe("syshax-installed", inputs, unpack))
