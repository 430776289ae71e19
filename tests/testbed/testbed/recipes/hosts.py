# SPDX-License-Identifier: GPL-3.0-or-later
"""Host images: one per system, with everything any role needs; a host enables what is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xpubuild import debian
from xpubuild.cache import Cache

from . import openeuler

BASE = (
    "ca-certificates conntrack dbus ethtool iproute2 iptables kmod openssh-server procps python3 "
    "runc socat systemd systemd-sysv"
).split()
COMMON = [*BASE, "containerd", "containernetworking-plugins", "docker.io", "python3-apt"]


@dataclass(frozen=True)
class System:
    """An operating system that hosts can run."""

    suite: str
    packages: tuple[str, ...]


SYSTEMS = {
    "debian12": System("bookworm", (*COMMON, "etcd-server")),
    # Apart from the others, so that no role meets a second container engine where a test has one.
    "debian12-podman": System("bookworm", (*COMMON, "netavark", "podman")),
    # Has Docker 26, whose command is a package of its own; Ubuntu's Docker is 24.
    "debian13": System("trixie", (*COMMON, "docker-cli")),
    # No container engine: a role installs it there, as an rpm.
    "openeuler": System("bookworm", (*BASE, "createrepo-c", "dnf", "rpm")),
    "ubuntu2204": System("jammy", tuple(COMMON)),
    "ubuntu2404": System("noble", tuple(COMMON)),
}


def build(cache: Cache, system: str) -> Path:
    """``rootfs.tar`` of *system*."""
    spec = SYSTEMS[system]
    archive = debian.rootfs(cache, spec.suite, spec.packages)
    return openeuler.build(cache, archive) if system == "openeuler" else archive
