# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated vendor files on systemd hosts: installed, rebooted, removed without a trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e import snapshot
from testbed import up
from testbed.hosts import Host, Testbed
from testbed.recipes import vendor
from testbed.suite import fresh_hosts
from testbed.topology import read_topology
from xpubuild.cache import Cache

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "tests/testbed/topologies/installers.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-inst"
HOSTS = [host.name for host in read_topology(TOPOLOGY).hosts]
DOCUMENT_000 = (
    "--silent --accept-license --no-questions --disable-nouveau --install-libglvnd"
    " --no-x-check --no-nouveau-check"
).split()
UNITS = ("nvidia-sim-module", "nvidia-persistenced")
# What a driver leaves outside the trees of every snapshot: devices, sockets, its /proc directory.
LOOK_AROUND = "ls -A /dev /run; grep ' /proc/driver' /proc/mounts || true"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@pytest.fixture(scope="module")
def artefacts() -> Path:
    return vendor.build(Cache())


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with fresh_hosts(TOPOLOGY, NAME) as made:
        yield made


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, testbed: Testbed) -> Host:
    return testbed.host(request.param)


def look(host: Host) -> snapshot.Snapshot:
    """The host as the snapshot tests see it, and around. A reboot is part of these tests, and the
    linker's cache is rewritten by whoever adds a library: neither is a difference."""
    found = snapshot.take(lambda _, *argv: host.exec(argv).stdout, host.name)
    for line in host.exec(["sh", "-c", LOOK_AROUND]).stdout.splitlines():
        found[f"around {line}"] = "there"
    return {
        thing: what
        for thing, what in found.items()
        if not thing.startswith("start of ") and thing != "/etc/ld.so.cache"
    }


def driver_works(host: Host, version: str) -> None:
    """What a site would look at, from the tools and the kernel's side."""
    cards = host.exec(["nvidia-smi", "-L"]).stdout
    for card in host.cards:
        assert card.uuid in cards
    assert host.exec(["modinfo", "-F", "version", "nvidia"]).stdout.strip() == version
    assert version in host.get("/proc/driver/nvidia/version").decode()
    for unit in UNITS:
        assert host.exec(["systemctl", "is-enabled", unit]).stdout.strip() == "enabled"
        assert host.exec(["systemctl", "is-active", unit]).stdout.strip() == "active"
    linked = host.exec(["ldconfig", "-p"]).stdout
    assert "libcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1" in linked


def install_toolkit(host: Host, tarball: Path) -> None:
    host.put("/root/toolkit.tar.gz", tarball)
    host.exec(["tar", "-xzf", "/root/toolkit.tar.gz", "-C", "/root"])
    host.exec(["sh", "-c", "dpkg --install /root/release-*/packages/ubuntu18.04/amd64/*.deb"])


def cdi_spec(host: Host, version: str) -> None:
    """The real nvidia-ctk finds cards, libraries and the daemon's socket by itself."""
    assert "version 1.17.8" in host.exec(["nvidia-ctk", "--version"]).stdout
    host.exec(["nvidia-ctk", "cdi", "generate", "--output=/etc/cdi/nvidia.yaml"])
    spec = yaml.safe_load(host.get("/etc/cdi/nvidia.yaml"))
    names = {device["name"] for device in spec["devices"]}
    assert names >= {card.uuid for card in host.cards} | {"0", "all"}
    mounted = {mount["hostPath"] for mount in spec["containerEdits"]["mounts"]}
    assert "/run/nvidia-persistenced/socket" in mounted
    assert f"/usr/lib/x86_64-linux-gnu/libcuda.so.{version}" in mounted
    host.exec(["rm", "-r", "/etc/cdi"])


def remove_toolkit(host: Host) -> None:
    listed = host.exec(["dpkg-query", "--show", "--showformat", "${Package}\n"]).stdout.split()
    ours = [name for name in listed if name.startswith(("nvidia-container", "libnvidia-cont"))]
    host.exec(["dpkg", "--purge", *ours])
    # Its configuration is written by nvidia-ctk, not owned by a package, as upstream's.
    host.exec(["sh", "-c", "rm -rf /root/release-* /root/toolkit* /etc/nvidia-container-runtime"])


def test_a_fault_on_the_host_is_named_and_leaves_nothing(host: Host, artefacts: Path) -> None:
    (run,) = artefacts.glob("NVIDIA-Linux-x86_64-*.run")
    installer = f"/root/{run.name}"
    host.put(installer, run, 0o755)
    before = look(host)
    host.put("/etc/nvidia-sim/fail", b"headers-missing\n")
    stopped = host.exec([installer, *DOCUMENT_000], check=False)
    host.exec(["rm", "-r", "/etc/nvidia-sim"])
    assert stopped.rc == 1
    assert "Install its headers" in stopped.stderr
    assert snapshot.differences(before, look(host)) == []


def test_install_reboot_uninstall(host: Host, artefacts: Path) -> None:
    (run,) = artefacts.glob("NVIDIA-Linux-x86_64-*.run")
    (tarball,) = artefacts.glob("nvidia-container-toolkit_*_deb_amd64.tar.gz")
    version = run.stem.rpartition("-")[2]
    installer = f"/root/{run.name}"
    host.put(installer, run, 0o755)
    before = look(host)

    host.exec([installer, *DOCUMENT_000])
    driver_works(host, version)
    assert snapshot.differences(before, look(host))
    install_toolkit(host, tarball)
    cdi_spec(host, version)

    up.reboot(host)
    driver_works(host, version)

    remove_toolkit(host)
    busy = host.exec([installer, *DOCUMENT_000], check=False)
    assert busy.rc == 1
    assert "is in use by pid" in busy.stderr
    driver_works(host, version)

    host.exec(["nvidia-uninstall", "--silent"])
    assert snapshot.differences(before, look(host)) == []
