# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated ``.run``, installing a made-up driver into a directory that plays the system."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from simulators.installers import kernelmodule, runfile

VERSION = "580.95.05"
DOCUMENT_000 = (
    "--silent --accept-license --no-questions --disable-nouveau --install-libglvnd"
    " --no-x-check --no-nouveau-check"
).split()
KERNEL = platform.release()

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the installer refuses others than root")


def fake_driver(base: Path, version: str = VERSION) -> Path:
    """The layout of the simulators' recipe, with text instead of programs."""
    driver = base / f"driver-{version}"
    for name in (
        f"lib/libcuda.so.{version}",
        f"lib/libnvidia-ml.so.{version}",
        "bin/nvidia-smi",
        "bin/nvidia-persistenced",
        "bin/nvidia-sim-module",
        "share/nvidia-sim/profiles/t4.conf",
        "units/nvidia-sim-module.service",
        "units/nvidia-persistenced.service",
    ):
        path = driver / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of {version}\n[Install]\nWantedBy=multi-user.target\n")
    return driver


@dataclass(frozen=True)
class System:
    """A directory tree with one card that the installer takes for the system's root."""

    root: Path

    def run(
        self, *argv: str | Path, fail: str = "", stdin: int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "NVIDIA_SIM_ROOT": str(self.root), "NVIDIA_SIM_FAIL": fail}
        return subprocess.run(
            [str(word) for word in argv],
            env=env,
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def tree(self) -> dict[str, str]:
        """Every path with what it is, but for logs and the linker's cache, which is rewritten."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if name.startswith("var/log") or name == "etc/ld.so.cache":
                continue
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            else:
                found[name] = "dir" if path.is_dir() else path.read_bytes().hex()
        return found

    @property
    def log(self) -> str:
        return (self.root / "var/log/nvidia-installer.log").read_text()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    base = tmp_path_factory.mktemp("packed")
    return lambda version: runfile.pack(fake_driver(base, version), base)


@pytest.fixture(scope="module")
def installer(build: Callable[[str], Path]) -> Path:
    return build(VERSION)


@pytest.fixture
def system(tmp_path: Path) -> System:
    made = System(tmp_path / "root")
    made.write("etc/os-release", "ID=debian\n")
    made.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    (made.root / "lib/modules" / KERNEL).mkdir(parents=True)
    (made.root / "usr/bin").mkdir(parents=True)
    (made.root / "var/log").mkdir(parents=True)
    (made.root / "var/lib").mkdir(parents=True)
    return made


def test_the_same_driver_packs_to_the_same_bytes(tmp_path: Path) -> None:
    packed = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        packed.append(runfile.pack(fake_driver(tmp_path / name), tmp_path / name).read_bytes())
    assert packed[0] == packed[1]


def test_a_driver_without_its_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    with pytest.raises(FileNotFoundError, match=r"lib holds no libcuda\.so\.<version>"):
        runfile.pack(tmp_path, tmp_path)


def test_check_accepts_a_whole_file_and_names_the_digests_of_a_damaged_one(
    installer: Path, tmp_path: Path, system: System
) -> None:
    assert system.run(installer, "--check").stdout == "Verifying archive integrity... OK\n"
    damaged = tmp_path / installer.name
    content = bytearray(installer.read_bytes())
    content[-10] ^= 1
    damaged.write_bytes(content)
    damaged.chmod(0o755)
    for arguments in (["--check"], DOCUMENT_000):
        done = system.run(damaged, *arguments)
        assert done.returncode == 1
        assert "the file is damaged; fetch it again" in done.stderr
    assert not (system.root / "usr/bin/nvidia-smi").exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_cut_off_anywhere_installs_nothing(
    installer: Path, tmp_path: Path, system: System, kept: float
) -> None:
    content = installer.read_bytes()
    cut = tmp_path / "cut.run"
    cut.write_bytes(content[: int(len(content) * kept)])
    before = system.tree()
    done = system.run("sh", cut, *DOCUMENT_000)
    assert done.returncode != 0
    assert system.tree() == before


def test_extract_only_unpacks_and_refuses_to_overwrite(
    installer: Path, tmp_path: Path, system: System
) -> None:
    target = tmp_path / "unpacked"
    assert system.run(installer, "--extract-only", f"--target={target}").returncode == 0
    assert (target / "nvidia-installer").stat().st_mode & 0o111
    again = system.run(installer, "-x", "--target", target)
    assert again.returncode == 1
    assert f"{target} exists already" in again.stderr


def test_version_and_info_say_simulation(installer: Path, system: System) -> None:
    for option in ("--version", "--info"):
        done = system.run(installer, option)
        assert done.returncode == 0
        assert VERSION in done.stdout
        assert "simulat" in done.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such-flag"], "unrecognized option '--no-such-flag'"),
        (["--kernel-module-type=closed"], "is 'closed', not open or proprietary"),
        (["--kernel-module-type"], "option --kernel-module-type needs a value"),
        (["-s", "stray"], "unrecognized option 'stray'"),
    ],
)
def test_a_wrong_command_line_is_an_error(
    installer: Path, system: System, arguments: list[str], named: str
) -> None:
    before = system.tree()
    done = system.run(installer, *arguments)
    assert done.returncode == 1
    assert named in done.stderr
    assert system.tree() == before


@as_root
@pytest.mark.parametrize(
    ("os_release", "libraries"),
    [
        ("ID=ubuntu\nID_LIKE=debian\n", "usr/lib/x86_64-linux-gnu"),
        ('ID="openEuler"\n', "usr/lib64"),
        ('ID="rhel"\nID_LIKE="fedora"\n', "usr/lib64"),
    ],
)
def test_document_000_flags_install_and_uninstall_leaves_the_system_as_it_was(
    installer: Path, system: System, os_release: str, libraries: str
) -> None:
    system.write("etc/os-release", os_release)
    before = system.tree()
    done = system.run(installer, *DOCUMENT_000)
    assert done.returncode == 0, done.stderr + system.log
    assert "SIMULATION" in done.stdout
    after = system.tree()
    assert after[f"{libraries}/libcuda.so"] == "-> libcuda.so.1"
    assert after[f"{libraries}/libcuda.so.1"] == f"-> libcuda.so.{VERSION}"
    for name in ("usr/bin/nvidia-smi", "usr/share/nvidia-sim/profiles/t4.conf"):
        assert name in after
    assert "etc/modprobe.d/nvidia-installer-disable-nouveau.conf" in after
    removed = system.run(system.root / "usr/bin/nvidia-uninstall", "--silent")
    assert removed.returncode == 0, removed.stderr
    assert system.tree() == before


@as_root
@pytest.mark.parametrize(
    ("arguments", "directory", "licence"),
    [
        ([], "kernel/drivers/video", "Dual MIT/GPL"),
        (["--kernel-module-type=proprietary"], "kernel/drivers/video", "NVIDIA"),
        (["-m", "open", "--dkms"], "updates/dkms", "Dual MIT/GPL"),
    ],
)
@pytest.mark.skipif(not shutil.which("modinfo"), reason="modinfo (kmod) is not installed")
def test_modinfo_reads_version_and_flavour(
    installer: Path, system: System, arguments: list[str], directory: str, licence: str
) -> None:
    assert system.run(installer, "--silent", *arguments).returncode == 0
    module = system.root / "lib/modules" / KERNEL / directory / "nvidia.ko"
    for field, wanted in (("version", VERSION), ("license", licence)):
        asked = ["modinfo", "-b", str(system.root), "-F", field]
        for name in (str(module), "nvidia"):
            found = subprocess.run([*asked, name], capture_output=True, text=True, check=True)
            assert found.stdout.strip() == wanted


@as_root
def test_without_a_terminal_a_question_aborts(installer: Path, system: System) -> None:
    for arguments, named in (
        ([], "the licence must be accepted"),
        (["--accept-license"], "No --kernel-module-type was given"),
    ):
        done = system.run(installer, *arguments)
        assert done.returncode == 1
        assert named in done.stderr
        assert "there is no terminal" in done.stderr
    assert not (system.root / "usr/bin/nvidia-smi").exists()


@as_root
@pytest.mark.parametrize(
    ("fault", "arguments", "named"),
    [
        ("headers-missing", DOCUMENT_000, f"headers (linux-headers-{KERNEL}"),
        ("module-busy", DOCUMENT_000, "appears to already be loaded"),
        ("nouveau-loaded", ["--silent"], "Nouveau kernel driver is currently in use"),
        ("nouveau-loaded", DOCUMENT_000, "the nouveau driver holds it"),
        ("module-load", DOCUMENT_000, "Required key not available"),
        (f"module-load@{VERSION}", DOCUMENT_000, "Required key not available"),
        ("secure-boot", DOCUMENT_000, "the module is not signed"),
        ("", [*DOCUMENT_000, "--module-signing-secret-key=/k"], "signing key '/k' is not a file"),
        ("halfway", DOCUMENT_000, "knows no fault 'halfway'"),
    ],
)
def test_a_failure_names_its_cause_and_leaves_nothing(
    installer: Path, system: System, fault: str, arguments: list[str], named: str
) -> None:
    before = system.tree()
    done = system.run(installer, *arguments, fail=fault)
    assert done.returncode == 1
    assert named in done.stderr
    assert named in system.log
    assert system.tree() == before


@as_root
def test_a_signed_module_is_taken_and_a_fault_of_another_version_is_none(
    installer: Path, system: System
) -> None:
    for name in ("key", "certificate"):
        system.write(f"etc/keys/{name}", name)
    pair = [
        "--module-signing-secret-key=/etc/keys/key",
        "--module-signing-public-key=/etc/keys/certificate",
    ]
    done = system.run(installer, *DOCUMENT_000, *pair, fail="secure-boot,module-load@1.2.3")
    assert done.returncode == 0, done.stderr


@as_root
@pytest.mark.parametrize("fault", ["half-way", "disk-full"])
@pytest.mark.parametrize("remedy", ["run again", "uninstall"])
def test_stopped_half_way_it_is_taken_up_or_cleared_away(
    installer: Path, system: System, fault: str, remedy: str
) -> None:
    before = system.tree()
    flag = system.write("etc/nvidia-sim/fail", f"{fault}\n")
    stopped = system.run(installer, *DOCUMENT_000)
    assert stopped.returncode == 1
    flag.unlink()
    flag.parent.rmdir()
    assert system.tree() != before
    if remedy == "run again":
        assert system.run(installer, *DOCUMENT_000).returncode == 0
    assert system.run(installer, "--uninstall", "--silent").returncode == 0
    assert system.tree() == before


@as_root
def test_another_version_replaces_the_installed_one(
    build: Callable[[str], Path], installer: Path, system: System
) -> None:
    assert system.run(build("535.183.06"), *DOCUMENT_000).returncode == 0
    assert system.run(installer, *DOCUMENT_000).returncode == 0
    names = [path.name for path in (system.root / "usr/lib/x86_64-linux-gnu").iterdir()]
    assert [name for name in names if "535" in name] == []
    assert f"libcuda.so.{VERSION}" in names


@as_root
def test_a_driver_in_use_is_not_replaced(installer: Path, system: System) -> None:
    assert system.run(installer, *DOCUMENT_000).returncode == 0
    system.write("proc/driver/nvidia/version", "NVRM version: …\n")
    system.write("proc/4711/maps", f"7f00 r-xp /usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}\n")
    done = system.run(installer, *DOCUMENT_000)
    assert done.returncode == 1
    assert "is in use by pid 4711" in done.stderr
    assert (system.root / "usr/bin/nvidia-smi").exists()


@as_root
def test_without_a_card_nothing_stays(installer: Path, system: System) -> None:
    (system.root / "sys/bus/pci/devices/0000:01:00.0/vendor").write_text("0x8086\n")
    before = system.tree()
    done = system.run(installer, *DOCUMENT_000)
    assert done.returncode == 1
    assert "No such device" in done.stderr
    assert system.tree() == before


@as_root
def test_uninstall_keeps_changed_files_and_gives_foreign_ones_back(
    installer: Path, system: System
) -> None:
    foreign = system.write("usr/bin/nvidia-smi", "another vendor's\n")
    assert system.run(installer, *DOCUMENT_000).returncode == 0
    changed = system.write("usr/share/nvidia-sim/profiles/t4.conf", "edited\n")
    done = system.run(system.root / "usr/bin/nvidia-uninstall", "-s")
    assert "t4.conf was changed since it was installed" in done.stderr
    assert changed.read_text() == "edited\n"
    assert foreign.read_text() == "another vendor's\n"


@as_root
def test_uninstall_without_a_driver_says_so(installer: Path, system: System) -> None:
    done = system.run(installer, "--uninstall")
    assert done.returncode == 0
    assert "There is no NVIDIA driver currently installed" in done.stdout


def test_modules_depend_on_the_core_module() -> None:
    modules = kernelmodule.nvidia_modules(VERSION, "open")
    assert b"depends=nvidia\0" in modules["nvidia-uvm.ko"]
    assert b"depends=\0" in modules["nvidia.ko"]
