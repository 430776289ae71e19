# SPDX-License-Identifier: Apache-2.0
"""The artefact manifest: what it says is what lies beside it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from xpubuild import artefacts
from xpubuild.archive import write_tarball
from xpubuild.artefacts import Artefact, publish
from xpubuild.cache import Cache, digest_file
from xpubuild.recipes import cuda


def artefact(path: Path, content: str = "content") -> Artefact:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return Artefact("tool", "1.0", "x86_64", "binary", path, "Apache-2.0")


def test_the_manifest_gives_the_digest_of_the_published_file(tmp_path: Path) -> None:
    manifest = publish([artefact(tmp_path / "built" / "tool")], tmp_path / "out")
    (entry,) = yaml.safe_load(manifest.read_text(encoding="utf-8"))["artefacts"]
    assert entry["sha256"] == digest_file(manifest.parent / entry["source"])
    assert (entry["name"], entry["version"], entry["arch"]) == ("tool", "1.0", "x86_64")
    assert "image" not in entry


def test_files_of_an_earlier_manifest_go_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish([artefact(tmp_path / "built" / "old")], out)
    publish([artefact(tmp_path / "built" / "new")], out)
    assert {path.name for path in out.iterdir()} == {"manifest.yml", "new"}


def test_the_same_tree_gives_the_same_tarball_bytes(tmp_path: Path) -> None:
    digests: list[str] = []
    for attempt in ("one", "two"):
        root = tmp_path / attempt
        artefact(root / "bin" / "tool")
        os.utime(root / "bin" / "tool", (time.time() + len(digests), 0))
        (root / "bin" / "alias").symlink_to("tool")
        write_tarball(tmp_path / f"{attempt}.tgz", root, ["bin/tool", "bin/alias"])
        digests.append(digest_file(tmp_path / f"{attempt}.tgz"))
    assert digests[0] == digests[1]


def test_the_slice_comes_for_both_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(_: Cache, arch: str) -> Path:
        for part in ("lib/library.so", "bin/monitor"):
            artefact(tmp_path / arch / part, arch)
        return tmp_path / arch

    monkeypatch.setattr(cuda, "build", built)
    cache = Cache(tmp_path / "cache")
    made = [artefacts._xpu_runtime(cache, arch) for arch in artefacts.ARCHITECTURES]
    entries = [one.entry() for one in made]
    assert [entry["arch"] for entry in entries] == ["x86_64", "aarch64"]
    assert len({entry["file"] for entry in entries}) == len({one.path for one in made}) == 2
    assert len({entry["sha256"] for entry in entries}) == 2
