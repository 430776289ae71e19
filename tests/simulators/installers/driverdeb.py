# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated driver as Debian packages, split and named as in NVIDIA's repository for Debian.

What builds and loads kernel modules comes along as a stand-in: ``dkms`` with its places, words
and exit codes, and by a line of modprobe.d what the kernel says to ``modprobe nvidia``.
"""

from __future__ import annotations

from pathlib import Path

from . import deb, kernelmodule
from .runfile import SOURCES, driver_version, fill_in

REVISION = "1"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
UNITS = "/usr/lib/systemd/system"
MODULE = "/usr/lib/nvidia-sim/module"
KERNEL_PACKAGES = {"open": "nvidia-kernel-open-dkms", "proprietary": "nvidia-kernel-dkms"}
DKMS_VERSION = "3.0.10-8+simulated"
MODPROBE = f"install nvidia {MODULE} load\nremove nvidia {MODULE} unload\n"
# A boot loads no other module than `modprobe` would.
CHECK_AT_BOOT = f"[Service]\nExecStartPre={MODULE} check\n"
FABRIC_UNIT = """\
[Unit]
Description=NVIDIA fabric manager service (simulated)
After=nvidia-sim-module.service

[Service]
ExecStartPre=/usr/bin/nv-fabricmanager --check
ExecStart=/usr/bin/nv-fabricmanager

[Install]
WantedBy=multi-user.target
"""
SCRIPT = "#!/bin/sh\nset -e\n{}\n"
RELOAD = SCRIPT.format("[ ! -d /run/systemd/system ] || systemctl daemon-reload")
LDCONFIG = SCRIPT.format("ldconfig")
# As dh_dkms writes it: a kernel without headers is passed over, and the installation goes on.
BUILD = """\
[ "$1" = configure ] || exit 0
dkms add nvidia/{version}
if [ -e "/lib/modules/$(uname -r)/build/Makefile" ]; then
    dkms install nvidia/{version} -k "$(uname -r)"
else
    echo "Module build for kernel $(uname -r) was skipped since the kernel headers for this kernel"
    echo "do not seem to be installed."
fi"""
Files = dict[str, tuple[str | bytes, int]]


def _unit_scripts(unit: str, enable: bool) -> dict[str, str]:
    """What debhelper adds for a unit; NVIDIA's own enable no daemon."""
    on = f'[ "$1" != configure ] || systemctl enable {unit}\n' if enable else ""
    return {
        "postinst": SCRIPT.format(f"{on}systemctl daemon-reload"),
        "prerm": SCRIPT.format(f'[ "$1" != remove ] || systemctl disable --now {unit}'),
        "postrm": RELOAD,
    }


def _library(driver: Path, version: str, name: str, package: str) -> deb.Package:
    file = f"{name}.so.{upstream(version)}"
    return deb.Package(
        package,
        f"NVIDIA driver, {name} (simulated)",
        version,
        files={f"{LIBRARIES}/{file}": ((driver / "lib" / file).read_bytes(), 0o755)},
        links={f"{LIBRARIES}/{name}.so.1": file, f"{LIBRARIES}/{name}.so": f"{name}.so.1"},
        scripts={"postinst": LDCONFIG, "postrm": LDCONFIG},
    )


def upstream(version: str) -> str:
    return version.rpartition("-")[0]


def _program(driver: Path, name: str) -> Files:
    return {f"/usr/bin/{name}": ((driver / "bin" / name).read_bytes(), 0o755)}


def _unit(driver: Path, name: str) -> Files:
    (found,) = driver.rglob(name)
    return {f"{UNITS}/{name}": (found.read_bytes(), 0o644)}


def _payload(name: str, **values: str) -> str:
    return fill_in((SOURCES / name).read_text(encoding="utf-8"), values)


def _kernel_support(driver: Path, version: str) -> deb.Package:
    share = driver / "share/nvidia-sim"
    data: Files = {
        f"/usr/share/nvidia-sim/{path.relative_to(share)}": (path.read_bytes(), 0o644)
        for path in sorted(share.rglob("*"))
        if path.is_file()
    }
    unit = "nvidia-sim-module.service"
    return deb.Package(
        "nvidia-kernel-support",
        "NVIDIA driver, what loads its kernel module (simulated)",
        version,
        files={
            **data,
            **_program(driver, "nvidia-sim-module"),
            **_unit(driver, unit),
            f"{UNITS}/{unit}.d/dkms.conf": (CHECK_AT_BOOT, 0o644),
            MODULE: (_payload("module.sh"), 0o755),
            "/usr/lib/modprobe.d/nvidia-sim.conf": (MODPROBE, 0o644),
        },
        scripts=_unit_scripts(unit, enable=True),
    )


def _kernel_module(version: str, flavour: str) -> deb.Package:
    number = upstream(version)
    source = f"/usr/src/nvidia-{number}"
    (other,) = {*KERNEL_PACKAGES.values()} - {KERNEL_PACKAGES[flavour]}
    configuration = f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{number}"\nAUTOINSTALL="yes"\n'
    return deb.Package(
        KERNEL_PACKAGES[flavour],
        f"NVIDIA driver, {flavour} kernel module for DKMS (simulated)",
        version,
        relations={
            "Depends": f"dkms, nvidia-kernel-support (= {version})",
            "Conflicts": other,
            "Replaces": other,
        },
        files={
            f"{source}/dkms.conf": (configuration, 0o644),
            **{
                f"{source}/{name}": (content, 0o644)
                for name, content in kernelmodule.nvidia_modules(number, flavour).items()
            },
        },
        scripts={
            "postinst": SCRIPT.format(BUILD.format(version=number)),
            "prerm": SCRIPT.format(f"dkms remove nvidia/{number} --all || true"),
        },
    )


def _fabric(version: str) -> list[deb.Package]:
    number = upstream(version)
    branch = number.partition(".")[0]
    same = {"Provides": "{0}", "Conflicts": "{0}", "Replaces": "{0}"}

    def relations(name: str) -> dict[str, str]:
        return {key: value.format(name) for key, value in same.items()}

    return [
        deb.Package(
            f"nvidia-fabricmanager-{branch}",
            "NVIDIA Fabric Manager (simulated)",
            version,
            relations=relations("nvidia-fabricmanager"),
            files={
                "/usr/bin/nv-fabricmanager": (_payload("fabricmanager.sh", VERSION=number), 0o755),
                f"{UNITS}/nvidia-fabricmanager.service": (FABRIC_UNIT, 0o644),
            },
            scripts=_unit_scripts("nvidia-fabricmanager.service", enable=False),
        ),
        deb.Package(
            f"libnvidia-nscq-{branch}",
            "NVSwitch configuration and query library (stand-in)",
            version,
            relations=relations("libnvidia-nscq"),
            files={f"{LIBRARIES}/libnvidia-nscq.so.{number}": ("stand-in\n", 0o644)},
        ),
    ]


def packages(driver: Path) -> list[deb.Package]:
    """What the repository has of the simulated driver in *driver*."""
    version = f"{driver_version(driver)}-{REVISION}"
    kernels = " | ".join(f"{name} (= {version})" for name in KERNEL_PACKAGES.values())
    needed = ("libcuda1", "libnvidia-ml1", "nvidia-persistenced")
    same = [f"{name} (= {version})" for name in needed]
    daemon = "nvidia-persistenced.service"
    return [
        deb.Package(
            "dkms",
            "Stand-in for dkms: copies prebuilt objects",
            DKMS_VERSION,
            files={"/usr/sbin/dkms": (_payload("dkms.sh"), 0o755)},
        ),
        _library(driver, version, "libcuda", "libcuda1"),
        _library(driver, version, "libnvidia-ml", "libnvidia-ml1"),
        _kernel_support(driver, version),
        *(_kernel_module(version, flavour) for flavour in KERNEL_PACKAGES),
        deb.Package(
            "nvidia-persistenced",
            "NVIDIA driver, persistence daemon (simulated)",
            version,
            relations={"Depends": f"nvidia-kernel-support (= {version})"},
            files={**_program(driver, "nvidia-persistenced"), **_unit(driver, daemon)},
            scripts=_unit_scripts(daemon, enable=False),
        ),
        deb.Package(
            "nvidia-driver-cuda",
            "NVIDIA driver for computing (simulated)",
            version,
            relations={"Depends": ", ".join([*same, kernels])},
            files={**_program(driver, "nvidia-smi"), **_program(driver, "simgpu")},
        ),
        *_fabric(version),
    ]


def pack(driver: Path, out: Path) -> list[Path]:
    """Write the packages of the simulated driver in *driver* into the repository *out*."""
    out.mkdir(parents=True, exist_ok=True)
    written = [deb.build(package, out) for package in packages(driver)]
    deb.index(out)
    return written
