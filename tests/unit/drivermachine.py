# SPDX-License-Identifier: GPL-3.0-or-later
"""A host root whose driver really changes: installers, module, daemons and initramfs as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.modules import nvidia_driver

from . import hostroot

CACHE = "/var/cache/flexai-xpu"
LIBCUDA = "usr/lib/x86_64-linux-gnu/libcuda.so.1"
PROGRAMS = ("sh", "systemctl", "update-initramfs")


class Machine:
    """What happens stands in the root, so that it outlives a killed run; calls are kept."""

    def __init__(self, root: Path, cards: int = 2) -> None:
        self.root = hostroot.bare(root, cards)
        self.calls: list[list[str]] = []
        # Versions whose installer fails, after it has removed what was there.
        self.broken: set[str] = set()
        # Versions that install well and then don't reach the cards.
        self.mute: set[str] = set()
        for name in PROGRAMS:
            hostroot.put(root, f"/usr/bin/{name}", "", 0o755)

    @property
    def host(self) -> Host:
        return Host(str(self.root), runner=self.run)

    def installer(self, version: str) -> str:
        """The installer of a version, where artefacts lie on a host."""
        scratch = hostroot.put(self.root, "/scratch", version)
        path = f"{CACHE}/{hostroot.digest(scratch)}/NVIDIA-{version}.run"
        hostroot.put(self.root, path, version)
        scratch.unlink()
        return path

    def params(self, version: str, **more: Any) -> dict[str, Any]:
        return {
            "version": version,
            "installer": self.installer(version),
            "kernel_module_type": "",
            "persistenced": True,
            "allow_downgrade": False,
            "signing_key": "",
            "signing_certificate": "",
            "state": "present",
            **more,
        }

    def converge(self, version: str, check: bool = False, **more: Any) -> dict[str, Any]:
        return nvidia_driver.converge(self.host, self.params(version, **more), check)

    @property
    def programs_run(self) -> list[str]:
        return [" ".join(call) for call in self.calls]

    def run(self, argv: Sequence[str], _timeout_s: float) -> Completed:
        name = Path(argv[0]).name
        self.calls.append([name, *argv[1:]])
        answer: Completed = getattr(self, "_" + name.replace("-", "_"))(list(argv))
        return answer

    def _gone(self) -> None:
        for path in (LIBCUDA, "usr/bin/nvidia-uninstall", "proc/driver/nvidia/version"):
            (self.root / path).unlink(missing_ok=True)

    def _sh(self, argv: list[str]) -> Completed:
        version = Path(argv[1]).read_text()
        self._gone()
        if version in self.broken:
            return Completed(1, "", f"ERROR: {version} does not build")
        hostroot.install_driver(self.root, version, ours=False)
        if version in self.mute:
            hostroot.put(self.root, "/sim/nvidia-smi", "")
        return Completed(0)

    def _nvidia_smi(self, _argv: list[str]) -> Completed:
        text = (self.root / "sim/nvidia-smi").read_text()
        return Completed(0, text) if text else Completed(6, "", "No devices were found")

    def _nvidia_uninstall(self, _argv: list[str]) -> Completed:
        self._gone()
        return Completed(0)

    def _systemctl(self, argv: list[str]) -> Completed:
        if "enable" in argv:
            hostroot.enable_persistenced(self.root)
        return Completed(0)

    def _update_initramfs(self, _argv: list[str]) -> Completed:
        """The initramfs knows what stood in modprobe.d when it was made."""
        file = self.root / "etc/modprobe.d/flexai-xpu-nouveau.conf"
        hostroot.put(self.root, "/boot/initrd.img", file.read_text() if file.exists() else "")
        return Completed(0)
