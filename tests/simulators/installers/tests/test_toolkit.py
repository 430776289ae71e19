# SPDX-License-Identifier: GPL-3.0-or-later
"""The toolkit's release tarball: upstream's shape, real packages, the same bytes each time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from simulators.installers import toolkit
from xpubuild.toolchain import ToolchainError

VERSION = "1.17.8"
FOLDER = f"release-v{VERSION}-stable/packages/ubuntu18.04/amd64"

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("programs")
    for package in toolkit.packages(f"{VERSION}-1"):
        for name in package.programs:
            (made / name).write_text(f"#!/bin/sh\necho {name}\n")
    return made


@pytest.fixture(scope="module")
def debs(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toolkit")
    # As a user would; tarfile's safe way of it came with Python 3.11.4, Debian 12 has 3.11.2.
    subprocess.run(["tar", "-xzf", toolkit.pack(programs, VERSION, out), "-C", out], check=True)
    return out / FOLDER


def field(deb: Path, name: str) -> str:
    asked = ["dpkg-deb", "--field", str(deb), name]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


@needs_dpkg
def test_the_tarball_has_the_folders_and_packages_of_a_release(debs: Path) -> None:
    assert {deb.name for deb in debs.iterdir()} == {
        f"{name}_{VERSION}-1_amd64.deb"
        for name in (
            "libnvidia-container-tools",
            "libnvidia-container1",
            "nvidia-container-toolkit",
            "nvidia-container-toolkit-base",
            "nvidia-container-toolkit-operator-extensions",
        )
    }


@needs_dpkg
def test_packages_depend_on_each_other_as_upstreams_do(debs: Path) -> None:
    hook = debs / f"nvidia-container-toolkit_{VERSION}-1_amd64.deb"
    assert field(hook, "Depends") == (
        "nvidia-container-toolkit-base (= 1.17.8-1), libnvidia-container-tools (>= 1.17.8-1), "
        "libnvidia-container-tools (<< 2.0.0)"
    )


@needs_dpkg
def test_dpkg_takes_the_set_and_nothing_is_owned_by_the_builder(debs: Path) -> None:
    for deb in debs.iterdir():
        listed = subprocess.run(
            ["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert {line.split()[1] for line in listed} == {"root/root"}


@needs_dpkg
def test_stand_ins_say_so_and_refuse_to_work(debs: Path, tmp_path: Path) -> None:
    deb = debs / f"libnvidia-container-tools_{VERSION}-1_amd64.deb"
    assert "stand-in" in field(deb, "Description")
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path], check=True)
    cli = tmp_path / "usr/bin/nvidia-container-cli"
    version = subprocess.run([cli, "--version"], capture_output=True, text=True, check=True)
    assert "cli-version: 1.17.8" in version.stdout
    assert "stand-in" in version.stdout
    refused = subprocess.run([cli, "configure"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "stand-in" in refused.stderr


@needs_dpkg
def test_the_same_programs_pack_to_the_same_bytes(programs: Path, tmp_path: Path) -> None:
    packed = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        packed.append(toolkit.pack(programs, VERSION, tmp_path / name).read_bytes())
    assert packed[0] == packed[1]


def test_without_dpkg_deb_it_names_the_package(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="install the package dpkg"):
        toolkit.pack(programs, VERSION, tmp_path)
