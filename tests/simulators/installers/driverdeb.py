# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated driver as Debian packages, split and named as in NVIDIA's repository for Debian."""

from __future__ import annotations

from pathlib import Path

from . import deb, driverfiles
from .runfile import driver_version

REVISION = "1"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
KERNEL_PACKAGES = {"open": "nvidia-kernel-open-dkms", "proprietary": "nvidia-kernel-dkms"}
DKMS_VERSION = "3.0.10-8+simulated"
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


def _unit_scripts(unit: str, enable: bool) -> dict[str, str]:
    """What debhelper adds for a unit; NVIDIA's own enable no daemon."""
    on = f'[ "$1" != configure ] || systemctl enable {unit}\n' if enable else ""
    return {
        "postinst": SCRIPT.format(f"{on}systemctl daemon-reload"),
        "prerm": SCRIPT.format(f'[ "$1" != remove ] || systemctl disable --now {unit}'),
        "postrm": RELOAD,
    }


def _library(driver: Path, version: str, name: str, package: str) -> deb.Package:
    files, links = driverfiles.library(driver, name, upstream(version), LIBRARIES)
    return deb.Package(
        package,
        f"NVIDIA driver, {name} (simulated)",
        version,
        files=files,
        links=links,
        scripts={"postinst": LDCONFIG, "postrm": LDCONFIG},
    )


def upstream(version: str) -> str:
    return version.rpartition("-")[0]


def _kernel_support(driver: Path, version: str) -> deb.Package:
    return deb.Package(
        "nvidia-kernel-support",
        "NVIDIA driver, what loads its kernel module (simulated)",
        version,
        files=driverfiles.kernel_support(driver),
        scripts=_unit_scripts(driverfiles.MODULE_UNIT, enable=True),
    )


def _kernel_module(version: str, flavour: str) -> deb.Package:
    number = upstream(version)
    (other,) = {*KERNEL_PACKAGES.values()} - {KERNEL_PACKAGES[flavour]}
    return deb.Package(
        KERNEL_PACKAGES[flavour],
        f"NVIDIA driver, {flavour} kernel module for DKMS (simulated)",
        version,
        relations={
            "Depends": f"dkms, nvidia-kernel-support (= {version})",
            "Conflicts": other,
            "Replaces": other,
        },
        files=driverfiles.kernel_module(number, flavour),
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
            files=driverfiles.fabric_manager(number),
            scripts=_unit_scripts(driverfiles.FABRIC, enable=False),
        ),
        deb.Package(
            f"libnvidia-nscq-{branch}",
            "NVSwitch configuration and query library (stand-in)",
            version,
            relations=relations("libnvidia-nscq"),
            files=driverfiles.nscq(number, LIBRARIES),
        ),
    ]


def packages(driver: Path) -> list[deb.Package]:
    """What the repository has of the simulated driver in *driver*."""
    version = f"{driver_version(driver)}-{REVISION}"
    kernels = " | ".join(f"{name} (= {version})" for name in KERNEL_PACKAGES.values())
    needed = ("libcuda1", "libnvidia-ml1", "nvidia-persistenced")
    same = [f"{name} (= {version})" for name in needed]
    daemon, program = driverfiles.DAEMON_UNIT, driverfiles.program
    return [
        deb.Package(
            "dkms",
            "Stand-in for dkms: copies prebuilt objects",
            DKMS_VERSION,
            files=driverfiles.dkms(),
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
            files={**program(driver, "nvidia-persistenced"), **driverfiles.unit(driver, daemon)},
            scripts=_unit_scripts(daemon, enable=False),
        ),
        deb.Package(
            "nvidia-driver-cuda",
            "NVIDIA driver for computing (simulated)",
            version,
            relations={"Depends": ", ".join([*same, kernels])},
            files={**program(driver, "nvidia-smi"), **program(driver, "simgpu")},
        ),
        *_fabric(version),
    ]


def pack(driver: Path, out: Path) -> list[Path]:
    """Write the packages of the simulated driver in *driver* into the repository *out*."""
    out.mkdir(parents=True, exist_ok=True)
    written = [deb.build(package, out) for package in packages(driver)]
    deb.index(out)
    return written
