# SPDX-License-Identifier: GPL-3.0-or-later
"""Released programs from their vendor's server (``TESTBED_SOURCE=download``, with internet).

A release has the SHA-256 of each file beside it. It is asked first and becomes part of the cache's
key, so that a file that changes on the server is fetched anew and never taken for the former one.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from pathlib import Path

from .errors import TestbedError

SOURCES = ("build", "download")
TIMEOUT_S = 60
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
    """The SHA-256 that stands beside a released file."""
    with _open(f"{url}.sha256") as answer:
        text = answer.read(200).decode(errors="replace").split()
    digest = text[0] if text else ""
    if not _DIGEST.match(digest):
        raise TestbedError(f"{url}.sha256 says {digest[:80]!r}, which is no SHA-256")
    return digest


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
                f"{url} has SHA-256 {total.hexdigest()}, its release says {digest}; it broke off, "
                "or something on the way changes it. Nothing was installed"
            )
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
