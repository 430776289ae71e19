# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""An artefact's bytes on the controller, from a file or a URL (proxies as its environment says)."""

from __future__ import annotations

import contextlib
import hashlib
import typing as t
from http.client import HTTPException

from ansible.module_utils.urls import open_url

from ..module_utils._errors import XpuError

TIMEOUT_S = 60
BLOCK = 1 << 20
REMEDY = "check the URL and the proxy variables of the controller, or give a file as source."


def digest(source: str) -> str:
    """SHA-256 of what a source gives."""
    return copy(source, None)


def copy(source: str, out: t.BinaryIO | None) -> str:
    """Copy what *source* gives to *out*, if any; its SHA-256."""
    total = hashlib.sha256()
    try:
        for block in _blocks(source):
            total.update(block)
            if out:
                out.write(block)
    except FileNotFoundError:
        raise XpuError(
            f"{source} does not exist.", "put the file there, or correct source in the manifest."
        ) from None
    return total.hexdigest()


def _blocks(source: str) -> t.Iterator[bytes]:
    if source.startswith(("http://", "https://")):
        yield from _of_url(source)
        return
    with open(source, "rb") as stream:
        yield from iter(lambda: stream.read(BLOCK), b"")


def _of_url(url: str) -> t.Iterator[bytes]:
    length = 0
    try:
        with contextlib.closing(open_url(url, timeout=TIMEOUT_S)) as response:
            promised = response.headers.get("Content-Length", "")
            for block in iter(lambda: response.read(BLOCK), b""):
                length += len(block)
                yield block
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        raise XpuError(f"{url} can't be fetched ({error}).", REMEDY) from error
    # A sized read of an answer that breaks off ends like one of a whole answer.
    if promised.isdigit() and length < int(promised):
        raise XpuError(
            f"{url} broke off after {length} of {promised} bytes.",
            "run again; when it breaks off there each time, the server's file or a proxy is at "
            "fault.",
        )
