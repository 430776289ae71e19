# SPDX-License-Identifier: GPL-3.0-or-later
"""A host root with Ascend cards on PCI, on which the simulated packages run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from simulators.ascend.installers import packs

from . import hostroot

DEVICES = {"910b": "0xd802", "310p": "0xd500"}
# What the two programs do here, by the places of their words.
ADD_GROUP = 'echo "$3:x:$2:" >> "$R/etc/group"'
ADD_USER = 'echo "$2:x:$4:$4::$6:/bin/bash" >> "$R/etc/passwd"'


class Machine:
    """``ran`` lists the commands that ran, without the root before their words."""

    def __init__(self, root: Path, *families: str) -> None:
        self.root = root
        self.ran: list[list[str]] = []
        self.cache = root / "cache"
        self.cache.mkdir(parents=True)
        for number, family in enumerate(families):
            card = f"/sys/bus/pci/devices/0000:{0x3B + number:02x}:00.0"
            hostroot.put(root, f"{card}/vendor", "0x19e5\n")
            hostroot.put(root, f"{card}/class", "0x120000\n")
            hostroot.put(root, f"{card}/device", f"{DEVICES[family]}\n")
        hostroot.put(root, "/etc/passwd", "root:x:0:0::/root:/bin/bash\n")
        hostroot.put(root, "/etc/group", "root:x:0:\n")
        hostroot.put(root, "/proc/mounts", "/dev/sda1 / ext4 rw 0 0\n")
        self.boot("first")
        for program, script in (("sh", ""), ("groupadd", ADD_GROUP), ("useradd", ADD_USER)):
            hostroot.put(root, f"/usr/bin/{program}", hostroot.SCRIPT % script, 0o755)
        self.host = Host(str(root), self._run)

    def _run(self, argv: Sequence[str], timeout_s: float) -> Completed:
        """The host's shell is this machine's."""
        words = [word.removeprefix(str(self.root)) for word in argv]
        self.ran.append(words)
        command = ["/bin/sh", *argv[1:]] if words[0] == "/usr/bin/sh" else list(argv)
        environment = {"PATH": os.environ["PATH"], "NPU_SIM_ROOT": str(self.root)}
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def boot(self, name: str) -> None:
        hostroot.put(self.root, "/proc/sys/kernel/random/boot_id", f"{name}\n")

    def fault(self, word: str) -> None:
        hostroot.put(self.root, "/etc/npu-sim/fail", f"{word}\n")

    def healthy(self) -> None:
        (self.root / "etc/npu-sim/fail").unlink()

    def told(self, path: Path) -> str:
        return str(path).removeprefix(str(self.root))

    def driver(self, version: str, firmware: str, chip: str = "910b") -> dict[str, str]:
        """The packages of driver and firmware, made where they aren't."""
        contents = self.root / "driver-contents"
        for name in ("lib/libdcmi.so", "bin/npu-smi", "share/npu-sim/version"):
            hostroot.put(contents, name, "x\n")
        return {
            "driver": self.told(packs.driver(contents, self.cache, version, chip)),
            "firmware": self.told(packs.firmware(self.cache, firmware, chip, version)),
        }

    def cann(self, version: str, chip: str = "910b") -> dict[str, str]:
        return {
            part: self.told(packs.cann(part, self.cache, version, chip, os.uname().machine))
            for part in ("toolkit", "kernels", "nnal")
        }

    def packages_run(self) -> list[str]:
        """Which packages ran since the last question, each with its action."""
        found = [
            f"{words[1].rsplit('/', 1)[1].split('_')[0].rsplit('-', 1)[1]} {words[2]}"
            if "kernels" not in words[1]
            else f"kernels {words[2]}"
            for words in self.ran
            if words[0] == "/usr/bin/sh"
        ]
        self.ran.clear()
        return found
