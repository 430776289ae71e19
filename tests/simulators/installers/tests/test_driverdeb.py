# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver's packages: one version for all, modules built by DKMS where there are headers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from simulators.installers import deb, driverdeb, kernelmodule
from simulators.installers.runfile import SOURCES

VERSION = "580.95.05"
KERNEL = os.uname().release
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the recipe builds it, with words for programs."""
    made = tmp_path_factory.mktemp("driver")
    for name in (
        f"lib/libcuda.so.{VERSION}",
        f"lib/libnvidia-ml.so.{VERSION}",
        *(f"bin/{name}" for name in ("nvidia-smi", "simgpu", "nvidia-persistenced")),
        "bin/nvidia-sim-module",
        "share/nvidia-sim/version",
        "units/nvidia-sim-module.service",
        "units/nvidia-persistenced.service",
    ):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    return made


@needs_dpkg
def test_the_same_driver_gives_the_same_repository(driver: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        driverdeb.pack(driver, tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    listed = files["Packages"].decode()
    assert listed.count("Package: ") == len(files) - 1 == 10
    assert f"Filename: ./libcuda1_{VERSION}-1_amd64.deb\n" in listed


def test_every_package_of_the_driver_needs_the_others_in_its_own_version(driver: Path) -> None:
    by_name = {package.name: package for package in driverdeb.packages(driver)}
    needs = by_name["nvidia-driver-cuda"].relations["Depends"]
    for name in ("libcuda1", "libnvidia-ml1", "nvidia-persistenced", "nvidia-kernel-open-dkms"):
        assert f"{name} (= {VERSION}-1)" in needs
    assert by_name["nvidia-kernel-dkms"].relations["Conflicts"] == "nvidia-kernel-open-dkms"


# -- dkms --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with headers, the module's source, and what answers for the kernel."""
    for path, text in {
        f"lib/modules/{KERNEL}/build/Makefile": "",
        f"lib/modules/{KERNEL}/modules.order": "",
        f"usr/src/nvidia-{VERSION}/dkms.conf": 'PACKAGE_NAME="nvidia"\n',
        "usr/lib/nvidia-sim/module": (SOURCES / "module.sh").read_text(),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "usr/lib/nvidia-sim/module").chmod(0o755)
    for name, content in kernelmodule.nvidia_modules(VERSION, "open").items():
        (tmp_path / f"usr/src/nvidia-{VERSION}" / name).write_bytes(content)
    return tmp_path


def dkms(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SOURCES / "dkms.sh"), *words],
        env={"PATH": os.environ["PATH"], "NVIDIA_SIM_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_dkms_builds_lists_and_takes_away(root: Path) -> None:
    before = files(root)
    assert dkms(root, "add", f"nvidia/{VERSION}").returncode == 0
    assert dkms(root, "status").stdout == f"nvidia/{VERSION}: added\n"
    done = dkms(root, "install", f"nvidia/{VERSION}", "-k", KERNEL)
    assert done.returncode == 0, done.stderr
    assert (root / f"lib/modules/{KERNEL}/updates/dkms/nvidia.ko").exists()
    told = dkms(root, "status", "nvidia").stdout
    assert told == f"nvidia/{VERSION}, {KERNEL}, {os.uname().machine}: installed\n"
    assert dkms(root, "remove", f"nvidia/{VERSION}", "--all").returncode == 0
    assert files(root) == before
    assert dkms(root, "status").stdout == ""


def test_dkms_refuses_a_kernel_without_headers_and_a_module_it_does_not_know(root: Path) -> None:
    (root / f"lib/modules/{KERNEL}/build/Makefile").unlink()
    done = dkms(root, "install", f"nvidia/{VERSION}")
    assert done.returncode == 21
    assert f"Your kernel headers for kernel {KERNEL} cannot be found" in done.stderr
    assert dkms(root, "add", "other/1").returncode == 2


def test_a_build_fails_on_demand_for_one_version(root: Path) -> None:
    (root / "etc/nvidia-sim").mkdir(parents=True)
    (root / "etc/nvidia-sim/fail").write_text("build-fails@1.2\n")
    assert dkms(root, "build", f"nvidia/{VERSION}").returncode == 0
    (root / "etc/nvidia-sim/fail").write_text(f"build-fails@{VERSION}\n")
    done = dkms(root, "build", f"nvidia/{VERSION}")
    assert done.returncode == 10 and "Bad return status" in done.stderr


# -- the kernel, as modprobe meets it ------------------------------------------------------------


def modprobe(root: Path, action: str) -> subprocess.CompletedProcess[str]:
    """modprobe's own command for the module, with a systemctl that starts what it is told."""
    program = root / "bin/systemctl"
    program.parent.mkdir(exist_ok=True)
    version = root / "proc/driver/nvidia/version"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = stop ] && exec rm {version}\n'
        f"mkdir -p {version.parent} && : > {version}\n"
    )
    program.chmod(0o755)
    return subprocess.run(
        ["sh", str(SOURCES / "module.sh"), action],
        env={"PATH": f"{program.parent}:{os.environ['PATH']}", "NVIDIA_SIM_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def fault(root: Path, words: str) -> None:
    (root / "etc/nvidia-sim").mkdir(parents=True, exist_ok=True)
    (root / "etc/nvidia-sim/fail").write_text(f"{words}\n")


def test_only_what_dkms_has_built_is_loaded_and_it_goes_again(root: Path) -> None:
    assert "Module nvidia not found" in modprobe(root, "load").stderr
    dkms(root, "install", f"nvidia/{VERSION}", "-k", KERNEL)
    for action, there in (("load", True), ("load", True), ("unload", False), ("unload", False)):
        assert modprobe(root, action).returncode == 0
        assert (root / "proc/driver/nvidia/version").exists() == there


REFUSALS = {
    f"module-load@{VERSION}": "Required key not available (fault module-load)",
    "secure-boot": "Key was rejected by service (fault secure-boot)",
    "modul-load": "knows no fault 'modul-load'",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_a_module_is_refused_on_demand(words: str, root: Path) -> None:
    dkms(root, "install", f"nvidia/{VERSION}", "-k", KERNEL)
    fault(root, words)
    done = modprobe(root, "load")
    assert done.returncode == 1 and REFUSALS[words] in done.stderr


def test_a_signed_module_is_taken_and_a_busy_one_stays(root: Path) -> None:
    dkms(root, "install", f"nvidia/{VERSION}", "-k", KERNEL)
    fault(root, "secure-boot,module-busy")
    (root / "etc/dkms/framework.conf.d").mkdir(parents=True)
    (root / "etc/dkms/framework.conf.d/x.conf").write_text("mok_signing_key=/k\n")
    assert modprobe(root, "load").returncode == 0
    done = modprobe(root, "unload")
    assert done.returncode == 1 and "Module nvidia is in use" in done.stderr
    assert (root / "proc/driver/nvidia/version").exists()


# -- Fabric Manager ----------------------------------------------------------------------------


def fabric(tmp_path: Path, package: deb.Package) -> subprocess.CompletedProcess[str]:
    text = package.files["/usr/bin/nv-fabricmanager"][0]
    script = tmp_path / "nv-fabricmanager"
    script.write_text(str(text))
    return subprocess.run(
        ["sh", str(script), "--check"],
        env={"PATH": os.environ["PATH"], "NVIDIA_SIM_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_fabric_manager_wants_a_switch_and_a_driver_of_its_version(
    driver: Path, tmp_path: Path
) -> None:
    (package,) = [p for p in driverdeb.packages(driver) if p.name == "nvidia-fabricmanager-580"]
    assert "no NVSwitch device was found" in fabric(tmp_path, package).stderr
    switch = tmp_path / "sys/bus/pci/devices/0000:80:00.0/device"
    switch.parent.mkdir(parents=True)
    switch.write_text("0x22a3\n")
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    for loaded, words in (("575.64.03", "doesn't match driver version 575.64.03"), (VERSION, "")):
        version.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {loaded}  Wed\n")
        done = fabric(tmp_path, package)
        assert (done.returncode == 0) == (loaded == VERSION)
        assert words in done.stderr
