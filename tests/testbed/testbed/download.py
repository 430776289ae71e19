# SPDX-License-Identifier: GPL-3.0-or-later
"""Released programs from their vendor's server (``TESTBED_SOURCE=download``, with internet).

Digests are pinned in ``downloads.lock.json``, a file of the repository, by the vendor's address, so
that neither a mirror nor the vendor's server can say what is right. Nobody here could ask the
vendor for them in advance, so an address that the lock lacks is pinned on its first use: the
SHA-256 that the release has beside the file is believed that once, written down and meant to be
committed. From then on no server is asked for digests any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from xpubuild.cache import Cache, Recipe
from xpubuild.toolchain import REPOSITORY

from .errors import TestbedError

SOURCES = ("build", "download")
TIMEOUT_S = 60
LOCK = REPOSITORY / "tests/testbed/downloads.lock.json"
_DIGEST = re.compile(r"^[0-9a-f]{64}$")


def source(environment: Mapping[str, str] = os.environ) -> str:
    """``TESTBED_SOURCE``: ``build`` from Go modules (as without it), or ``download``."""
    chosen = environment.get("TESTBED_SOURCE") or SOURCES[0]
    if chosen not in SOURCES:
        raise TestbedError(
            f"TESTBED_SOURCE is {chosen!r}; it may be {' or '.join(SOURCES)}. Correct or unset it."
        )
    return chosen


def _open(url: str) -> HTTPResponse:
    try:
        answer: HTTPResponse = urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise TestbedError(
            f"{url} was answered {error.code}; check that this version is released, or leave "
            "TESTBED_SOURCE=download out and build it"
        ) from error
    except OSError as error:
        raise TestbedError(
            f"{url} can't be fetched ({getattr(error, 'reason', error)}); check the network and "
            "https_proxy, or leave TESTBED_SOURCE=download out"
        ) from error
    return answer


def published_digest(url: str) -> str:
    """The SHA-256 that *url* says, alone or with a file's name behind it."""
    with _open(url) as answer:
        text = answer.read(200).decode(errors="replace").split()
    digest = text[0] if text else ""
    if not _DIGEST.match(digest):
        raise TestbedError(f"{url} says {digest[:80]!r}, which is no SHA-256")
    return digest


@dataclass(frozen=True)
class Released:
    """One file of a release: vendor's server, path there, and what its digest file ends in."""

    server: str
    path: str
    digest_suffix: str = ".sha256"

    @property
    def address(self) -> str:
        """The vendor's own, under which it is pinned."""
        return self.server + self.path

    @property
    def url(self) -> str:
        """Where it is fetched: a site's mirror has the same paths."""
        return (os.environ.get("TESTBED_DOWNLOAD_URL") or self.server) + self.path

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def pins() -> dict[str, str]:
    """Address → SHA-256, as the repository has them."""
    try:
        document = json.loads(LOCK.read_text(encoding="utf-8"))
        found = dict(document["files"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TestbedError(f"{LOCK} can't be read ({error!r}); restore it from git") from error
    for address, digest in found.items():
        if not _DIGEST.match(str(digest)):
            raise TestbedError(
                f"{LOCK}: {address} has {digest!r}, which is no SHA-256; restore it from git"
            )
    return found


def _pin(digests: Mapping[str, str]) -> None:
    document = {"version": 1, "files": dict(sorted({**pins(), **digests}.items()))}
    scratch = LOCK.with_name(f".{LOCK.name}.new")
    scratch.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    scratch.rename(LOCK)


def get(
    cache: Cache, name: str, files: tuple[Released, ...], unpack: Callable[[Path], None] | None
) -> Path:
    """*files* in the cache, each with its pinned digest, and unpacked there.

    What is pinned on its first use is pinned once all of it has come whole.
    """
    known = pins()
    digests = {
        file.address: known.get(file.address) or published_digest(file.url + file.digest_suffix)
        for file in files
    }

    def build(out: Path) -> None:
        for file in files:
            fetch(file.url, digests[file.address], out / file.name)
        if unpack:
            unpack(out)

    found = cache.get(Recipe(name, digests, build))
    if digests.keys() - known.keys():
        _pin(digests)
    return found


def fetch(url: str, digest: str, out: Path) -> None:
    """Have the file at *out*, whole and with that digest, or not at all."""
    total = hashlib.sha256()
    partial = out.with_name(f".{out.name}.partial")
    try:
        with _open(url) as answer, partial.open("wb") as file:
            while block := answer.read(1 << 20):
                total.update(block)
                file.write(block)
        if total.hexdigest() != digest:
            raise TestbedError(
                f"{url} has SHA-256 {total.hexdigest()}, it must have {digest}; it broke off, or "
                "something on the way or on the server changed it. Nothing was installed. A file "
                f"that the vendor replaced is taken when its line in {LOCK.name} is removed"
            )
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
