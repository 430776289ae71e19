# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The site's lock file: digests that nobody could know in advance, recorded on first use.

It lies on the controller, one YAML for the whole site, and belongs into the site's version control.
A digest that stands there is never changed by us: what differs from it is an error, for every host
and every later run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import typing as t
from dataclasses import replace

import yaml

from ..module_utils._artefacts import Artefact
from ..module_utils._errors import XpuError

HEADER = """\
# Written by flexai.xpu: the digests of vendors' files (sha256: first-use in the manifest) as they
# were when first used, and checked ever after. Keep it with the inventory. Remove an entry only
# where you trust the file that has come in its place.
"""
KEYS = ("name", "version", "arch")

Key = tuple[str, str, str]
Lock = dict[Key, dict[str, str]]


def key_of(artefact: Artefact) -> Key:
    return artefact.name, artefact.version, artefact.arch


def parse(data: t.Any, where: str) -> Lock:
    """The entries of a lock file by what they are of."""
    entries = data.get("artefacts") if isinstance(data, dict) else None
    if not isinstance(data, dict) or data.get("version") != 1 or not isinstance(entries, list):
        raise XpuError(
            f"{where} is no lock file of version 1.",
            "bring it back from version control; without it every digest is recorded anew.",
        )
    found: Lock = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(entry.get(key) for key in (*KEYS, "sha256")):
            raise XpuError(
                f"{where}: entry {number} lacks one of {', '.join((*KEYS, 'sha256'))}.",
                "bring the file back from version control, or remove the entry.",
            )
        found[(str(entry["name"]), str(entry["version"]), str(entry["arch"]))] = {
            key: str(value) for key, value in entry.items()
        }
    return found


def text(lock: Lock) -> str:
    entries = [lock[key] for key in sorted(lock)]
    body = yaml.safe_dump({"version": 1, "artefacts": entries}, sort_keys=False)
    return f"{HEADER}---\n{body}"


def applied(artefacts: t.Iterable[Artefact], lock: Lock, where: str) -> list[Artefact]:
    """*artefacts*, those without a digest with the one that the lock file has of them."""
    return [_applied(artefact, lock, where) for artefact in artefacts]


def _applied(artefact: Artefact, lock: Lock, where: str) -> Artefact:
    known = lock.get(key_of(artefact))
    if artefact.is_pinned or known is None:
        return artefact
    return replace(artefact, sha256=known["sha256"], pinned_by=where)


def read(where: str) -> Lock:
    """The lock file; one that isn't there yet is empty."""
    try:
        with open(where, encoding="utf-8") as stream:
            return parse(yaml.safe_load(stream), where)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise XpuError(
            f"The lock file {where} (flexai_lock) can't be read: {error}.",
            "bring it back from version control.",
        ) from error


def pinned(artefact: Artefact, where: str, find: t.Callable[[], str]) -> Artefact:
    """*artefact* with its digest: the recorded one, or what *find* says, recorded now.

    Hosts that need the same file at the same time wait for the one that came first.
    """
    if artefact.is_pinned:
        return artefact
    with _held(where):
        lock = read(where)
        if key_of(artefact) not in lock:
            lock[key_of(artefact)] = {
                **dict(zip(KEYS, key_of(artefact), strict=True)),
                "file": artefact.file,
                "source": artefact.source,
                "sha256": find(),
            }
            _write(where, text(lock))
        return _applied(artefact, lock, where)


@contextlib.contextmanager
def _held(where: str) -> t.Iterator[None]:
    """Alone among the processes of this machine; the lock is on the file's directory."""
    directory = os.path.dirname(where)
    os.makedirs(directory, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(where: str, content: str) -> None:
    """Replace the file in one step, durably: what it says is never found out again."""
    handle, scratch = tempfile.mkstemp(prefix=".lock-", dir=os.path.dirname(where))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, where)
    except BaseException:
        os.unlink(scratch)
        raise
