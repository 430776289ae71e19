# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver as packages on a systemd host with NVSwitches: there, up, back; and over a reboot."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e import snapshot
from e2e.drivers import NEWER as NEW
from e2e.drivers import OLDER as OLD
from e2e.drivers import repository
from e2e.nodeplay import ROOT, in_force, look, play, predict, role
from testbed import up
from testbed.hosts import Host
from testbed.suite import fresh_hosts

TOPOLOGY = ROOT / "tests/testbed/topologies/node-packages.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-packages"
LIST = "/etc/apt/sources.list.d/nvidia.list"
READ_IT = [
    "apt-get",
    "update",
    f"--option=Dir::Etc::sourcelist={LIST}",
    "--option=Dir::Etc::sourceparts=-",
]
FAULTS = "/etc/nvidia-sim/fail"
NOTE = "/var/lib/flexai-xpu/transaction.json"
RESUME = "flexai-xpu-resume.service"
BOOT_LIMIT_S = 240

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """With the vendor's repository among its own, as a site with a mirror has it."""
    archive = tmp_path_factory.mktemp("mirror") / "repository.tar"
    source = repository(archive.parent)
    subprocess.run(["tar", "-cf", archive, "-C", source, "."], check=True)
    with fresh_hosts(TOPOLOGY, NAME) as made:
        found = made.host("pack1")
        found.put("/srv/nvidia.tar", archive)
        found.exec(["sh", "-c", "mkdir /srv/nvidia && tar -xf /srv/nvidia.tar -C /srv/nvidia"])
        found.put(LIST, b"deb [trusted=yes] file:/srv/nvidia ./\n")
        found.exec(READ_IT)
        yield found


def wanted(version: str, **more: object) -> dict[str, object]:
    return {
        "nvidia_driver_version": version,
        "nvidia_driver_method": "packages",
        "nvidia_driver_allow_downgrade": True,
        **more,
    }


def packages(host: Host) -> dict[str, str]:
    """The driver's that are installed, with their versions."""
    form = "--showformat=${db:Status-Abbrev} ${Package} ${Version}\\n"
    lines = [line.split() for line in host.exec(["dpkg-query", "--show", form]).stdout.splitlines()]
    return {
        name: version
        for state, name, version in lines
        if state == "ii" and ("nvidia" in name or "libcuda" in name)
    }


def fabric(host: Host) -> str:
    unit = "nvidia-fabricmanager.service"
    return host.exec(["systemctl", "is-active", unit], check=False).stdout.strip()


def boot_id(host: Host) -> str:
    return host.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()


def is_there(host: Host, path: str) -> bool:
    return host.exec(["test", "-e", path], check=False).rc == 0


def test_packages_go_there_as_predicted_up_back_after_a_fault_and_away_without_a_trace(
    tmp_path: Path, host: Host
) -> None:
    driver, before = [role("nvidia_driver")], look(host)
    old = wanted(OLD, nvidia_driver_kernel_module_type="proprietary")
    predicted = predict(tmp_path, host, driver, **old)
    assert predicted.rc == 0 and f"+driver {OLD}" in predicted.output, predicted.output
    assert snapshot.differences(before, look(host)) == []

    rc, output = play(tmp_path, host, driver, **old)
    assert rc == 0, output
    assert in_force(host) == f"{OLD}\n{OLD}"
    assert set(packages(host).values()) == {f"{OLD}-1"}
    assert {"nvidia-kernel-dkms", "nvidia-fabricmanager-575"} <= packages(host).keys()
    release = host.exec(["uname", "-r"]).stdout.strip()
    told = host.exec(["dkms", "status"]).stdout
    assert told == f"nvidia/{OLD}, {release}, x86_64: installed\n"
    assert fabric(host) == "active"
    rc, output = play(tmp_path, host, driver, **old)
    assert rc == 0 and "changed=0" in output, output

    host.put(FAULTS, f"module-load@{NEW}\n".encode())
    rc, output = play(tmp_path, host, driver, **wanted(NEW))
    said = " ".join(output.split())
    assert rc != 0 and "Required key not available (fault module-load)" in said, output
    assert f"The former driver {OLD} is in force again" in said
    assert in_force(host) == f"{OLD}\n{OLD}" and fabric(host) == "active"
    assert set(packages(host).values()) == {f"{OLD}-1"}

    host.exec(["rm", "-r", str(Path(FAULTS).parent)])
    tasks = [*driver, role("nvidia_driver", "validate")]
    rc, output = play(tmp_path, host, tasks, **wanted(NEW))
    assert rc == 0, output
    assert in_force(host) == f"{NEW}\n{NEW}" and fabric(host) == "active"
    assert {"nvidia-kernel-open-dkms", "libnvidia-nscq-580"} <= packages(host).keys()
    assert "575" not in " ".join(packages(host))

    rc, output = play(tmp_path, host, [role("nvidia_driver", "uninstall")], **wanted(NEW))
    assert rc == 0, output
    assert snapshot.differences(before, look(host)) == []


def with_module_that_stays(tmp_path: Path, host: Host) -> None:
    """The older driver runs, and its module will not leave before a boot."""
    host.exec(["rm", "-rf", str(Path(FAULTS).parent)])
    rc, output = play(tmp_path, host, [role("nvidia_driver")], **wanted(OLD))
    assert rc == 0, output
    host.put(FAULTS, b"module-busy\n")


def test_a_reboot_that_is_allowed_is_made_and_the_change_is_finished(
    tmp_path: Path, host: Host
) -> None:
    with_module_that_stays(tmp_path, host)
    before = boot_id(host)
    allowed = wanted(NEW, node_transaction_reboot_ok=True)
    rc, output = play(tmp_path, host, [role("node_transaction")], **allowed)
    assert rc == 0, output
    assert boot_id(host) != before
    assert in_force(host) == f"{NEW}\n{NEW}" and fabric(host) == "active"
    for path in (NOTE, f"/etc/systemd/system/{RESUME}", "/var/lib/flexai-xpu/resume.pyz"):
        assert not is_there(host, path)
    rc, output = play(tmp_path, host, [role("nvidia_driver")], **wanted(NEW))
    assert rc == 0 and "changed=0" in output, output


def test_a_host_booted_by_hand_goes_on_without_a_controller(tmp_path: Path, host: Host) -> None:
    with_module_that_stays(tmp_path, host)
    rc, output = play(tmp_path, host, [role("node_transaction")], **wanted(NEW))
    assert rc != 0
    assert "must be rebooted" in " ".join(output.split()), output
    assert b'"step": "reboot"' in host.get(NOTE)
    assert host.exec(["systemctl", "is-enabled", RESUME]).stdout.strip() == "enabled"

    up.reboot(host)
    deadline = time.monotonic() + BOOT_LIMIT_S
    while is_there(host, f"/etc/systemd/system/{RESUME}"):
        assert time.monotonic() < deadline, host.exec(["journalctl", "-u", RESUME]).stdout
        time.sleep(0.5)
    journal = host.exec(["journalctl", "-u", RESUME, "-o", "cat", "--no-pager"]).stdout
    assert "taken up after the boot, and right" in journal
    assert not is_there(host, NOTE)
    assert in_force(host) == f"{NEW}\n{NEW}"
    rc, output = play(tmp_path, host, [role("nvidia_driver")], **wanted(NEW))
    assert rc == 0 and "changed=0" in output, output
