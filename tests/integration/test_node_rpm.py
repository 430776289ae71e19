# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything of NVIDIA's as rpm, on a host that looks like openEuler: playbooks/nvidia.yml takes it
there as predicted, up and back; uninstall.yml leaves what was there before."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e import snapshot
from e2e.drivers import NEWER as NEW
from e2e.drivers import OLDER as OLD
from e2e.drivers import rpm_repository
from e2e.nodeplay import ROOT, changes, in_force, look, play, role, run_site
from simulators.installers.cudarun import VERSION as CUDA
from testbed.hosts import Host
from testbed.recipes import containerd, toolkit, vendor
from testbed.suite import fresh_hosts
from xpubuild.cache import Cache

TOPOLOGY = ROOT / "tests/testbed/topologies/node-rpm.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-rpm"
REPOSITORY = "/etc/yum.repos.d/nvidia.repo"
MIRROR = """\
[nvidia]
name=NVIDIA (mirror of the site)
baseurl=file:///srv/nvidia
gpgcheck=0
"""
FAULTS = "/etc/nvidia-sim/fail"
# How an engine will be configured that isn't there yet no check can tell; that it will be, it says.
UNFORESEEN = {"/etc/containerd/config.toml", "/etc/containerd/conf.d/flexai-xpu.toml"}

# What containerd makes by itself; README of container_engine names it.
LEFT = {"/etc/cni", *(f"/opt/containerd{end}" for end in ("", "/bin", "/lib"))}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """With the vendor's repository among its own, as a site with a mirror has it."""
    archive = tmp_path_factory.mktemp("mirror") / "repository.tar"
    subprocess.run(["tar", "-cf", archive, "-C", rpm_repository(Cache()), "."], check=True)
    with fresh_hosts(TOPOLOGY, NAME) as made:
        found = made.host("rpm1")
        found.put("/srv/nvidia.tar", archive)
        found.exec(["sh", "-c", "mkdir /srv/nvidia && tar -xf /srv/nvidia.tar -C /srv/nvidia"])
        found.put(REPOSITORY, MIRROR.encode())
        found.exec(["dnf", "--quiet", "--assumeyes", "install", "openEuler-release"])
        yield found


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the toolkit's release tarball alone: the rest comes from the repository."""
    (tarball,) = vendor.build(Cache()).glob("nvidia-container-toolkit_*_rpm_*")
    entry = {
        "name": "nvidia-container-toolkit-rpm",
        "version": toolkit.VERSION,
        "arch": "x86_64",
        "kind": "tarball",
        "file": tarball.name,
        "source": str(tarball),
        "sha256": hashlib.sha256(tarball.read_bytes()).hexdigest(),
    }
    made = tmp_path_factory.mktemp("manifest") / "manifest.yml"
    made.write_text(yaml.safe_dump({"version": 1, "artefacts": [entry]}))
    return made


def write_site(tmp_path: Path, host: Host, manifest: Path, version: str) -> Path:
    """The inventory of a site that is this one host, and takes all from its repositories."""
    variables = {
        "ansible_connection": "containers.podman.podman",
        "ansible_host": host.container,
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_manifest": str(manifest),
        "preflight_min_free_mib": 64,
        "nvidia_driver_version": version,
        "nvidia_driver_method": "packages",
        "cuda_toolkit_version": CUDA,
        "cuda_toolkit_method": "packages",
        "container_engine_install": True,
        "container_runtime_engine": "containerd",
        "container_toolkit_method": "packages",
    }
    groups = {
        "flexai_nodes": {"hosts": {host.name: variables}},
        "flexai_kubernetes": {"hosts": {host.name: {}}},
    }
    inventory = tmp_path / f"site-{version}.yml"
    inventory.write_text(yaml.safe_dump({"all": {"children": groups}}))
    return inventory


def packages(host: Host) -> dict[str, str]:
    """What rpm has, with versions."""
    asked = ["rpm", "-qa", "--queryformat", "%{NAME} %{VERSION}\\n"]
    return dict(line.split() for line in host.exec(asked).stdout.splitlines())


def active(host: Host, unit: str) -> bool:
    return host.exec(["systemctl", "is-active", unit], check=False).stdout.strip() == "active"


def assert_driver_is(host: Host, version: str, kernel_package: str) -> None:
    """All packages of the driver, module and Fabric Manager are of one version, and it runs."""
    assert in_force(host) == f"{version}\n{version}"
    branch = version.partition(".")[0]
    there = packages(host)
    ours = {
        name: found for name, found in there.items() if "nvidia" in name and "container" not in name
    }
    assert set(ours.values()) == {version}, ours
    assert {kernel_package, f"nvidia-fabricmanager-{branch}", f"libnvidia-nscq-{branch}"} <= set(
        ours
    )
    release = host.exec(["uname", "-r"]).stdout.strip()
    told = host.exec(["dkms", "status"]).stdout
    assert told.endswith(f"/{version}, {release}, x86_64: installed\n") and told.count("\n") == 1
    assert active(host, "nvidia-fabricmanager.service")


def test_a_host_of_rpms_goes_there_as_predicted_up_back_after_a_fault_and_away_without_a_trace(
    tmp_path: Path, host: Host, manifest: Path
) -> None:
    old, new = (write_site(tmp_path, host, manifest, version) for version in (OLD, NEW))
    before = look(host)
    predicted = run_site(old, "nvidia", "--check", "--diff")
    assert predicted.rc == 0, predicted.output
    assert snapshot.differences(before, look(host)) == []
    done = run_site(old, "nvidia", "--diff")
    assert done.rc == 0, done.output
    foreseen, told = changes(predicted.output), changes(done.output)
    assert {thing: told.pop(thing, None) for thing in foreseen} == foreseen
    assert {thing.rpartition(" ")[2] for thing in told} == UNFORESEEN

    assert_driver_is(host, OLD, "kmod-nvidia-open-dkms")
    assert (
        f"release {CUDA.rpartition('.')[0]},"
        in host.exec(["/usr/local/cuda/bin/nvcc", "-V"]).stdout
    )
    assert packages(host)["containerd"] == containerd.VERSION and active(host, "containerd.service")
    assert packages(host)["nvidia-container-toolkit"] == toolkit.VERSION
    assert f"libcuda.so.{OLD}" in host.get("/etc/cdi/nvidia.yaml").decode()
    again = run_site(old, "nvidia")
    assert again.rc == 0 and "changed=0" in again.output, again.output

    host.put(FAULTS, f"module-load@{NEW}\n".encode())
    failed = run_site(new, "nvidia")
    said = " ".join(failed.output.split())
    assert failed.rc != 0 and "Required key not available (fault module-load)" in said, said
    assert f"The former driver {OLD} is in force again" in said
    assert_driver_is(host, OLD, "kmod-nvidia-open-dkms")

    host.exec(["rm", "-r", str(Path(FAULTS).parent)])
    risen = run_site(new, "nvidia")
    assert risen.rc == 0, risen.output
    assert_driver_is(host, NEW, "kmod-nvidia-open-dkms")

    removed = run_site(new, "uninstall")
    assert removed.rc == 0, removed.output
    left = snapshot.differences(before, look(host))
    assert {line.partition(":")[0] for line in left} == LEFT, left
    removed = run_site(new, "uninstall")
    assert removed.rc == 0 and "changed=0" in removed.output, removed.output


def test_the_toolkit_comes_out_of_its_tarball_where_no_repository_can_be_reached(
    tmp_path: Path, host: Host, manifest: Path
) -> None:
    wanted: dict[str, object] = {"flexai_manifest": str(manifest)}
    away = f"{REPOSITORY}.away"
    host.exec(["mv", REPOSITORY, away])
    before = look(host)
    try:
        rc, output = play(tmp_path, host, [role("container_toolkit")], **wanted)
        assert rc == 0, output
        assert packages(host)["nvidia-container-toolkit"] == toolkit.VERSION
        assert "waits for the reboot" in " ".join(output.split())  # there is no driver
        rc, output = play(tmp_path, host, [role("container_toolkit")], **wanted)
        assert rc == 0 and "changed=0" in output, output
        rc, output = play(tmp_path, host, [role("container_toolkit", "uninstall")], **wanted)
        assert rc == 0, output
        assert snapshot.differences(before, look(host)) == []
    finally:
        host.exec(["mv", away, REPOSITORY])


def test_a_lock_that_another_dnf_holds_is_one_error_and_nothing_is_changed(
    tmp_path: Path, host: Host, manifest: Path
) -> None:
    wanted: dict[str, object] = {
        "flexai_manifest": str(manifest),
        "container_toolkit_method": "packages",
    }
    # As dnf holds it: a file with the number of a process that lives.
    hold = "sleep infinity & echo $! > /var/lib/dnf/rpmdb_lock.pid; echo $!"
    before, holder = look(host), host.exec(["sh", "-c", f"({hold}) 2> /dev/null"]).stdout.strip()
    try:
        rc, output = play(tmp_path, host, [role("container_toolkit")], **wanted)
    finally:
        host.exec(["kill", holder])
    assert rc != 0 and output.count("[ERROR]") == 1, output
    said = " ".join(output.split())
    assert "Another program holds the lock of dnf" in said and f"PID {holder}" in said, said
    assert snapshot.differences(before, look(host)) == []
    # Nobody holds it any more; what was noted for that run is no trace either.
    rc, output = play(tmp_path, host, [role("container_toolkit", "uninstall")], **wanted)
    assert rc == 0, output
