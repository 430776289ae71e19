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

from . import _packages as packages
from ._errors import XpuError
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
# Some packagers register the module as nvidia, others as nvidia-current or nvidia-open.
DKMS_TREES = "/var/lib/dkms/nvidia*"
QUERY_LIMIT_S = 300


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


# -- repositories ----------------------------------------------------------------------------


def offered(host: Host, manager: str, name: str) -> list[str]:
    """The exact versions of a package that the host's repositories have, newest first."""
    if manager == "dpkg":
        done = host.run(["apt-cache", "madison", name], timeout_s=QUERY_LIMIT_S)
        lines = (line.split("|") for line in done.out.splitlines())
        return [line[1].strip() for line in lines if len(line) > 1]
    form = "%{version}-%{release}"
    argv = ["dnf", "--quiet", "repoquery", "--queryformat", f"{form}\\n", name]
    done = host.run(argv, timeout_s=QUERY_LIMIT_S)
    return [line.strip() for line in done.out.splitlines() if line.strip()][::-1]


def _known(host: Host, manager: str, asked: t.Sequence[str], version: str) -> dict[str, list[str]]:
    """Name → those of its versions that are upstream's *version*."""
    return {
        name: [each for each in offered(host, manager, name) if packages.upstream(each) == version]
        for name in asked
    }


def refresh_argv(manager: str) -> list[str]:
    return ["apt-get", "update"] if manager == "dpkg" else ["dnf", "--quiet", "makecache"]


def resolve(host: Host, manager: str, asked: t.Sequence[str], version: str) -> list[str]:
    """Each name with the exact version, as the manager takes it. The lists of the repositories are
    read anew only where they lack something."""
    found = _known(host, manager, asked, version)
    if not all(found.values()):
        host.run(refresh_argv(manager), timeout_s=QUERY_LIMIT_S)
        found = _known(host, manager, asked, version)
    lacking = [name for name, versions in found.items() if not versions]
    if lacking:
        offers = {name: offered(host, manager, name) for name in lacking}
        told = "; ".join(
            f"{name}: {', '.join(versions) if versions else 'in none'}"
            for name, versions in offers.items()
        )
        raise XpuError(
            f"No repository of the host has version {version} of {', '.join(lacking)} ({told}). "
            "Nothing was changed.",
            "add the vendor's repository (or a mirror of it) to the host, take a "
            "nvidia_driver_version that it has, or set nvidia_driver_packages to the names there.",
        )
    sign = "=" if manager == "dpkg" else "-"
    return [f"{name}{sign}{versions[0]}" for name, versions in found.items()]


def install_argv(manager: str, exact: t.Sequence[str]) -> list[str]:
    """Also where that means an older version, or that one flavour gives way to another."""
    argv = packages.install_argv(manager, exact)
    more = "--allow-downgrades" if manager == "dpkg" else "--allowerasing"
    return [*argv[:2], more, *argv[2:]]


def trial_argv(manager: str, exact: t.Sequence[str]) -> list[str]:
    """What the manager would install, told and not done."""
    if manager == "dpkg":
        return ["apt-get", "install", "--simulate", "--no-install-recommends", *exact]
    return ["dnf", "install", "--assumeno", *exact]


# -- DKMS ------------------------------------------------------------------------------------


def registered(host: Host, version: str) -> str:
    """The name by which DKMS knows the driver's module; empty where it doesn't."""
    found = host.glob(f"{DKMS_TREES}/{version}")
    return found[0].split("/")[-2] if found else ""


def built(host: Host, version: str, release: str) -> bool:
    """Whether DKMS has built the module for a kernel."""
    return bool(host.glob(f"{DKMS_TREES}/{version}/{release}/*/module/nvidia*.ko*"))
