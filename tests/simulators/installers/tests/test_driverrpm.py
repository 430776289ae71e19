# SPDX-License-Identifier: GPL-3.0-or-later
"""The rpms: one version for all of the driver's, the same bytes each time, real packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from simulators.installers import cudarpm, cudarun, driverrpm, rpm

from .test_driverdeb import KERNEL, VERSION, dkms, driver, root

__all__ = ["driver", "root"]  # fixtures

FULL = f"3:{VERSION}-1"
needs_rpmbuild = pytest.mark.skipif(not shutil.which("rpmbuild"), reason="rpmbuild is missing")


def asked(file: Path, *words: str) -> str:
    argv = ["rpm", "--query", "--package", *words, str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_every_package_of_the_driver_needs_the_others_in_its_own_version(driver: Path) -> None:
    by_name = {package.name: package for package in driverrpm.packages(driver)}
    needs = by_name["nvidia-driver-cuda"].relations
    for name in ("nvidia-driver-cuda-libs", "libnvidia-ml", "nvidia-persistenced", "nvidia-kmod"):
        assert ("Requires", f"{name} = {FULL}") in needs
    kernel = by_name["kmod-nvidia-open-dkms"].relations
    assert ("Provides", f"nvidia-kmod = {FULL}") in kernel
    assert ("Conflicts", "kmod-nvidia-latest-dkms") in kernel


@needs_rpmbuild
def test_a_package_holds_its_files_and_scripts_and_is_the_same_each_time(
    driver: Path, tmp_path: Path
) -> None:
    (package,) = [each for each in driverrpm.packages(driver) if each.name == "libnvidia-ml"]
    built = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        built.append(rpm.build(package, tmp_path / name))
    assert built[0].read_bytes() == built[1].read_bytes()
    assert asked(built[0], "--list").split() == [
        f"/usr/lib64/libnvidia-ml.so{end}" for end in ("", ".1", f".{VERSION}")
    ]
    assert asked(built[0], "--scripts").count("\nldconfig\n") == 2
    assert asked(built[0], "--queryformat", "%{EPOCH}:%{VERSION}-%{RELEASE}") == FULL


def test_a_package_owns_the_directories_that_are_its_own(driver: Path) -> None:
    by_name = {package.name: package for package in driverrpm.packages(driver)}
    kernel = by_name["kmod-nvidia-open-dkms"]
    assert kernel.directories() == [f"/usr/src/nvidia-open-{VERSION}"]
    assert by_name["libnvidia-ml"].directories() == []


def test_the_compiler_of_the_rpm_is_that_of_the_installer(tmp_path: Path) -> None:
    toolkit, compiler = cudarpm.packages()
    (requirement,) = toolkit.relations
    assert requirement == ("Requires", f"{compiler.name} >= {compiler.version}")
    ((content, _mode),) = compiler.files.values()
    assert str(content).rstrip("\n") in cudarun.pack(tmp_path).read_text(encoding="utf-8")


def test_a_version_that_goes_leaves_the_module_of_the_one_that_came(root: Path) -> None:
    """As in an upgrade by rpm, which runs the old package's scripts last."""
    source = root / f"usr/src/nvidia-{VERSION}"
    newer = source.with_name("nvidia-999.1")
    shutil.copytree(source, newer)
    (newer / "nvidia.ko").write_bytes(b"newer")
    for version in (VERSION, "999.1"):
        assert dkms(root, "install", f"nvidia/{version}", "-k", KERNEL).returncode == 0
    assert dkms(root, "remove", f"nvidia/{VERSION}", "--all").returncode == 0
    module = root / f"lib/modules/{KERNEL}/updates/dkms/nvidia.ko"
    assert module.read_bytes() == b"newer"
