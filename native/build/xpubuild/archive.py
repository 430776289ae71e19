# SPDX-License-Identifier: Apache-2.0
"""Archives whose bytes depend on their content alone."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path


def write_tarball(out: Path, root: Path, members: Sequence[str]) -> None:
    """A ``.tar.gz`` of *members* under *root*: same content, same bytes (order, owner, times)."""
    with (
        out.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for member in sorted(members):
            info = archive.gettarinfo(root / member, arcname=member)
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mtime = 0
            if info.isfile():
                info.mode = 0o755 if os.access(root / member, os.X_OK) else 0o644
                with (root / member).open("rb") as stream:
                    archive.addfile(info, stream)
            else:
                archive.addfile(info)


def unpack(tarball: Path, out: Path) -> None:
    """Everything of a tarball that is ours or pinned, below *out*."""
    with tarfile.open(tarball) as archive:
        # Debian 12's Python knows no filters yet.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _out: member)
        archive.extractall(out)
