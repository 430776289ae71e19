# SPDX-License-Identifier: Apache-2.0
"""A content-addressed build cache: the same inputs are never built twice on one machine.

A *recipe* is a name, the digests of everything that can change its result, and a function that
fills a directory. The finished directory lives at ``<root>/<name>/<key>`` where ``key`` is the
SHA-256 of the inputs; it appears there by one atomic rename, so a build that is killed leaves
nothing that a later one could mistake for a result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Builder = Callable[[Path], None]


def default_root() -> Path:
    """Where results are kept: ``$FLEXAI_CACHE``, else ``flexai-xpu`` in the user's cache."""
    configured = os.environ.get("FLEXAI_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "flexai-xpu"


def digest_file(path: Path) -> str:
    """SHA-256 of one file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _source_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for child in sorted(path.rglob("*")):
        if child.is_file() and "__pycache__" not in child.parts:
            yield child


def digest_tree(paths: Iterable[Path], base: Path) -> str:
    """SHA-256 over the names (relative to *base*), modes and contents of files and directory trees.

    Raises FileNotFoundError when a path does not exist: a misspelt input would silently never
    invalidate the cache.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        if not path.exists():
            raise FileNotFoundError(f"build input {path} does not exist")
        for file in _source_files(path):
            executable = "x" if os.access(file, os.X_OK) else "-"
            total.update(f"{file.relative_to(base)} {executable} {digest_file(file)}\n".encode())
    return total.hexdigest()


def place(source: Path, target: Path) -> None:
    """Put a result where it is used: a hard link where the file system allows it, else a copy.

    Appears by one rename. Programs and images are large, and one machine needs them once.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.new")
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:
        shutil.copy2(source, scratch)
    scratch.rename(target)
    # rename() leaves both names alone when they are links to one file already.
    scratch.unlink(missing_ok=True)


@dataclass(frozen=True)
class Recipe:
    """One cached build. ``inputs`` maps a name to a digest or version; any change rebuilds."""

    name: str
    inputs: Mapping[str, str]
    build: Builder = field(compare=False)

    @property
    def key(self) -> str:
        text = json.dumps({"recipe": self.name, "inputs": dict(self.inputs)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def say(message: str) -> None:
    """Progress for people, on stderr, so that stdout stays machine-readable."""
    print(message, file=sys.stderr, flush=True)


def _processor_seconds() -> float:
    """Processor time of ours and of commands that ended: a busy machine doesn't stretch it."""
    spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class Cache:
    """Finished builds under one root directory, shared by every checkout of this user."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def path(self, recipe: Recipe) -> Path:
        """Where the result of *recipe* is, or will be."""
        return self.root / recipe.name / recipe.key

    def get(self, recipe: Recipe) -> Path:
        """The finished directory of *recipe*, building it first where it is missing.

        Two processes that want the same result build it once: the second waits for the first.
        """
        final = self.path(recipe)
        if final.is_dir():
            return final
        with _locked(self.root / recipe.name / f".{recipe.key}.lock"):
            if final.is_dir():
                return final
            # The lock is ours, so whoever began these was killed.
            for leftover in final.parent.glob(f".building-{recipe.key}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            prefix = f".building-{recipe.key}-"
            scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
            started, worked = time.monotonic(), _processor_seconds()
            say(f"build {recipe.name} ({recipe.key[:12]}) …")
            try:
                recipe.build(scratch)
                scratch.chmod(0o755)
                scratch.rename(final)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            took, worked = time.monotonic() - started, _processor_seconds() - worked
            say(f"built {recipe.name} in {took:.0f} s ({worked:.0f} s of processor time)")
        return final
