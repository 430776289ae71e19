# SPDX-License-Identifier: GPL-3.0-or-later
"""CANN: toolkit, kernels, nnal in their order; what a host can't have is told before a change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_cann as cann
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_state as state
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import ascend_cann as module

from . import hostroot
from .ascendmachine import Machine

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the packages refuse others than root")
OLD, NEW = "8.0.0", "8.1.RC1"
ALL = ["toolkit --full", "kernels --install", "nnal --install"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "host", "910b")


def converge(
    machine: Machine, version: str = NEW, check: bool = False, **more: Any
) -> dict[str, Any]:
    params = {
        "version": version,
        "parts": list(cann.PARTS),
        "chip": "",
        "path": state.PREFIX,
        "packages": machine.cann(version),
        "state": "present",
        **more,
    }
    return module.converge(machine.host, params, check)


def refused(machine: Machine, version: str = NEW, **more: Any) -> str:
    with pytest.raises(XpuError) as caught:
        converge(machine, version, **more)
    return str(caught.value)


def there(machine: Machine) -> tuple[str, str, str]:
    found = state.read_cann(machine.host, os.uname().machine)
    return found.toolkit, found.kernels, found.nnal


@as_root
def test_predicted_there_in_order_silent_and_back(machine: Machine) -> None:
    predicted = converge(machine, check=True)
    assert machine.packages_run() == []
    done = converge(machine)
    assert done["diff"] == predicted["diff"]
    assert machine.packages_run() == ALL
    assert there(machine) == (NEW, NEW, NEW)
    assert not converge(machine)["changed"]
    converge(machine, state="absent")
    assert machine.packages_run() == [
        "nnal --uninstall",
        "kernels --uninstall",
        "toolkit --uninstall",
    ]
    assert there(machine) == ("", "", "")
    assert not (machine.root / "etc/Ascend/ascend_cann_install.info").exists()


@as_root
def test_with_a_driver_the_toolkit_is_installed_beside_it(machine: Machine) -> None:
    hostroot.put(machine.root, f"{state.PREFIX}/driver/version.info", "Version=25.0.rc1.1\n")
    converge(machine)
    assert machine.packages_run()[0] == "toolkit --install"


@as_root
def test_another_version_takes_the_place_of_ours(machine: Machine) -> None:
    converge(machine, OLD)
    converge(machine, NEW)
    assert there(machine) == (NEW, NEW, NEW)
    assert not (machine.root / f"usr/local/Ascend/ascend-toolkit/{OLD}").exists()


@as_root
@pytest.mark.parametrize("part", cann.PARTS)
def test_broken_off_it_is_taken_up(machine: Machine, part: str) -> None:
    machine.fault(f"half-way@{part}")
    assert "killed half-way" in refused(machine)
    machine.healthy()
    machine.packages_run()
    converge(machine)
    left = cann.PARTS[cann.PARTS.index(part) :]
    assert [line.split()[0] for line in machine.packages_run()] == list(left)
    assert there(machine) == (NEW, NEW, NEW)


@as_root
def test_another_place_is_the_sites_choice(machine: Machine) -> None:
    converge(machine, path="/opt/ascend")
    assert there(machine) == (NEW, NEW, NEW)
    assert (machine.root / "opt/ascend/ascend-toolkit/latest").exists()
    told = refused(machine)
    assert "says /opt/ascend, and ascend_cann_path is /usr/local/Ascend" in told
    assert "set ascend_cann_path: /opt/ascend" in told


@as_root
def test_somebody_elses_cann_is_used_or_refused_never_changed(machine: Machine) -> None:
    for path in machine.cann(NEW).values():
        action = "--full" if "toolkit" in path else "--install"
        done = machine.host.run(["sh", machine.host.path(path), action, "--quiet"])
        assert done.rc == 0, done.err
    assert not converge(machine)["changed"]
    assert "was not installed by flexai.xpu, and 8.0.0 with toolkit" in refused(machine, OLD)
    gone = converge(machine, state="absent")
    assert gone["left"] == ["CANN 8.1.RC1: not installed by flexai.xpu"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"chip": "310p"}, "ascend_cann_chip is 310p, and the host has 910b"),
        ({"parts": ["kernels"]}, "lacks toolkit, on which the others rest"),
        ({"path": "/mnt/share/ascend"}, "/mnt/share/ascend is on nfs4, which lacks the file locks"),
    ],
)
def test_what_can_not_work_stops_before_a_change(
    machine: Machine, more: dict[str, Any], text: str
) -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\nserver:/x /mnt/share nfs4 rw 0 0\n"
    hostroot.put(machine.root, "/proc/mounts", mounts)
    assert text in refused(machine, **more)
    assert machine.ran == []


def test_a_host_of_two_families_must_be_told_which_kernels(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "both", "910b", "310p")
    assert "the host has 310p, 910b; set ascend_cann_chip" in refused(machine)


@as_root
def test_kernels_of_another_chip_are_not_the_wanted_ones(machine: Machine) -> None:
    wrong = machine.cann(NEW, "310p")["kernels"]
    told = refused(machine, packages={**machine.cann(NEW), "kernels": wrong})
    assert "kernels of CANN 8.1.RC1 is not under /usr/local/Ascend" in told


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "ext4"), ("/mnt/data/x", "nfs"), ("/mnt/database", "xfs"), ("/mnt/a b", "tmpfs")],
)
def test_file_systems_by_their_mount(path: str, kind: str) -> None:
    mounts = (
        "sda / ext4 rw 0 0\nsrv:/ /mnt/data nfs rw 0 0\nsdb /mnt xfs rw 0 0\n"
        "t /mnt/a\\040b tmpfs rw 0 0\n"
    )
    assert cann.file_system(mounts, path) == kind
