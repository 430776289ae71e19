# SPDX-License-Identifier: GPL-3.0-or-later
"""Ascend driver and firmware: Huawei's order by state, the user, the reboot, and the way back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_driver as driver
from ansible_collections.flexai.xpu.plugins.module_utils import _ascend_state as state
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import ascend_driver as module

from . import hostroot
from .ascendmachine import Machine

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the packages refuse others than root")
OLD = ("24.1.0", "7.5.0.1.129")
NEW = ("25.0.rc1.1", "7.7.0.1.231")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "host", "910b", "910b")


def converge(
    machine: Machine, versions: tuple[str, str] = NEW, check: bool = False, **more: Any
) -> dict[str, Any]:
    params = {
        "version": versions[0],
        "firmware_version": versions[1],
        "user": "HwHiAiUser",
        "uid": 1000,
        "allow_downgrade": False,
        "chip": "",
        "state": "present",
        **machine.driver(*versions),
        **more,
    }
    return module.converge(machine.host, params, check)


def refused(machine: Machine, versions: tuple[str, str] = NEW, **more: Any) -> str:
    with pytest.raises(XpuError) as caught:
        converge(machine, versions, **more)
    return str(caught.value)


def there(machine: Machine) -> tuple[str, str]:
    found = state.read_driver(machine.host)
    return found.driver, found.firmware


@as_root
def test_first_driver_then_firmware_predicted_there_silent_and_back(machine: Machine) -> None:
    predicted = converge(machine, check=True)
    assert machine.packages_run() == []
    done = converge(machine)
    assert done["diff"] == predicted["diff"]
    assert machine.packages_run() == ["driver --full", "firmware --full"]
    assert not converge(machine)["changed"]
    assert converge(machine, state="absent", check=True)["changed"]
    converge(machine, state="absent")
    assert machine.packages_run() == ["firmware --uninstall", "driver --uninstall"]
    assert there(machine) == ("", "")
    assert not converge(machine, state="absent")["changed"]


@as_root
def test_an_upgrade_is_firmware_then_driver(machine: Machine) -> None:
    converge(machine, OLD)
    machine.packages_run()
    converge(machine, NEW)
    assert machine.packages_run() == ["firmware --upgrade", "driver --upgrade"]
    assert there(machine) == NEW


@as_root
def test_the_user_is_there_before_any_package(machine: Machine) -> None:
    converge(machine)
    assert [words[0] for words in machine.ran[:3]] == [
        "/usr/bin/groupadd",
        "/usr/bin/useradd",
        "/usr/bin/sh",
    ]
    assert "HwHiAiUser:x:1000:1000:" in (machine.root / "etc/passwd").read_text()


@as_root
def test_a_reboot_is_due_until_it_was(machine: Machine) -> None:
    assert converge(machine)["reboot_required"]
    assert converge(machine)["reboot_required"], "a second run knows it too"
    machine.boot("second")
    assert not converge(machine)["reboot_required"]


@as_root
def test_a_driver_without_firmware_gets_the_firmware_alone(machine: Machine) -> None:
    machine.fault("half-way@firmware")
    assert "killed half-way" in refused(machine)
    assert there(machine) == (NEW[0], "")
    machine.healthy()
    machine.packages_run()
    converge(machine)
    assert machine.packages_run() == ["firmware --full"]


@as_root
@pytest.mark.parametrize("fault", ["half-way@driver", "disk-full@driver", "busy"])
def test_broken_off_it_is_taken_up(machine: Machine, fault: str) -> None:
    machine.fault(fault)
    assert f"read {state.LOG} on the host" in refused(machine)
    machine.healthy()
    converge(machine)
    assert there(machine) == NEW
    assert not converge(machine)["changed"]


@as_root
def test_a_failed_upgrade_tells_the_way_back_and_it_works(machine: Machine) -> None:
    converge(machine, OLD)
    machine.fault("half-way@driver")
    told = refused(machine, NEW)
    assert "set ascend_driver_version: 24.1.0, ascend_driver_firmware_version: 7.5.0.1.129" in told
    assert "Don't reboot before" in told
    machine.healthy()
    converge(machine, OLD, allow_downgrade=True)
    assert there(machine) == OLD


@as_root
def test_somebody_elses_driver_is_used_or_refused_never_changed(machine: Machine) -> None:
    for path in machine.driver(*NEW).values():
        flags = ("--full", "--quiet", "--install-username=root", "--install-usergroup=root")
        done = machine.host.run(["sh", machine.host.path(path), *flags])
        assert done.rc == 0, done.err
    assert not converge(machine)["changed"]
    assert "set ascend_driver_version and" in refused(machine, OLD)
    gone = converge(machine, state="absent")
    assert gone["left"] == ["driver 25.0.rc1.1: not installed by flexai.xpu"]
    assert there(machine) == NEW


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("passwd", "HwHiAiUser:x:1001:1000::/:/bin/sh\n", "user HwHiAiUser has id 1001, and 1000"),
        ("passwd", "ubuntu:x:1000:1000::/:/bin/sh\n", "id 1000 belongs to user ubuntu"),
        ("group", "HwHiAiUser:x:2000:\n", "group HwHiAiUser has id 2000"),
        ("group", "ubuntu:x:1000:\n", "id 1000 belongs to group ubuntu"),
    ],
)
def test_a_user_that_containers_would_not_know_stops_it(
    machine: Machine, file: str, text: str, told: str
) -> None:
    hostroot.put(machine.root, f"/etc/{file}", text)
    assert told in refused(machine)
    assert machine.ran == []


@as_root
def test_another_number_is_the_sites_choice(machine: Machine) -> None:
    hostroot.put(machine.root, "/etc/passwd", "ubuntu:x:1000:1000::/:/bin/sh\n")
    converge(machine, uid=1100)
    assert "HwHiAiUser:x:1100:" in (machine.root / "etc/passwd").read_text()


def test_what_is_no_host_for_it(tmp_path: Path, machine: Machine) -> None:
    assert "no Ascend accelerator is on PCI" in refused(Machine(tmp_path / "bare"))
    assert "several families (310p, 910b)" in refused(Machine(tmp_path / "both", "910b", "310p"))
    assert "ascend_driver_chip is 310p, and the host has 910b" in refused(machine, chip="310p")
    hostroot.put(machine.root, "/.dockerenv", "")
    assert "this is a container" in refused(machine)


@as_root
def test_the_packages_own_word_about_a_wrong_chip_is_told(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "small", "310p")
    assert "This package is for the chip 910b, and there is none on PCI" in refused(machine)


@as_root
def test_an_older_version_needs_a_word(machine: Machine) -> None:
    converge(machine, NEW)
    assert "set ascend_driver_allow_downgrade: true to go back" in refused(machine, OLD)


def test_without_its_package_it_says_which(machine: Machine) -> None:
    assert "The package of the driver 25.0.rc1.1" in refused(machine, driver=None)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (state.Driver(), ["driver", "firmware"]),
        (state.Driver(*OLD), ["firmware", "driver"]),
        (state.Driver(NEW[0], ""), ["firmware"]),
        (state.Driver(NEW[0], OLD[1]), ["firmware"]),
        (state.Driver("", NEW[1]), ["driver"]),
        (state.Driver(*NEW), []),
    ],
)
def test_order_by_state(found: state.Driver, wanted: list[str]) -> None:
    assert [step.part for step in driver.steps(found, driver.Wanted(*NEW))] == wanted
