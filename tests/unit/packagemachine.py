# SPDX-License-Identifier: GPL-3.0-or-later
"""A host root whose package manager installs drivers: dpkg's database, DKMS and modules as files.

apt here is as apt is: what a package needs of exactly one version is taken at the version that the
pin says, else at the newest, and where the two differ nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ansible_collections.flexai.xpu.plugins.module_utils import _driver_packages as by_packages
from ansible_collections.flexai.xpu.plugins.module_utils import _packages as packages
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed

from . import hostroot
from .drivermachine import LIBCUDA, Machine

KERNEL = os.uname().release
# Package → what it needs, in the version of its own.
NEEDS = {
    "nvidia-driver-cuda": ("libcuda1", "nvidia-persistenced"),
    "nvidia-kernel-open-dkms": ("nvidia-kernel-support",),
    "nvidia-kernel-dkms": ("nvidia-kernel-support",),
    "libcuda1": (),
    "nvidia-persistenced": (),
    "nvidia-kernel-support": (),
    "nvidia-fabricmanager-580": (),
    "libnvidia-nscq-580": (),
}
FLAVOURS = {"nvidia-kernel-open-dkms", "nvidia-kernel-dkms"}


class PackageMachine(Machine):
    """*versions* is what its repository has, newest first."""

    def __init__(self, root: Path, versions: tuple[str, ...], cards: int = 2) -> None:
        super().__init__(root, cards)
        self.versions = versions
        # Known to the repository once its lists are read anew.
        self.published: tuple[str, ...] = ()
        # Versions that DKMS fails to build, and those that the package's script passes over.
        self.unbuildable: set[str] = set()
        self.skipped: set[str] = set()
        self.module_stays = False
        for name in ("apt-get", "apt-cache", "dkms", "modprobe"):
            hostroot.put(root, f"/usr/bin/{name}", "", 0o755)

    def params(self, version: str, **more: Any) -> dict[str, Any]:
        """The host has no .run file at all."""
        return {
            "version": version,
            "installer": None,
            "method": "packages",
            "kernel_module_type": "",
            "persistenced": True,
            "allow_downgrade": False,
            "state": "present",
            **more,
        }

    # -- dpkg and apt
    @property
    def installed(self) -> dict[str, str]:
        return dict(packages.everything(self.host).versions)

    def _write_status(self, versions: dict[str, str]) -> None:
        text = "".join(hostroot.package(name, f"{v}-1") for name, v in sorted(versions.items()))
        hostroot.put(self.root, packages.DPKG_STATUS, text)

    def _apt_cache(self, argv: list[str]) -> Completed:
        name = argv[-1]
        known = self.versions if name in NEEDS else ()
        return Completed(0, "".join(f"{name} | {v}-1 | file:/srv ./ Packages\n" for v in known))

    def _candidate(self) -> str:
        pin = re.search(r"^Pin: version (.*)\*$", self._pin_text(), re.MULTILINE)
        return pin.group(1) if pin and pin.group(1) in self.versions else self.versions[0]

    def _pin_text(self) -> str:
        return self.host.read(by_packages.PIN_FILE) or ""

    def _apt_get(self, argv: list[str]) -> Completed:
        names = [word for word in argv[2:] if not word.startswith("-")]
        if argv[1] == "update":
            self.versions = (*self.published, *self.versions)
            return Completed(0)
        if argv[1] == "purge":
            return self._purge(names)
        return self._install(names, simulate="--simulate" in argv)

    def _install(self, exact: list[str], simulate: bool) -> Completed:
        wanted = {name: version.rpartition("-")[0] for name, version in map(_split, exact)}
        for name, version in dict(wanted).items():
            for needed in NEEDS[name]:
                if self._candidate() != version:
                    return Completed(100, "", f"{name} : Depends: {needed} (= {version}-1)")
                wanted[needed] = version
        if simulate:
            return Completed(0, "".join(f"Inst {name} ({v}-1)\n" for name, v in wanted.items()))
        kept = {
            name: version
            for name, version in self.installed.items()
            if not (name in FLAVOURS and FLAVOURS & wanted.keys())
        }
        self._write_status({**kept, "dkms": "3.0.10", **wanted})
        return self._configure(wanted)

    def _configure(self, came: dict[str, str]) -> Completed:
        if "libcuda1" in came:
            link = self.root / LIBCUDA
            hostroot.put(self.root, f"/{LIBCUDA[:-1]}{came['libcuda1']}", "")
            link.unlink(missing_ok=True)
            link.symlink_to(f"libcuda.so.{came['libcuda1']}")
        for version in (came[name] for name in FLAVOURS & came.keys()):
            shutil.rmtree(self.root / "var/lib/dkms", ignore_errors=True)
            hostroot.put(self.root, f"/var/lib/dkms/nvidia/{version}/source/dkms.conf", "")
            if version not in self.skipped:
                return self._dkms(["dkms", "install", f"nvidia/{version}", "-k", KERNEL])
        return Completed(0)

    def _purge(self, names: list[str]) -> Completed:
        self._write_status({n: v for n, v in self.installed.items() if n not in names})
        if "libcuda1" in names:
            (self.root / LIBCUDA).unlink(missing_ok=True)
        if FLAVOURS & set(names):
            shutil.rmtree(self.root / "var/lib/dkms", ignore_errors=True)
        return Completed(0)

    # -- modules
    def _dkms(self, argv: list[str]) -> Completed:
        version = argv[2].rpartition("/")[2]
        if version in self.unbuildable:
            return Completed(10, "", f"Error! Bad return status for module build on {KERNEL}")
        module = f"/var/lib/dkms/nvidia/{version}/{KERNEL}/x86_64/module/nvidia.ko"
        hostroot.put(self.root, module, "")
        return Completed(0)

    def _modprobe(self, argv: list[str]) -> Completed:
        version_file = self.root / "proc/driver/nvidia/version"
        if "-r" in argv:
            if self.module_stays:
                return Completed(1, "", "modprobe: FATAL: Module nvidia is in use.")
            version_file.unlink(missing_ok=True)
            return Completed(0)
        found = self.host.glob("/var/lib/dkms/nvidia/*/*/*/module/nvidia.ko")
        version = found[0].split("/")[5] if found else ""
        if version in self.broken or not version:
            return Completed(1, "", f"modprobe: ERROR: could not insert 'nvidia' {version}")
        self.load(version)
        return Completed(0)

    def load(self, version: str) -> None:
        """What a boot does too."""
        text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Wed Oct  1 2025\n"
        hostroot.put(self.root, "/proc/driver/nvidia/version", text)
        lines = "" if version in self.mute else f"{version}, GPU-1\n{version}, GPU-2\n"
        hostroot.put(self.root, "/sim/nvidia-smi", lines)
        hostroot.put(self.root, "/usr/bin/nvidia-smi", hostroot.SCRIPT % hostroot.NVIDIA_SMI, 0o755)


def _split(exact: str) -> tuple[str, str]:
    name, _sign, version = exact.partition("=")
    return name, version
