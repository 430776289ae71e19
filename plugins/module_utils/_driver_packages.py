# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""The driver as packages: which ones, of which version, and what DKMS has made of them.

A package of the driver may depend on another of exactly its version, and apt takes for that
one the newest it knows. So the version is asked for with each name, and pinned for all of them as
long as the driver is ours; the pin also keeps an unattended upgrade from changing the libraries
under a module that runs.
"""

from __future__ import annotations

import typing as t

from ._host import Host

RUN, PACKAGES = "run", "packages"
# For computing, without a display: by family of systems and kernel module.
NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("debian", "open"): ("nvidia-driver-cuda", "nvidia-kernel-open-dkms"),
    ("debian", "proprietary"): ("nvidia-driver-cuda", "nvidia-kernel-dkms"),
    ("ubuntu", "open"): ("nvidia-headless-{branch}-open", "nvidia-utils-{branch}"),
    ("ubuntu", "proprietary"): ("nvidia-headless-{branch}", "nvidia-utils-{branch}"),
    ("rpm", "open"): ("nvidia-driver-cuda", "kmod-nvidia-open-dkms"),
    ("rpm", "proprietary"): ("nvidia-driver-cuda", "kmod-nvidia-latest-dkms"),
}
PIN_FILE = "/etc/apt/preferences.d/flexai-xpu-nvidia-driver.pref"
# Above 1000 a pin takes a package back to an older version, too.
PIN_TEXT = """\
# Written by flexai.xpu: all packages of the driver are of one version, until the role changes it.
Package: *nvidia* libcuda* libnv* cuda-drivers*
Pin: version {version}*
Pin-Priority: 1001
"""
SIGNING_FILE = "/etc/dkms/framework.conf.d/flexai-xpu.conf"
SIGNING_TEXT = """\
# Written by flexai.xpu: what DKMS signs the kernel modules with, for Secure Boot.
mok_signing_key={key}
mok_certificate={certificate}
"""
# What to do where no repository has the packages.
REMEDY = (
    "add the vendor's repository (or a mirror of it) to the host, take a nvidia_driver_version "
    "that it has, or set nvidia_driver_packages to the names there."
)
# Some packagers register the module as nvidia, others as nvidia-current or nvidia-open.
DKMS_TREES = "/var/lib/dkms/nvidia*"


def branch(version: str) -> str:
    return version.split(".", 1)[0]


def in_branch(names: t.Iterable[str], version: str) -> list[str]:
    """*names* as the site or the table writes them, with ``{branch}`` filled in."""
    return [name.replace("{branch}", branch(version)) for name in names]


def names(system: str, flavour: str, version: str) -> list[str]:
    family = system if system in ("debian", "ubuntu") else "rpm"
    return in_branch(NAMES[(family, flavour)], version)


def pin(manager: str, version: str) -> str:
    """The text of the pin; empty where the manager follows a version by itself (dnf)."""
    return PIN_TEXT.format(version=version) if manager == "dpkg" else ""


# -- DKMS ------------------------------------------------------------------------------------


def registered(host: Host, version: str) -> str:
    """The name by which DKMS knows the driver's module; empty where it doesn't."""
    found = host.glob(f"{DKMS_TREES}/{version}")
    return found[0].split("/")[-2] if found else ""


def built(host: Host, version: str, release: str) -> bool:
    """Whether DKMS has built the module for a kernel."""
    return bool(host.glob(f"{DKMS_TREES}/{version}/{release}/*/module/nvidia*.ko*"))
