# SPDX-License-Identifier: Apache-2.0
"""Archives: the same content is the same bytes, and comes out again as it went in."""

from __future__ import annotations

import os
from pathlib import Path

from xpubuild import archive


def tree(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_text("#!/bin/sh\n")
    (root / "bin/tool").chmod(0o755)
    (root / "note").write_text("text\n")
    (root / "link").symlink_to("note")
    return root


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    members = ["bin/tool", "link", "note"]
    archive.write_tarball(tmp_path / "a.tar.gz", tree(tmp_path / "in"), members)
    archive.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out/note").read_text() == "text\n"
    assert (tmp_path / "out/link").readlink() == Path("note")
    assert os.access(tmp_path / "out/bin/tool", os.X_OK)
    assert not os.access(tmp_path / "out/note", os.X_OK)


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        archive.write_tarball(tmp_path / f"{name}.tar.gz", tree(tmp_path / name), ["note", "link"])
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
