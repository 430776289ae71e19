# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated driver as rpm packages, split and named as in NVIDIA's repositories for rpm."""

from __future__ import annotations

from pathlib import Path

from . import driverfiles, rpm
from .deb import Files
from .runfile import driver_version

# NVIDIA's have it, so that they go before a distribution's own.
EPOCH = "3"
LIBRARIES = "/usr/lib64"
# The package, and the name by which DKMS knows its module.
KERNEL_PACKAGES = {
    "open": ("kmod-nvidia-open-dkms", "nvidia-open"),
    "proprietary": ("kmod-nvidia-latest-dkms", "nvidia"),
}
DKMS_VERSION = "3.0.13"
LDCONFIG = {"post": "ldconfig", "postun": "ldconfig"}
# As in the vendor's: a module that can't be built does not keep the package out.
BUILD = "dkms add {name}/{version} || :\ndkms install {name}/{version} -k $(uname -r) || :"
Relations = tuple[tuple[str, str], ...]


def _same(number: str, *names: str, field: str = "Requires") -> Relations:
    return tuple((field, f"{name} = {EPOCH}:{number}-{rpm.REVISION}") for name in names)


def _unit_scripts(unit: str, *, enable: bool) -> dict[str, str]:
    on = f"systemctl enable {unit}\n" if enable else ""
    return {
        "post": f"{on}systemctl daemon-reload",
        "preun": f'[ "$1" -ne 0 ] || systemctl disable --now {unit}',
        "postun": "systemctl daemon-reload",
    }


def _package(
    name: str,
    what: str,
    number: str,
    files: Files,
    relations: Relations = (),
    links: dict[str, str] | None = None,
    scripts: dict[str, str] | None = None,
) -> rpm.Package:
    return rpm.Package(
        name,
        f"NVIDIA driver, {what} (simulated)",
        number,
        relations=(("Epoch", EPOCH), *relations),
        files=files,
        links=links or {},
        scripts=scripts or {},
    )


def _library(driver: Path, number: str, name: str, package: str) -> rpm.Package:
    files, links = driverfiles.library(driver, name, number, LIBRARIES)
    return _package(package, name, number, files, links=links, scripts=LDCONFIG)


def _kernel_module(number: str, flavour: str) -> rpm.Package:
    package, name = KERNEL_PACKAGES[flavour]
    others = [other for other, _name in KERNEL_PACKAGES.values() if other != package]
    return _package(
        package,
        f"{flavour} kernel module for DKMS",
        number,
        driverfiles.kernel_module(number, flavour, name),
        (
            ("Requires", "dkms"),
            *_same(number, "nvidia-kmod-common"),
            *_same(number, "nvidia-kmod", field="Provides"),
            *(("Conflicts", other) for other in others),
        ),
        scripts={
            "post": BUILD.format(name=name, version=number),
            "preun": f"dkms remove {name}/{number} --all || :",
        },
    )


def _fabric(number: str) -> list[rpm.Package]:
    """Each branch has packages of its own, of which a host has one."""
    branch = number.partition(".")[0]

    def alone(name: str) -> Relations:
        return tuple((field, name) for field in ("Provides", "Conflicts", "Obsoletes"))

    return [
        _package(
            f"nvidia-fabricmanager-{branch}",
            "Fabric Manager",
            number,
            driverfiles.fabric_manager(number),
            alone("nvidia-fabricmanager"),
            scripts=_unit_scripts(driverfiles.FABRIC, enable=False),
        ),
        _package(
            f"libnvidia-nscq-{branch}",
            "NVSwitch configuration and query library (a file)",
            number,
            driverfiles.nscq(number, LIBRARIES),
            alone("libnvidia-nscq"),
        ),
    ]


def packages(driver: Path) -> list[rpm.Package]:
    """What the repository has of the simulated driver in *driver*."""
    number = driver_version(driver)
    daemon, program = driverfiles.DAEMON_UNIT, driverfiles.program
    needed = ("nvidia-driver-cuda-libs", "libnvidia-ml", "nvidia-persistenced", "nvidia-kmod")
    return [
        rpm.Package(
            "dkms",
            "Stand-in for dkms: copies prebuilt objects",
            DKMS_VERSION,
            files=driverfiles.dkms(),
        ),
        _library(driver, number, "libcuda", "nvidia-driver-cuda-libs"),
        _library(driver, number, "libnvidia-ml", "libnvidia-ml"),
        _package(
            "nvidia-kmod-common",
            "what loads its kernel module",
            number,
            driverfiles.kernel_support(driver),
            scripts=_unit_scripts(driverfiles.MODULE_UNIT, enable=True),
        ),
        *(_kernel_module(number, flavour) for flavour in KERNEL_PACKAGES),
        _package(
            "nvidia-persistenced",
            "persistence daemon",
            number,
            {**program(driver, "nvidia-persistenced"), **driverfiles.unit(driver, daemon)},
            _same(number, "nvidia-kmod-common"),
            scripts=_unit_scripts(daemon, enable=False),
        ),
        _package(
            "nvidia-driver-cuda",
            "for computing",
            number,
            {**program(driver, "nvidia-smi"), **program(driver, "simgpu")},
            _same(number, *needed),
        ),
        *_fabric(number),
    ]
