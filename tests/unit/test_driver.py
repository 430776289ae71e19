# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA driver: named before any change, changed whole or not at all, taken back."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _kernel as kernel
from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_driver as driver
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.modules import nvidia_driver
from ansible_collections.flexai.xpu.plugins.modules.node_probe import probe

from . import hostroot
from .drivermachine import LIBCUDA, Machine
from .test_writers import snapshot

OLD, NEW = "580.65.06", hostroot.DRIVER
KERNEL = os.uname().release
CERTIFICATE = b"0\x82\x01the certificate in DER"
PEM = (
    b"-----BEGIN CERTIFICATE-----\n"
    + base64.b64encode(CERTIFICATE)
    + b"\n-----END CERTIFICATE-----\n"
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "host")


def desired(version: str = NEW, **more: object) -> dict[str, object]:
    wanted = hostroot.desired()
    wanted["nvidia_driver"] = {**wanted["nvidia_driver"], "version": version, **more}  # type: ignore[dict-item]
    return wanted


def step(host: Host, wanted: dict[str, object]) -> dict[str, str]:
    steps: list[dict[str, str]] = probe(host, "h", wanted)["plan"]
    (found,) = [one for one in steps if one["component"] == "nvidia_driver"]
    return found


# -- named before any change -------------------------------------------------------------------


def put_bytes(root: Path, path: str, content: bytes) -> None:
    hostroot.put(root, path, "")
    (root / path.lstrip("/")).write_bytes(content)


def secure_boot(root: Path, stands_aside: bool = False) -> None:
    put_bytes(root, kernel.SECURE_BOOT, b"\6\0\0\0\1")
    if stands_aside:
        put_bytes(root, kernel.SHIM_STANDS_ASIDE, b"\6\0\0\0\1")


def signing_pair(root: Path, enrolled: bool) -> None:
    secure_boot(root)
    hostroot.put(root, "/etc/keys/mok.key", "secret")
    put_bytes(root, "/etc/keys/mok.pem", PEM)
    ring = b"\7\0\0\0 list " + (CERTIFICATE if enrolled else b"another") + b" end"
    put_bytes(root, f"{kernel.EFI_VARIABLES}/MokListRT-605dab50", ring)


PAIR: dict[str, Any] = {
    "signing_key": "/etc/keys/mok.key",
    "signing_certificate": "/etc/keys/mok.pem",
}


def set_devices(*devices: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for number, device in enumerate(devices, start=1):
            address = f"/sys/bus/pci/devices/0000:{number:02x}:00.0"
            hostroot.put(root, f"{address}/device", f"{device:#06x}\n")

    return change


def nvswitches(root: Path, manager: str = "", nscq: str = "", count: int = 6) -> None:
    for number in range(count):
        address = f"/sys/bus/pci/devices/0000:8{number}:00.0"
        hostroot.put(root, f"{address}/vendor", "0x10de\n")
        hostroot.put(root, f"{address}/device", "0x22a3\n")
        hostroot.put(root, f"{address}/class", "0x068000\n")
    with (root / "var/lib/dpkg/status").open("a") as status:
        if manager:
            status.write(hostroot.package("nvidia-fabricmanager-580", f"{manager}-1"))
        if nscq:
            status.write(hostroot.package("libnvidia-nscq-580", f"{nscq}-1"))


def uses_cards(root: Path, pid: int, name: str, cgroup: str) -> None:
    hostroot.put(root, f"/proc/{pid}/comm", f"{name}\n")
    hostroot.put(root, f"/proc/{pid}/cgroup", f"0::{cgroup}\n")
    (root / f"proc/{pid}/fd").mkdir()
    (root / f"proc/{pid}/fd/5").symlink_to("/dev/nvidia0")


def old_driver(root: Path) -> None:
    hostroot.install_driver(root, OLD)


def old_driver_and(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(root: Path) -> None:
        old_driver(root)
        change(root)

    return both


OBSTACLES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "headers missing": (
        lambda root: (root / f"lib/modules/{KERNEL}/build/Makefile").unlink(),
        {},
        f"no headers of the running kernel {KERNEL} (/lib/modules/{KERNEL}/build leads to none); "
        f"`apt-get install linux-headers-{KERNEL}`",
    ),
    "compiler missing": (
        lambda root: (root / "usr/bin/gcc").unlink(),
        {},
        "no cc to build the kernel module with; `apt-get install gcc make`",
    ),
    "Secure Boot without a key": (
        secure_boot,
        {},
        "set nvidia_driver_signing_key and nvidia_driver_signing_certificate",
    ),
    "Secure Boot with a key that isn't there": (
        secure_boot,
        PAIR,
        "/etc/keys/mok.key and /etc/keys/mok.pem is not on the host",
    ),
    "Secure Boot with a certificate nobody enrolled": (
        lambda root: signing_pair(root, enrolled=False),
        PAIR,
        "/etc/keys/mok.pem is not enrolled; `mokutil --import` it",
    ),
    "the open module on old cards": (
        set_devices(0x1DB4, 0x20B0),
        {"kernel_module_type": "open"},
        "drives no card older than Turing, and 1 of this host's are; set "
        "nvidia_driver_kernel_module_type: proprietary",
    ),
    "the proprietary module on Blackwell": (
        set_devices(0x2901, 0x2901),
        {"kernel_module_type": "proprietary"},
        "cards from Blackwell on (2 of this host's) have the open kernel module only; set "
        "nvidia_driver_kernel_module_type: open",
    ),
    "cards that no flavour drives together": (
        set_devices(0x1DB4, 0x2901),
        {},
        "they can't share a host with cards older than Turing",
    ),
    "a branch that dropped the cards": (
        set_devices(0x1DB4),
        {"version": "590.44.01"},
        "driver 590.44.01 drives no card older than Turing",
    ),
    "NVSwitches without Fabric Manager": (
        nvswitches,
        {},
        f"6 NVSwitches need Fabric Manager and NSCQ of the driver's version, {NEW}; found Fabric "
        "Manager absent (`nvidia-fabricmanager-580`)",
    ),
    "Fabric Manager of another version": (
        lambda root: nvswitches(root, OLD, NEW),
        {},
        f"found Fabric Manager {OLD} (`nvidia-fabricmanager-580`)",
    ),
    "NSCQ of another version": (
        lambda root: nvswitches(root, NEW, OLD),
        {},
        f"found NSCQ {OLD} (`libnvidia-nscq-580`)",
    ),
    "programs outside pods": (
        old_driver_and(lambda root: uses_cards(root, 40, "python3", "/system.slice/x.service")),
        {},
        "programs outside pods use the cards: python3 (pid 40); stop them first",
    ),
    "a downgrade nobody asked for": (
        lambda root: hostroot.install_driver(root, "590.10.01"),
        {},
        "driver 590.10.01 is newer than 580.95.05",
    ),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_an_obstacle_is_named_with_its_remedy_before_any_change(
    case: str, machine: Machine
) -> None:
    change, wanted, words = OBSTACLES[case]
    change(machine.root)
    before = snapshot(machine.root)
    found = step(machine.host, desired(**wanted))
    assert found["action"] == "blocked"
    assert words in found["reason"]
    assert machine.calls == [], "a look at a host starts no program"
    params = machine.params(**{"version": NEW, **wanted})
    with_installer = snapshot(machine.root)
    with pytest.raises(XpuError) as error:
        nvidia_driver.converge(machine.host, params, False)
    assert words in error.value.msg
    assert snapshot(machine.root) == with_installer
    assert before.items() <= with_installer.items()
    assert machine.calls == []


def headers_elsewhere(root: Path) -> None:
    build = root / f"lib/modules/{KERNEL}/build"
    build.rename(root / "headers")
    build.symlink_to("../../../headers")


FINE: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "Secure Boot with an enrolled pair": (lambda root: signing_pair(root, True), PAIR),
    "Secure Boot, and shim stands aside": (lambda root: secure_boot(root, True), {}),
    "old cards get the proprietary module unasked": (set_devices(0x1DB4, 0x1DB4), {}),
    "NVSwitches with all in lockstep": (lambda root: nvswitches(root, NEW, NEW), {}),
    "NVSwitches without NSCQ": (lambda root: nvswitches(root, NEW), {}),
    "headers reached by a link": (
        headers_elsewhere,
        {},
    ),
    "a downgrade that was asked for": (
        lambda root: hostroot.install_driver(root, "590.10.01"),
        {"allow_downgrade": True},
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_what_can_be_done_is_done(case: str, machine: Machine) -> None:
    change, wanted = FINE[case]
    change(machine.root)
    assert step(machine.host, desired(**wanted))["action"] in ("install", "change")
    assert machine.converge(NEW, **wanted)["changed"]
    assert driver.library_version(machine.host) == NEW
    (installer,) = [call for call in machine.calls if call[0] == "sh"]
    signed = [f"--module-signing-secret-key={PAIR['signing_key']}"] if wanted == PAIR else []
    assert [word for word in installer if "signing-secret" in word] == signed
    flavour = "proprietary" if "proprietary" in case else "open"
    assert f"--kernel-module-type={flavour}" in installer


def test_an_unusable_kernel_does_not_trouble_a_driver_that_is_in_force(
    ready_host: tuple[Host, dict[str, object]],
) -> None:
    host, wanted = ready_host
    (Path(host.root) / "usr/bin/gcc").unlink()
    secure_boot(Path(host.root))
    assert step(host, wanted)["action"] == "ok"


def test_pods_with_cards_are_named_and_no_obstacle_until_the_change_itself(
    machine: Machine,
) -> None:
    old_driver(machine.root)
    uses_cards(machine.root, 41, "vllm", "/kubepods.slice/pod1")
    uses_cards(machine.root, 42, "nvidia-persiste", "/system.slice")
    found = step(machine.host, desired())
    assert found["action"] == "change"
    assert "pods use the cards (vllm (pid 41)) and are drained first" in found["reason"]
    with pytest.raises(XpuError, match=r"while programs use the cards: vllm \(pid 41\)"):
        machine.converge(NEW)
    assert driver.library_version(machine.host) == OLD
    assert "sh" not in [call[0] for call in machine.calls]


# -- nouveau -----------------------------------------------------------------------------------


def test_the_initramfs_is_made_anew_once_when_our_file_changes_and_on_the_way_back(
    machine: Machine,
) -> None:
    initramfs = machine.root / "boot/initrd.img"
    rebuild = f"update-initramfs -u -k {KERNEL}"
    assert "update-initramfs makes the initramfs anew" in step(machine.host, desired())["reason"]
    machine.converge(NEW)
    machine.converge(NEW)
    assert machine.programs_run.count(rebuild) == 1
    assert initramfs.read_text() == driver.MODPROBE_TEXT
    machine.converge(NEW, state="absent")
    machine.converge(NEW, state="absent")
    assert machine.programs_run.count(rebuild) == 2
    assert initramfs.read_text() == ""


def test_dracut_does_it_where_it_is_the_tool(machine: Machine) -> None:
    (machine.root / "usr/bin/update-initramfs").unlink()
    hostroot.put(machine.root, "/usr/bin/dracut", "", 0o755)
    facts = kernel.observe(machine.host)
    assert kernel.initramfs_argv(facts) == ["dracut", "--force", "--kver", KERNEL]


def test_nouveau_in_use_is_barred_and_the_driver_waits_for_the_reboot(machine: Machine) -> None:
    hostroot.put(machine.root, "/sys/module/nouveau/refcnt", "1")
    words = "nouveau drives the card: a reboot is due before the driver goes in"
    assert words in step(machine.host, desired())["reason"]
    predicted = machine.converge(NEW, check=True)
    done = machine.converge(NEW)
    assert done["changed"] and done["reboot_required"]
    assert done["diff"] == predicted["diff"]
    assert [call[0] for call in machine.calls] == ["update-initramfs"]
    again = machine.converge(NEW)
    assert not again["changed"] and again["reboot_required"]
    assert step(machine.host, desired())["action"] == "install"
    # The reboot.
    (machine.root / "sys/module/nouveau/refcnt").unlink()
    (machine.root / "sys/module/nouveau").rmdir()
    after = machine.converge(NEW)
    assert after["changed"] and not after["reboot_required"]
    assert driver.library_version(machine.host) == NEW


# -- upgrade and rollback ----------------------------------------------------------------------


def test_an_upgrade_stops_the_daemon_replaces_the_driver_and_starts_it(machine: Machine) -> None:
    machine.converge(OLD)
    machine.calls.clear()
    predicted = machine.converge(NEW, check=True)
    assert machine.calls == []
    done = machine.converge(NEW)
    assert done["diff"] == predicted["diff"] and done["changed"]
    assert [" ".join(call[:2]) for call in machine.calls if call[0] == "systemctl"] == [
        "systemctl stop",
        "systemctl stop",
        "systemctl enable",
    ]
    assert driver.library_version(machine.host) == NEW
    assert not machine.converge(NEW)["changed"]


FAILURES = {
    "the installer fails": ("broken", f"ERROR: {NEW} does not build"),
    "the cards don't answer": ("mute", "nvidia-smi ended with rc 6 and said: No devices were"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_driver_that_fails_is_replaced_by_the_former_one(case: str, machine: Machine) -> None:
    how, words = FAILURES[case]
    machine.converge(OLD)
    getattr(machine, how).add(NEW)
    with pytest.raises(XpuError, match=f"The former driver {OLD} is in force again") as error:
        machine.converge(NEW)
    assert words in error.value.msg
    assert driver.library_version(machine.host) == driver.loaded_version(machine.host) == OLD
    assert not machine.converge(OLD)["changed"]
    getattr(machine, how).clear()
    assert machine.converge(NEW)["changed"]
    assert driver.library_version(machine.host) == NEW


def test_a_former_installer_that_was_altered_is_not_run_as_root(machine: Machine) -> None:
    machine.converge(OLD)
    path = machine.installer(OLD)
    machine.broken.add(NEW)
    params = machine.params(NEW)
    hostroot.put(machine.root, path, "altered")
    with pytest.raises(XpuError, match="is not there, or not as it was fetched"):
        nvidia_driver.converge(machine.host, params, False)
    assert [call[1].endswith(f"{OLD}.run") for call in machine.calls if call[0] == "sh"] == [
        True,
        False,
    ]


def test_a_first_installation_that_fails_says_that_nothing_is_in_force(machine: Machine) -> None:
    machine.broken.add(NEW)
    with pytest.raises(XpuError, match="There was no driver before, and none is in force"):
        machine.converge(NEW)
    record = json.loads((machine.root / records.path("nvidia_driver").lstrip("/")).read_text())
    assert record["state"] == "installing"
    machine.broken.clear()
    assert machine.converge(NEW)["changed"]
    assert machine.converge(NEW, state="absent")["changed"]
    assert not (machine.root / LIBCUDA).exists()
    assert not (machine.root / "var/lib/flexai-xpu").exists()
