# SPDX-License-Identifier: GPL-3.0-or-later
"""The node roles on systemd hosts: there and back without a trace, and a daemon that refuses."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from e2e import snapshot
from e2e.drivers import NEWER as NEW
from e2e.drivers import OLDER as OLD
from e2e.drivers import with_older_driver, with_toolkit_of_document_000
from e2e.nodeplay import (
    PLAYBOOK,
    ROOT,
    Run,
    changes,
    driver_variables,
    in_force,
    look,
    play,
    role,
    run_site,
    write_play,
)
from simulators.installers.cudarun import VERSION as CUDA
from testbed import artefacts
from testbed.hosts import Host, Testbed
from testbed.suite import fresh_hosts

TOPOLOGY = ROOT / "tests/testbed/topologies/node-roles.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-roles"
RUNTIMES = {"nvidia", "nvidia-cdi"}
COMPLAINT = "the test refuses this configuration"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@dataclass(frozen=True)
class Engine:
    """One of the two daemons: where its configuration lies, and how the test breaks it."""

    host: str
    name: str
    unit: str
    ours: str  # a shell condition: our configuration is there
    failure: str  # the whole message, but for what the daemon said


CONTAINERD = Engine(
    host="cont1",
    name="containerd",
    unit="containerd.service",
    ours="test -e /etc/containerd/conf.d/flexai-xpu.toml",
    failure="containerd did not come back with /etc/containerd/conf.d/flexai-xpu.toml; its former "
    "files are in place again, and it runs with them. It said: ",
)
DOCKER = Engine(
    host="dock1",
    name="docker",
    unit="docker.service",
    ours="grep -q nvidia-cdi /etc/docker/daemon.json",
    failure="dockerd did not take the runtimes nvidia, nvidia-cdi; /etc/docker/daemon.json has its "
    "former text again, and dockerd runs with it. It said: ",
)
# In the order of installation, which is the verdict's too.
ROLES = ("nvidia_driver", "cuda_toolkit", "container_toolkit", "container_runtime", "xpu_runtime")
# A start and a reload both end badly as long as our configuration is there.
BREAKAGE = """\
[Service]
ExecStartPre=/bin/sh -c 'if {ours}; then echo {complaint}; exit 1; fi'
ExecReload=
ExecReload=/bin/sh -c 'if {ours}; then echo {complaint}; exit 1; fi'
"""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with fresh_hosts(TOPOLOGY, NAME) as made:
        # No role of a testbed means containerd alone.
        made.host(CONTAINERD.host).exec(["systemctl", "enable", "--now", CONTAINERD.unit])
        yield made


@pytest.fixture(params=[CONTAINERD, DOCKER], ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found


@pytest.fixture(scope="module")
def manifest() -> Path:
    """What `make artefacts` makes, and made before this suite in `make test-integration`."""
    directory = ROOT / "build/artefacts"
    if not (directory / "manifest.yml").exists():
        artefacts.publish_all(directory)
    return directory / "manifest.yml"


def run_runtime(tmp_path: Path, host: Host, engine: Engine, entry: str = "main") -> Run:
    tasks = [role("container_runtime", entry)]
    return play(tmp_path, host, tasks, container_runtime_engine=engine.name)


def effective_runtimes(host: Host, engine: Engine) -> set[str]:
    """As the daemon itself says."""
    if engine is DOCKER:
        told = host.exec(["docker", "info", "--format", "{{json .Runtimes}}"]).stdout
        return set(json.loads(told)) & RUNTIMES
    told = host.exec(["containerd", "config", "dump"]).stdout
    return {name for name in RUNTIMES if f"containerd.runtimes.{name}.options]" in told}


def active(host: Host, engine: Engine) -> str:
    return host.exec(["systemctl", "is-active", engine.unit], check=False).stdout.strip()


def test_a_failed_restart_is_undone_and_told_and_the_next_run_converges(
    tmp_path: Path, testbed: Testbed, engine: Engine
) -> None:
    host = testbed.host(engine.host)
    assert active(host, engine) == "active"
    before = look(host)
    drop_in = f"/etc/systemd/system/{engine.unit}.d/break.conf"
    host.put(drop_in, BREAKAGE.format(ours=engine.ours, complaint=COMPLAINT).encode())
    host.exec(["systemctl", "daemon-reload"])
    broken = look(host)

    rc, output = run_runtime(tmp_path, host, engine)
    assert rc != 0
    assert output.count("[ERROR]") == 1, output
    assert engine.failure in output
    assert COMPLAINT in output
    assert f"Remedy: mend what it names (`journalctl -u {engine.unit}` has more)" in output
    assert active(host, engine) == "active"
    assert effective_runtimes(host, engine) == set()
    assert snapshot.differences(broken, look(host)) == []

    host.exec(["rm", "-r", str(Path(drop_in).parent)])
    host.exec(["systemctl", "daemon-reload"])
    rc, output = run_runtime(tmp_path, host, engine)
    assert rc == 0, output
    assert "changed=1" in output
    assert effective_runtimes(host, engine) == RUNTIMES

    rc, output = run_runtime(tmp_path, host, engine)
    assert rc == 0 and "changed=0" in output, output

    rc, output = run_runtime(tmp_path, host, engine, "uninstall")
    assert rc == 0 and "changed=1" in output, output
    assert active(host, engine) == "active"
    assert effective_runtimes(host, engine) == set()
    assert snapshot.differences(before, look(host)) == []


# -- the whole node path, without a network ------------------------------------------------------

# The machine's own address in the testbed's network: it answers, be it by refusing.
ASK_THE_MACHINE = "import socket; socket.create_connection(({gateway!r}, 9), 3)"
# Some of what a check foresees, so that nothing is compared with nothing.
FORESEEN = (
    "packages",
    "/etc/containerd/config.toml",
    "/etc/containerd/conf.d/flexai-xpu.toml",
    "/var/lib/flexai-xpu/originals/containerd-config.toml",
)


@contextmanager
def cut_off(testbed: Testbed, host: Host) -> Iterator[None]:
    """No packet leaves the host; the controller's connection is none of its network."""
    network = ipaddress.ip_network(testbed.subnet)
    ask = ["python3", "-c", ASK_THE_MACHINE.format(gateway=str(network[1]))]
    rule = ["OUTPUT", "!", "-o", "lo", "-j", "DROP"]
    inside = ["nsenter", "--target", str(host.pid()), "--net", "iptables"]
    assert "ConnectionRefused" in host.exec(ask, check=False).stderr
    subprocess.run([*inside, "-I", *rule], check=True)
    try:
        assert "timed out" in host.exec(ask, check=False).stderr
        yield
    finally:
        subprocess.run([*inside, "-D", *rule], check=True)


def for_a_node(manifest: Path, directory: Path) -> Path:
    """*manifest* with what a node needs, and of the images, which are large, one."""
    document = yaml.safe_load(manifest.read_text())
    chosen = [
        {**entry, "source": str(manifest.with_name(entry["source"]))}
        for entry in document["artefacts"]
        if entry["kind"] in ("run", "tarball") or entry["name"] == "vc-controller-manager"
    ]
    made = directory / "manifest.yml"
    made.write_text(yaml.safe_dump({**document, "artefacts": chosen}))
    return made


def write_site(tmp_path: Path, host: Host, **more: object) -> Path:
    """The inventory of a site that is this one host."""
    variables = {
        "ansible_connection": "containers.podman.podman",
        "ansible_host": host.container,
        "ansible_python_interpreter": "/usr/bin/python3",
        "container_runtime_engine": CONTAINERD.name,
        "cuda_toolkit_version": CUDA,
        "preflight_min_free_mib": 512,
        **more,
    }
    nodes = {"hosts": {host.name: variables}}
    groups = {"flexai_nodes": nodes, "flexai_kubernetes": {"hosts": {host.name: {}}}}
    inventory = tmp_path / "site.yml"
    inventory.write_text(yaml.safe_dump({"all": {"children": groups}}))
    return inventory


def test_without_a_network_a_bundle_takes_a_host_there_as_predicted_and_back_without_a_trace(
    tmp_path: Path, testbed: Testbed, manifest: Path
) -> None:
    host, bundle = testbed.host(CONTAINERD.host), tmp_path / "bundle"
    small = str(for_a_node(manifest, tmp_path))
    more = ("-e", f"flexai_bundle={bundle}")
    made = run_site(write_site(tmp_path, host, flexai_manifest=small), "bundle", *more)
    assert made.rc == 0, made.output
    variables = {"flexai_manifest": str(bundle / "manifest.yml"), "flexai_source": "bundle"}
    site = write_site(tmp_path, host, **variables)
    before = look(host)

    with cut_off(testbed, host):
        predicted = run_site(site, "site", "--check", "--diff")
        assert predicted.rc == 0, predicted.output
        assert snapshot.differences(before, look(host)) == []
        done = run_site(site, "site", "--diff")
    assert done.rc == 0, done.output
    assert in_force(host) == NEW
    foreseen = changes(predicted.output)
    assert foreseen == changes(done.output)
    assert {thing.rpartition(" ")[2] for thing in foreseen} >= set(FORESEEN)

    variables |= {
        "container_runtime_engine": CONTAINERD.name,
        "cuda_toolkit_version": CUDA,
    }
    rc, output = play(tmp_path, host, [role(name, "validate") for name in ROLES], **variables)
    assert rc == 0 and "changed=0" in output, output
    assert snapshot.differences(before, look(host))

    removed = run_site(site, "uninstall")
    assert removed.rc == 0 and "changed=6" in removed.output, removed.output
    assert snapshot.differences(before, look(host)) == []
    removed = run_site(site, "uninstall")
    assert removed.rc == 0 and "changed=0" in removed.output, removed.output


# -- a driver that is changed, killed, rolled back; and one that is somebody else's --------------

NOTE = "/var/lib/flexai-xpu/transaction.json"
FAULTS = "/etc/nvidia-sim/fail"
# Ends what the play has started on the host, as a crash of the host would: by number, at a moment
# that a condition names.
KILLER = """\
until {moment}; do sleep 0.02; done
for process in /proc/[0-9]*; do
    case "$(tr '\\0' ' ' < $process/cmdline)" in
    *killer-of-the-test*) ;;
    *AnsiballZ*|*nvidia-installer*|*selfgz*|*NVIDIA-Linux*) kill -9 "${{process##*/}}" ;;
    esac
done
: killer-of-the-test
"""
MOMENTS = {
    "the node is being drained": f"test -e {NOTE}",
    "the installer runs": "pgrep -f '[n]vidia-installer --silent' > /dev/null",
    "it is being judged": f"grep -q validate {NOTE} 2> /dev/null",
}


@pytest.fixture(scope="module")
def two_drivers(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_older_driver(manifest, tmp_path_factory.mktemp("drivers"))


def note_is_there(host: Host) -> bool:
    return host.exec(["test", "-e", NOTE], check=False).rc == 0


def play_until_killed(
    tmp_path: Path, host: Host, moment: str, variables: dict[str, object]
) -> None:
    """The transaction, with SIGKILL for the play and for all that it runs on the host."""
    write_play(tmp_path, host, [role("node_transaction")], variables)
    command = [str(PLAYBOOK), "-i", str(tmp_path / "inventory.yml"), str(tmp_path / "play.yml")]
    with subprocess.Popen(
        command,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as playing:
        host.exec(["sh", "-c", KILLER.format(moment=moment)], timeout=240)
        os.killpg(playing.pid, signal.SIGKILL)
        playing.wait(timeout=60)


@pytest.fixture
def host_with_old_driver(tmp_path: Path, testbed: Testbed, two_drivers: Path) -> Iterator[Host]:
    host = testbed.host(CONTAINERD.host)
    rc, output = play(tmp_path, host, [role("nvidia_driver")], **driver_variables(two_drivers, OLD))
    assert rc == 0, output
    assert in_force(host) == OLD
    yield host
    host.exec(["rm", "-rf", str(Path(FAULTS).parent), NOTE])
    rc, output = play(
        tmp_path, host, [role("nvidia_driver", "uninstall")], **driver_variables(two_drivers, OLD)
    )
    assert rc == 0, output


def test_killed_in_the_middle_of_a_driver_change_the_next_run_takes_it_up(
    tmp_path: Path, host_with_old_driver: Host, two_drivers: Path
) -> None:
    host, former = host_with_old_driver, OLD
    for name, moment in MOMENTS.items():
        version = NEW if former == OLD else OLD
        variables = driver_variables(two_drivers, version)
        play_until_killed(tmp_path, host, moment, variables)
        assert note_is_there(host), name
        rc, output = play(tmp_path, host, [role("node_transaction")], **variables)
        assert rc == 0, f"{name}: {output}"
        assert in_force(host) == version, name
        assert not note_is_there(host), name
        former = version
    rc, output = play(tmp_path, host, [role("nvidia_driver")], **variables)
    assert rc == 0 and "changed=0" in output, output


def test_a_driver_that_does_not_load_gives_way_to_the_former_one(
    tmp_path: Path, host_with_old_driver: Host, two_drivers: Path
) -> None:
    host = host_with_old_driver
    host.put(FAULTS, f"module-load@{NEW}\n".encode())
    variables = driver_variables(two_drivers, NEW)
    rc, output = play(tmp_path, host, [role("node_transaction")], **variables)
    assert rc != 0
    said = " ".join(output.split())
    assert "Required key not available (fault module-load)" in said
    assert f"The former driver {OLD} is in force again" in said
    assert "The node takes pods again." in said
    assert in_force(host) == OLD
    assert not note_is_there(host)
    host.exec(["rm", "-r", str(Path(FAULTS).parent)])
    rc, output = play(tmp_path, host, [role("node_transaction")], **variables)
    assert rc == 0, output
    assert in_force(host) == NEW


def test_the_toolkit_of_document_000_goes_there_and_back_under_its_profile(
    tmp_path: Path, host_with_old_driver: Host, manifest: Path
) -> None:
    host = host_with_old_driver
    wanted = driver_variables(
        with_toolkit_of_document_000(manifest, tmp_path), OLD, flexai_profile="documents"
    )
    before = look(host)
    tasks = [role("container_toolkit"), role("container_toolkit", "validate")]
    rc, output = play(tmp_path, host, tasks, **wanted)
    assert rc == 0, output
    assert "version 1.16.1" in host.exec(["nvidia-ctk", "--version"]).stdout
    assert f"libcuda.so.{OLD}" in host.get("/etc/cdi/nvidia.yaml").decode()
    rc, output = play(tmp_path, host, tasks, **wanted)
    assert rc == 0 and "changed=0" in output, output
    rc, output = play(tmp_path, host, [role("container_toolkit", "uninstall")], **wanted)
    assert rc == 0, output
    assert snapshot.differences(before, look(host)) == []


PACKAGE = """\
set -e
mkdir -p /tmp/deb/DEBIAN /tmp/deb/usr/lib/x86_64-linux-gnu
echo 'not a library' > /tmp/deb/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14
ln -s libcuda.so.550.54.14 /tmp/deb/usr/lib/x86_64-linux-gnu/libcuda.so.1
cat > /tmp/deb/DEBIAN/control <<END
Package: nvidia-driver-550
Version: 550.54.14-1
Architecture: amd64
Maintainer: Test <t@example.org>
Description: stand-in
END
dpkg-deb --build /tmp/deb /tmp/driver.deb
dpkg --install /tmp/driver.deb
rm -r /tmp/deb /tmp/driver.deb
"""


def test_a_driver_of_the_package_manager_is_refused_or_adopted_and_never_touched(
    tmp_path: Path, testbed: Testbed, manifest: Path
) -> None:
    host = testbed.host(CONTAINERD.host)
    host.exec(["sh", "-c", PACKAGE])
    try:
        before = look(host)
        probe: dict[str, object] = {"flexai.xpu.node_probe": {}, "register": "seen"}
        show: dict[str, object] = {"ansible.builtin.debug": {"msg": "{{ seen.plan[0] }}"}}
        wanted = {"flexai_manifest": str(manifest), "container_runtime_engine": "containerd"}

        rc, output = play(tmp_path, host, [probe, show, role("nvidia_driver")], **wanted)
        assert rc != 0
        said = " ".join(output.split())
        assert '"stance": "refuse"' in said and '"owner": "packages of dpkg"' in said
        assert (
            "driver 550.54.14 belongs to the package manager (nvidia-driver-550), 580.95.05 is "
            "wanted; set nvidia_driver_version: 550.54.14 to use it as it is, or remove these"
        ) in said
        # The installer was fetched into the cache of artefacts, which no snapshot looks at.
        assert snapshot.differences(before, look(host)) == []

        adopting = {**wanted, "nvidia_driver_version": "550.54.14"}
        rc, output = play(tmp_path, host, [probe, show], **adopting)
        assert rc == 0 and '"stance": "adopt"' in output, output

        rc, output = play(tmp_path, host, [role("nvidia_driver", "uninstall")], **adopting)
        assert rc == 0 and "changed=0" in output, output
        assert "driver 550.54.14: not installed by flexai.xpu" in output
        assert snapshot.differences(before, look(host)) == []
    finally:
        host.exec(["dpkg", "--purge", "nvidia-driver-550"])
