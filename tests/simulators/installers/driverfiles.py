# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the simulated driver's packages, whatever form they are packed in.

What builds and loads kernel modules comes along as a stand-in: ``dkms`` with its places, words
and exit codes, and by a line of modprobe.d what the kernel says to ``modprobe nvidia``.
"""

from __future__ import annotations

from pathlib import Path

from . import kernelmodule
from .deb import Files
from .runfile import SOURCES, fill_in

UNITS = "/usr/lib/systemd/system"
MODULE = "/usr/lib/nvidia-sim/module"
MODULE_UNIT = "nvidia-sim-module.service"
DAEMON_UNIT = "nvidia-persistenced.service"
FABRIC = "nvidia-fabricmanager.service"
MODPROBE = f"install nvidia {MODULE} load\nremove nvidia {MODULE} unload\n"
# A boot loads no other module than `modprobe` would.
CHECK_AT_BOOT = f"[Service]\nExecStartPre={MODULE} check\n"
FABRIC_UNIT = f"""\
[Unit]
Description=NVIDIA fabric manager service (simulated)
After={MODULE_UNIT}

[Service]
ExecStartPre=/usr/bin/nv-fabricmanager --check
ExecStart=/usr/bin/nv-fabricmanager

[Install]
WantedBy=multi-user.target
"""


def payload(name: str, **values: str) -> str:
    """A script of ``payload/``, filled in."""
    return fill_in((SOURCES / name).read_text(encoding="utf-8"), values)


def program(driver: Path, name: str) -> Files:
    return {f"/usr/bin/{name}": ((driver / "bin" / name).read_bytes(), 0o755)}


def unit(driver: Path, name: str) -> Files:
    (found,) = driver.rglob(name)
    return {f"{UNITS}/{name}": (found.read_bytes(), 0o644)}


def library(driver: Path, name: str, number: str, directory: str) -> tuple[Files, dict[str, str]]:
    """A library of the driver, and the links that lead to it."""
    file = f"{name}.so.{number}"
    content = (driver / "lib" / file).read_bytes()
    links = {f"{directory}/{name}.so.1": file, f"{directory}/{name}.so": f"{name}.so.1"}
    return {f"{directory}/{file}": (content, 0o755)}, links


def dkms() -> Files:
    return {"/usr/sbin/dkms": (payload("dkms.sh"), 0o755)}


def kernel_support(driver: Path) -> Files:
    """What loads the kernel module, and the cards as data."""
    share = driver / "share/nvidia-sim"
    data: Files = {
        f"/usr/share/nvidia-sim/{path.relative_to(share)}": (path.read_bytes(), 0o644)
        for path in sorted(share.rglob("*"))
        if path.is_file()
    }
    return {
        **data,
        **program(driver, "nvidia-sim-module"),
        **unit(driver, MODULE_UNIT),
        f"{UNITS}/{MODULE_UNIT}.d/dkms.conf": (CHECK_AT_BOOT, 0o644),
        MODULE: (payload("module.sh"), 0o755),
        "/usr/lib/modprobe.d/nvidia-sim.conf": (MODPROBE, 0o644),
    }


def kernel_module(number: str, flavour: str, name: str = "nvidia") -> Files:
    """The module's source, under the *name* by which DKMS knows it."""
    source = f"/usr/src/{name}-{number}"
    configuration = f'PACKAGE_NAME="{name}"\nPACKAGE_VERSION="{number}"\nAUTOINSTALL="yes"\n'
    objects = kernelmodule.nvidia_modules(number, flavour)
    return {
        f"{source}/dkms.conf": (configuration, 0o644),
        **{f"{source}/{file}": (content, 0o644) for file, content in objects.items()},
    }


def fabric_manager(number: str) -> Files:
    return {
        "/usr/bin/nv-fabricmanager": (payload("fabricmanager.sh", VERSION=number), 0o755),
        f"{UNITS}/{FABRIC}": (FABRIC_UNIT, 0o644),
    }


def nscq(number: str, directory: str) -> Files:
    return {f"{directory}/libnvidia-nscq.so.{number}": ("stand-in\n", 0o644)}
