# SPDX-License-Identifier: GPL-3.0-or-later
"""Host images: one per system, with everything any role needs; a host enables what is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xpubuild import debian
from xpubuild.cache import Cache

COMMON = (
    "ca-certificates conntrack containerd containernetworking-plugins dbus docker.io ethtool "
    "iproute2 iptables kmod openssh-server procps python3 python3-apt runc socat systemd "
    "systemd-sysv"
).split()


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
    "ubuntu2404": System("noble", tuple(COMMON)),
}


def build(cache: Cache, system: str) -> Path:
    """``rootfs.tar`` of *system*."""
    spec = SYSTEMS[system]
    return debian.rootfs(cache, spec.suite, spec.packages)
