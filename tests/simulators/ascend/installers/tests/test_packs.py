# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated Ascend packages refuse what the vendor's would, and leave what it leaves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from simulators.ascend.installers import packs
from testbed.recipes import ascend
from xpubuild.cache import Cache

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the packages refuse others than root")


class Host:
    """A directory that plays a host's root, with one 910B3 on PCI, and the packages to run."""

    def __init__(self, root: Path, files: dict[str, Path]) -> None:
        self.root = root
        self.files = files
        card = root / "sys/bus/pci/devices/0000:3b:00.0"
        card.mkdir(parents=True)
        (card / "vendor").write_text("0x19e5\n")
        (card / "device").write_text("0xd802\n")

    def run(self, package: str, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", str(self.files.get(package, package)), *flags],
            env={**os.environ, "NPU_SIM_ROOT": str(self.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def well(self, package: str, *flags: str) -> None:
        done = self.run(package, *flags)
        assert done.returncode == 0, done.stderr

    def refused(self, package: str, *flags: str) -> str:
        done = self.run(package, *flags)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def fault(self, word: str) -> None:
        path = self.root / "etc/npu-sim/fail"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{word}\n")

    def left(self) -> set[str]:
        """The files of packages."""
        places = ("usr", "etc/systemd", "etc/Ascend", "etc/ascend_install.info")
        found = (self.root / place for place in places)
        return {
            str(path.relative_to(self.root))
            for place in found
            for path in ([place] if place.is_file() else place.rglob("*"))
            if not path.is_dir()
        }


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("packs")
    built = ascend.build(Cache())
    return {
        "driver": packs.driver(built, out),
        "newer driver": packs.driver(built, out, "25.2.0"),
        "310p driver": packs.driver(built, out, chip="310p"),
        "firmware": packs.firmware(out),
        **{part: packs.cann(part, out) for part in ("toolkit", "kernels", "nnal")},
    }


@pytest.fixture
def host(tmp_path: Path, files: dict[str, Path]) -> Host:
    return Host(tmp_path / "root", files)


FULL = ("--full", "--quiet")


@as_root
def test_driver_then_firmware_leave_their_state_files(host: Host) -> None:
    host.well("driver", *FULL, "--install-for-all")
    host.well("firmware", *FULL)
    assert "Version=25.0.rc1.1\n" in host.read("usr/local/Ascend/driver/version.info")
    assert "Version=7.7.0.1.231\n" in host.read("usr/local/Ascend/firmware/version.info")
    info = dict(line.split("=") for line in host.read("etc/ascend_install.info").splitlines())
    assert info == {
        "Driver_Install_Type": "full",
        "UserName": "HwHiAiUser",
        "UserGroup": "HwHiAiUser",
        "Driver_Install_Path_Param": "/usr/local/Ascend",
        "Driver_Install_Mode": "normal",
        "Driver_Install_For_All": "yes",
        "Firmware_Install_Type": "full",
        "Firmware_Install_Path_Param": "/usr/local/Ascend",
    }
    assert "driver none -> 25.0.rc1.1" in host.read("var/log/ascend_seclog/ascend_install.log")
    host.well("firmware", "--uninstall")
    host.well("driver", "--uninstall")
    assert host.left() == set()


@as_root
def test_an_upgrade_needs_something_to_upgrade(host: Host) -> None:
    assert "There is no driver to upgrade" in host.refused("newer driver", "--upgrade", "--quiet")
    host.well("driver", *FULL)
    host.well("newer driver", "--upgrade", "--quiet")
    assert "Version=25.2.0\n" in host.read("usr/local/Ascend/driver/version.info")


@as_root
@pytest.mark.parametrize(
    ("package", "flags", "text"),
    [
        ("driver", ("--full",), "there is no terminal to ask on; run it with --quiet"),
        ("driver", ("--install", "--quiet"), "install is no action of driver"),
        ("driver", ("--full", "--silent"), "Unrecognized parameter: --silent"),
        ("driver", ("--full", "--upgrade"), "--full and --upgrade exclude each other"),
        ("310p driver", FULL, "for the chip 310p, and there is none on PCI"),
        ("firmware", FULL, "The driver is not installed"),
        ("toolkit", ("--install", "--quiet"), "use --full on a host without it"),
        ("kernels", ("--install", "--quiet"), "Please install toolkit or nnae 8.1.RC1 before"),
        ("nnal", ("--install", "--quiet"), "Source set_env.sh of the toolkit before"),
    ],
)
def test_what_is_refused_leaves_nothing(
    host: Host, package: str, flags: tuple[str, ...], text: str
) -> None:
    assert text in host.refused(package, *flags)
    assert host.left() == set()


@as_root
def test_cann_stands_under_the_path_of_its_record(host: Host) -> None:
    host.well("toolkit", "--full", "--quiet", "--install-path=/opt/ascend")
    assert host.read("etc/Ascend/ascend_cann_install.info") == "Install_Path=/opt/ascend\n"
    text = host.refused("kernels", "--install", "--quiet", "--install-path=/usr/local/Ascend")
    assert "differs from the path /opt/ascend" in text
    host.well("kernels", "--install", "--quiet")
    host.well("nnal", "--install", "--quiet")
    inner = "opt/ascend/ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info"
    assert "version=8.1.RC1\n" in host.read(inner)
    assert "Version=8.1.RC1" in host.read(
        "opt/ascend/ascend-toolkit/latest/opp_kernel/version.info"
    )
    assert "Ascend-cann-atb : 8.1.RC1" in host.read("opt/ascend/nnal/atb/latest/version.info")
    for part in ("nnal", "kernels", "toolkit"):
        host.well(part, "--uninstall")
    assert host.left() == set()


@as_root
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("half-way", "killed half-way"),
        ("disk-full@driver", "no space left on device"),
        ("busy", "davinci nodes are occupied"),
        ("halfway", "the simulation knows no fault 'halfway'"),
    ],
)
def test_faults_on_demand(host: Host, fault: str, text: str) -> None:
    host.fault(fault)
    assert text in host.refused("driver", *FULL)
    assert not (host.root / "usr/local/Ascend/driver/version.info").exists()


@as_root
def test_a_fault_of_another_package_is_none_of_this_one(host: Host) -> None:
    host.fault("half-way@toolkit")
    host.well("driver", *FULL)


def test_a_damaged_file_is_found(host: Host, files: dict[str, Path], tmp_path: Path) -> None:
    host.well("nnal", "--check")
    damaged = tmp_path / "damaged.run"
    damaged.write_bytes(files["nnal"].read_bytes()[:-1] + b"x")
    assert "Error in SHA256 checksums" in host.refused(str(damaged), "--check")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    built = ascend.build(Cache())
    made: list[Callable[[Path], Path]] = [
        lambda out: packs.driver(built, out),
        packs.firmware,
        lambda out: packs.cann("kernels", out),
    ]
    for number, make in enumerate(made):
        one, two = tmp_path / f"one{number}", tmp_path / f"two{number}"
        one.mkdir()
        two.mkdir()
        assert make(one).read_bytes() == make(two).read_bytes()
