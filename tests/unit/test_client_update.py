# SPDX-License-Identifier: GPL-3.0-or-later
"""Role xpu_runtime and the chart's client-update on one node: the same layout, and one owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _xpu_runtime as xpu
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.modules import xpu_release
from xpubuild.archive import write_tarball
from xpubuild.cache import Cache, digest_file
from xpubuild.recipes import client_update

VERSION = "0.1.0"
LIMIT_S = 60


@pytest.fixture(scope="module")
def program() -> Path:
    return client_update.build(Cache()) / "cuda-client-update"


def pack(root: Path, library: str = "library") -> Path:
    stage = root / "stage"
    for name, text in {"lib/libcuda_direct.so": library, "bin/gpu-monitor": "x"}.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(text)
    (stage / "bin/gpu-monitor").chmod(0o755)
    (stage / "bin/xpu-monitor").unlink(missing_ok=True)
    (stage / "bin/xpu-monitor").symlink_to("gpu-monitor")
    (stage / "VERSION").write_text(f"{VERSION}\n")
    members = [str(path.relative_to(stage)) for path in stage.rglob("*") if not path.is_dir()]
    write_tarball(root / "xpu.tar.gz", stage, members)
    return root / "xpu.tar.gz"


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    return pack(tmp_path)


def role(root: Path, tarball: Path, state: str = "present") -> dict[str, Any]:
    shutil.copyfile(tarball, root / "release.tar.gz")
    params = {
        "version": VERSION,
        "sha256": digest_file(tarball),
        "tarball": "/release.tar.gz",
        "state": state,
    }
    return xpu_release.converge(Host(str(root)), params, False)


def check(program: Path, home: Path, tarball: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program), "check", f"--home={home}", f"--release={tarball}"]
    return subprocess.run(command, text=True, capture_output=True, check=False)


@contextmanager
def running(program: Path, home: Path, tarball: Path) -> Iterator[None]:
    """client-update as its container runs it, looking again all the time."""
    home.mkdir(parents=True, exist_ok=True)
    command = [str(program), f"--home={home}", f"--release={tarball}", "--interval=5ms"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LIMIT_S
        while check(program, home, tarball).returncode and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def tree(home: Path) -> dict[str, str]:
    """Every path with its mode and what it holds or leads to; the owner's name aside."""
    found = {}
    for path in home.rglob("*"):
        content = "" if path.is_dir() else path.read_text()
        target = os.readlink(path) if path.is_symlink() else content
        found[str(path.relative_to(home))] = f"{path.lstat().st_mode:o} {target}"
    found.pop("owner", None)
    return found


def test_both_make_the_same_tree_of_the_same_tarball(
    program: Path, tarball: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "node"
    with running(program, theirs, tarball):
        pass
    role(tmp_path, tarball)
    assert tree(theirs) == tree(tmp_path / "opt/xpu")
    assert f"versions/{VERSION}-{digest_file(tarball)[:12]}/SHA256SUMS" in tree(theirs)


def test_the_role_takes_a_node_over_and_keeps_it(
    program: Path, tarball: Path, tmp_path: Path
) -> None:
    home = tmp_path / "opt/xpu"
    newer = tmp_path / "newer"
    newer.mkdir()
    with running(program, home, tarball):
        assert (home / "owner").read_text() == "client-update\n"
        taken = role(tmp_path, pack(newer, "the role's"))
        assert taken["changed"]
        assert "owner client-update" in taken["diff"]["before"]
        after = tree(home)
        assert check(program, home, tarball).returncode == 0
        # Many looks of client-update later.
        (home / "lib/libcuda_direct.so").write_text("altered")
        time.sleep(0.1)
        assert (home / "lib/libcuda_direct.so").read_text() == "altered"
        role(tmp_path, newer / "xpu.tar.gz")
        assert tree(home) == after
    assert (home / "owner").read_text() == f"{xpu.COMPONENT}\n"
    assert (home / "lib/libcuda_direct.so").read_text() == "the role's"


def test_a_node_that_both_would_change_alike_only_changes_its_owner(
    program: Path, tarball: Path, tmp_path: Path
) -> None:
    home = tmp_path / "opt/xpu"
    with running(program, home, tarball):
        pass
    before = tree(home)
    assert role(tmp_path, tarball)["changed"]
    assert tree(home) == before
    assert not role(tmp_path, tarball)["changed"]


def test_a_node_the_role_installed_before_there_were_records_is_the_roles(
    program: Path, tarball: Path, tmp_path: Path
) -> None:
    role(tmp_path, tarball)
    home = tmp_path / "opt/xpu"
    (home / "owner").unlink()
    with running(program, home, pack(tmp_path, "another")):
        time.sleep(0.05)
        assert (home / "lib/libcuda_direct.so").read_text() == "library"


def test_the_roles_uninstallation_takes_what_either_left(
    program: Path, tarball: Path, tmp_path: Path
) -> None:
    home = tmp_path / "opt/xpu"
    with running(program, home, tarball):
        pass
    role(tmp_path, tarball, state="absent")
    assert not home.exists()


def test_the_probe_says_what_an_upstream_client_left_in_the_way(
    program: Path, tarball: Path, tmp_path: Path
) -> None:
    (tmp_path / "lib").mkdir()
    refused = check(program, tmp_path, tarball)
    assert refused.returncode == 1
    assert "lib is no link of ours; move it away" in refused.stderr


def test_the_real_tarball_is_one_that_client_update_takes(program: Path, tmp_path: Path) -> None:
    from xpubuild.recipes import runtime

    tarball = runtime.build(Cache())
    with running(program, tmp_path / "home", tarball):
        pass
    with tarfile.open(tarball) as archive:
        for name in archive.getnames():
            kept = tmp_path / "home/current" / name
            assert kept.exists(), name
