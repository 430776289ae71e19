# SPDX-License-Identifier: Apache-2.0
"""OCI archives: determinism, refusals, and what real engines make of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from xpubuild import oci

NAME = "docker.io/library/xpubuild-test:v1"


def write(directory: Path, files: dict[str, oci.Source], name: str = NAME) -> tuple[Path, str]:
    out = directory / "image.tar"
    config = oci.Config(entrypoint=["/bin/program"], env={"B": "2", "A": "1"}, user="65532")
    return out, oci.write_archive(out, name, [files], config)


def read_json(archive: Path, member: str) -> dict[str, Any]:
    with tarfile.open(archive) as opened:
        stream = opened.extractfile(member)
        assert stream
        return dict(json.load(stream))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, oci.Source]:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o750)
    return {
        "/bin/program": program,
        "/etc/motd": b"hello\n",
        "/tmp": oci.Directory(0o1777),
        "/bin/alias": oci.Link("program"),
    }


def test_same_content_gives_same_bytes(tmp_path: Path, files: dict[str, oci.Source]) -> None:
    first, digest = write(tmp_path, files)
    kept = first.read_bytes()
    os.utime(tmp_path / "program", (1, 1))
    second, again = write(tmp_path, dict(reversed(files.items())))
    assert again == digest
    assert second.read_bytes() == kept


def test_a_changed_byte_changes_the_digest(tmp_path: Path, files: dict[str, oci.Source]) -> None:
    _, before = write(tmp_path, files)
    _, after = write(tmp_path, {**files, "/etc/motd": b"Hello\n"})
    assert before != after


def test_digest_is_that_of_the_manifest_in_the_index(
    tmp_path: Path, files: dict[str, oci.Source]
) -> None:
    out, digest = write(tmp_path, files)
    (entry,) = read_json(out, "index.json")["manifests"]
    assert entry["digest"] == digest
    manifest = read_json(out, f"blobs/sha256/{digest.removeprefix('sha256:')}")
    assert manifest["mediaType"] == oci.MANIFEST


def test_layer_members_carry_mode_and_type_but_no_owner_or_time(
    tmp_path: Path, files: dict[str, oci.Source]
) -> None:
    with tarfile.open(oci.layer(tmp_path / "layer.tar", files)) as opened:
        members = {info.name: info for info in opened}
    assert {name: oct(info.mode) for name, info in members.items()} == {
        "bin/program": "0o755",
        "etc/motd": "0o644",
        "tmp": "0o1777",
        "bin/alias": "0o777",
    }
    assert members["bin/alias"].linkname == "program"
    assert {(info.uid, info.gid, info.mtime) for info in members.values()} == {(0, 0, 0)}


def test_parents_are_not_named(tmp_path: Path) -> None:
    """A directory entry for /bin would hide everything under a base image's link of that name."""
    with tarfile.open(oci.layer(tmp_path / "layer.tar", {"/bin/x": b""})) as opened:
        assert opened.getnames() == ["bin/x"]


@pytest.mark.parametrize("path", ["bin/x", "/", "/../etc/passwd", ""])
def test_path_outside_the_image_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(oci.ImageError, match="not an absolute path inside the image"):
        oci.layer(tmp_path / "layer.tar", {path: b""})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(oci.ImageError, match=r"layer path /bin/x: .*/absent is not a regular file"):
        oci.layer(tmp_path / "layer.tar", {"/bin/x": tmp_path / "absent"})


@pytest.mark.parametrize("name", ["pause", "pause:v1", "library/pause:v1", "docker.io/pause", ""])
def test_short_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(oci.ImageError, match="not a full reference"):
        write(tmp_path, {"/x": b""}, name)
    assert not (tmp_path / "image.tar").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("podman"), reason="needs root and podman")
def test_podman_loads_name_configuration_and_files(
    tmp_path: Path, files: dict[str, oci.Source]
) -> None:
    name = f"docker.io/library/xpubuild-test:{os.getpid()}"
    out, _ = write(tmp_path, files, name)
    try:
        run("podman", "load", "--quiet", "--input", out)
        (image,) = json.loads(run("podman", "image", "inspect", name))
        # `create` alone unpacks the layers; nothing has to run.
        container = run("podman", "create", name).strip()
        motd = subprocess.run(
            ["podman", "cp", f"{container}:/etc/motd", "-"], capture_output=True, check=True
        ).stdout
        run("podman", "rm", container)
    finally:
        subprocess.run(["podman", "rmi", "--force", name], capture_output=True, check=False)
    assert image["Config"]["Entrypoint"] == ["/bin/program"]
    assert image["Config"]["Env"] == ["A=1", "B=2"]
    assert image["User"] == "65532"
    assert b"hello\n" in motd


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
