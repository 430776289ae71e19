# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver as packages: one version for all, DKMS seen to have built, no .run file beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils import _driver_packages as by_packages
from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_driver as driver
from ansible_collections.flexai.xpu.plugins.module_utils import _packages as packages
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils import _repositories as repositories
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge

from . import hostroot, packagemachine
from .drivermachine import Machine
from .packagemachine import KERNEL, PackageMachine
from .test_driver import OLD, PAIR, desired, nvswitches, secure_boot, signing_pair, step, uses_cards
from .test_playbooks import Site, run, site, variables
from .test_writers import snapshot

__all__ = ["site"]  # a fixture

NEW = hostroot.DRIVER
OPEN, CLOSED = "nvidia-kernel-open-dkms", "nvidia-kernel-dkms"
DNF = ["dnf", "--setopt=exit_on_lock=True"]
BY_PACKAGES = {"method": "packages"}
FABRIC = ["nvidia-fabricmanager-{branch}", "libnvidia-nscq-{branch}"]


@pytest.fixture
def machine(tmp_path: Path) -> PackageMachine:
    return PackageMachine(tmp_path / "host", (NEW, OLD))


def in_force(machine: Machine) -> tuple[str, str]:
    return driver.library_version(machine.host), driver.loaded_version(machine.host)


# -- there, again, and back --------------------------------------------------------------------


def test_installed_silent_the_second_time_and_removed_without_a_trace(
    machine: PackageMachine,
) -> None:
    before, packages_before = snapshot(machine.root), machine.installed
    found = step(machine.host, desired(**BY_PACKAGES))
    assert found["action"] == "install"
    assert f"packages nvidia-driver-cuda, {OPEN} of version {NEW}" in found["reason"]
    predicted = machine.converge(NEW, check=True)
    assert machine.calls == [] and snapshot(machine.root) == before

    done = machine.converge(NEW)
    assert done["changed"] and not done["reboot_required"]
    assert done["diff"] == predicted["diff"]
    assert in_force(machine) == (NEW, NEW)
    assert by_packages.built(machine.host, NEW, KERNEL)
    assert [call for call in machine.programs_run if call.startswith("apt-get")] == [
        "apt-get install --yes --no-install-recommends --allow-downgrades "
        f"nvidia-driver-cuda={NEW}-1 {OPEN}={NEW}-1"
    ]

    machine.calls.clear()
    assert not machine.converge(NEW)["changed"]
    assert step(machine.host, desired(**BY_PACKAGES))["action"] == "ok"
    assert machine.calls == []

    assert machine.converge(NEW, state="absent")["changed"]
    assert not machine.converge(NEW, state="absent")["changed"]
    assert machine.installed == packages_before
    assert in_force(machine) == ("", "")
    for path in (by_packages.PIN_FILE, driver.MODPROBE_FILE, records.path("nvidia_driver")):
        assert not machine.host.exists(path)


def test_what_the_site_had_installed_before_us_stays(machine: PackageMachine) -> None:
    status = machine.root / "var/lib/dpkg/status"
    status.write_text(status.read_text() + hostroot.package("dkms", "3.0.10-8"))
    machine.converge(NEW)
    machine.converge(NEW, state="absent")
    assert "dkms" in machine.installed


def test_what_dpkg_keeps_of_a_package_that_gave_way_goes_too(machine: PackageMachine) -> None:
    """Such as Fabric Manager of the branch before: removed by its successor, and not purged."""
    machine.converge(NEW)
    status = machine.root / "var/lib/dpkg/status"
    kept = hostroot.package(CLOSED, f"{OLD}-1").replace("install ok installed", "deinstall ok rc")
    status.write_text(status.read_text() + kept)
    record = records.read(machine.host, driver.RECORD)
    came = {**record, "packages": [*record["packages"], CLOSED, "never-there"]}
    records.write(machine.host, driver.RECORD, came)
    machine.calls.clear()
    machine.converge(NEW, state="absent")
    (purge,) = [call for call in machine.calls if call[:2] == ["apt-get", "purge"]]
    assert CLOSED in purge and "never-there" not in purge


@pytest.mark.parametrize(("wanted", "name"), [("open", OPEN), ("proprietary", CLOSED)])
def test_the_kernel_module_is_the_sites_choice_and_may_be_changed(
    wanted: str, name: str, machine: PackageMachine
) -> None:
    machine.converge(NEW, kernel_module_type=wanted)
    assert (OPEN in machine.installed, CLOSED in machine.installed) == (name == OPEN, name != OPEN)
    other = "proprietary" if wanted == "open" else "open"
    changing = desired(**BY_PACKAGES, kernel_module_type=other)
    assert step(machine.host, changing)["action"] == "change"
    assert machine.converge(NEW, kernel_module_type=other)["changed"]
    assert name not in machine.installed
    assert not machine.converge(NEW, kernel_module_type=other)["changed"]


def test_all_packages_of_the_driver_are_held_to_its_version(machine: PackageMachine) -> None:
    """Without the pin apt takes the newest of what a package needs in its own version."""
    machine.converge(OLD)
    assert machine.installed["libcuda1"] == OLD
    pin = machine.host.read(by_packages.PIN_FILE) or ""
    assert f"Pin: version {OLD}*\nPin-Priority: 1001\n" in pin
    machine.host.remove(by_packages.PIN_FILE)
    wanted = desired(version=OLD, **BY_PACKAGES)
    assert "is missing or altered" in step(machine.host, wanted)["reason"]
    machine.calls.clear()
    assert machine.converge(OLD)["changed"]
    assert machine.host.read(by_packages.PIN_FILE) == pin
    assert "apt-get" not in [call[0] for call in machine.calls]


def test_up_and_down_again_only_when_asked(machine: PackageMachine) -> None:
    machine.converge(OLD)
    assert machine.converge(NEW)["changed"]
    assert in_force(machine) == (NEW, NEW)
    with pytest.raises(XpuError, match=f"driver {NEW} is newer than {OLD}"):
        machine.converge(OLD)
    assert machine.converge(OLD, allow_downgrade=True)["changed"]
    assert in_force(machine) == (OLD, OLD)
    assert machine.installed["nvidia-kernel-support"] == OLD


def test_a_module_that_stays_loaded_waits_for_a_reboot(machine: PackageMachine) -> None:
    machine.converge(OLD)
    machine.module_stays = True
    done = machine.converge(NEW)
    assert done["reboot_required"]
    assert in_force(machine) == (NEW, OLD)
    assert not machine.converge(NEW)["changed"]
    machine.load(NEW)
    assert not machine.converge(NEW)["reboot_required"]


# -- refused before any change -----------------------------------------------------------------


def ours_by_run(machine: PackageMachine) -> None:
    hostroot.install_driver(machine.root, NEW)


def packages_and_run(machine: PackageMachine) -> None:
    machine.converge(NEW)
    hostroot.put(machine.root, driver.UNINSTALLER, "", 0o755)


def foreign_packages(machine: PackageMachine) -> None:
    machine._install([f"nvidia-driver-cuda={NEW}-1"], simulate=False)


REFUSED: dict[str, tuple[Callable[[PackageMachine], Any], dict[str, Any], str]] = {
    "ours by a .run file": (
        ours_by_run,
        {},
        f"driver {NEW} came as a .run file (nvidia_driver_method: run), and packages is wanted; a "
        "host has one or the other: set nvidia_driver_method: run, or remove the driver first",
    ),
    "ours by packages, and run is wanted": (
        lambda machine: machine.converge(NEW),
        {"method": "run"},
        f"driver {NEW} came as packages (libcuda1, nvidia-driver-cuda, {OPEN}) "
        "(nvidia_driver_method: packages), and run is wanted",
    ),
    "a .run file over our packages": (
        packages_and_run,
        {},
        "the driver was installed twice, by packages",
    ),
    "somebody else's packages of another version": (
        foreign_packages,
        {"version": OLD, "allow_downgrade": True},
        f"driver {NEW} belongs to the package manager (libcuda1, nvidia-driver-cuda)",
    ),
    "headers missing": (
        lambda machine: (machine.root / f"lib/modules/{KERNEL}/build/Makefile").unlink(),
        {},
        f"no headers of the running kernel {KERNEL}",
    ),
    "Secure Boot without a key": (
        lambda machine: secure_boot(machine.root),
        {},
        "set nvidia_driver_signing_key and nvidia_driver_signing_certificate",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named_before_any_change(case: str, machine: PackageMachine) -> None:
    arrange, wanted, words = REFUSED[case]
    arrange(machine)
    before = snapshot(machine.root)
    machine.calls.clear()
    found = step(machine.host, desired(**{**BY_PACKAGES, **wanted}))
    assert found["action"] == "blocked"
    assert words in found["reason"]
    with pytest.raises(XpuError) as error:
        machine.converge(**{"version": NEW, **BY_PACKAGES, **wanted})
    assert words in error.value.msg
    assert snapshot(machine.root) == before
    assert machine.calls == []


def test_the_owner_of_a_driver_that_came_the_other_way_is_named(machine: PackageMachine) -> None:
    ours_by_run(machine)
    found = step(machine.host, desired(**BY_PACKAGES))
    assert (found["stance"], found["owner"]) == ("refuse", "flexai.xpu")


def test_a_compiler_is_no_obstacle_since_dkms_brings_its_own(machine: PackageMachine) -> None:
    (machine.root / "usr/bin/gcc").unlink()
    assert machine.converge(NEW)["changed"]


def test_a_version_that_no_repository_has_is_named_and_nothing_was_changed(
    machine: PackageMachine,
) -> None:
    machine.converge(OLD)
    machine.versions = (OLD,)
    before = snapshot(machine.root)
    for state in ("prepared", "present"):
        with pytest.raises(XpuError) as error:
            machine.converge(NEW, state=state)
        assert error.value.msg == (
            f"No repository of the host has version {NEW} of nvidia-driver-cuda, {OPEN} "
            f"(nvidia-driver-cuda: {OLD}-1; {OPEN}: {OLD}-1). Nothing was changed."
        )
        assert snapshot(machine.root) == before
    assert in_force(machine) == (OLD, OLD)


def test_the_repositories_lists_are_read_anew_only_where_they_lack_the_version(
    machine: PackageMachine,
) -> None:
    machine.versions, machine.published = (OLD,), (NEW,)
    assert not machine.converge(NEW, state="prepared")["changed"]
    assert machine.programs_run.count("apt-get update") == 1
    machine.converge(NEW)
    assert machine.programs_run.count("apt-get update") == 1
    assert in_force(machine) == (NEW, NEW)


# -- what DKMS made of it ----------------------------------------------------------------------


def test_a_build_that_the_package_skipped_is_made_up_for(machine: PackageMachine) -> None:
    machine.skipped = {NEW}
    machine.converge(NEW)
    assert f"dkms install nvidia/{NEW} -k {KERNEL}" in machine.programs_run
    assert in_force(machine) == (NEW, NEW)


def test_a_kernel_that_dkms_has_not_built_for_is_a_change_and_needs_its_headers(
    machine: PackageMachine,
) -> None:
    """After a boot into a kernel that came without headers."""
    machine.converge(NEW)
    shutil.rmtree(machine.root / f"var/lib/dkms/nvidia/{NEW}/{KERNEL}")
    (machine.root / "proc/driver/nvidia/version").unlink()
    found = step(machine.host, desired(**BY_PACKAGES))
    assert found["action"] == "change"
    assert f"DKMS has not built nvidia {NEW} for the running kernel {KERNEL}" in found["reason"]
    makefile = machine.root / f"lib/modules/{KERNEL}/build/Makefile"
    makefile.unlink()
    found = step(machine.host, desired(**BY_PACKAGES))
    assert found["action"] == "blocked" and "no headers" in found["reason"]
    makefile.write_text("")
    assert machine.converge(NEW)["changed"]
    assert in_force(machine) == (NEW, NEW)


def test_dkms_signs_with_the_sites_pair_where_secure_boot_is_on(machine: PackageMachine) -> None:
    signing_pair(machine.root, enrolled=True)
    machine.converge(NEW, **PAIR)
    text = machine.host.read(by_packages.SIGNING_FILE) or ""
    assert "mok_signing_key=/etc/keys/mok.key\nmok_certificate=/etc/keys/mok.pem\n" in text
    assert not machine.converge(NEW, **PAIR)["changed"]
    machine.converge(NEW, state="absent", **PAIR)
    assert not machine.host.exists(by_packages.SIGNING_FILE)


# -- rollback ----------------------------------------------------------------------------------

FAILURES = {
    "the module is not built": ("unbuildable", "Bad return status for module build on"),
    "the kernel refuses it": ("broken", f"could not insert 'nvidia' {NEW}"),
    "the cards don't answer": ("mute", "nvidia-smi ended with rc 6"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_packages_that_fail_give_way_to_the_former_ones(case: str, machine: PackageMachine) -> None:
    how, words = FAILURES[case]
    machine.converge(OLD)
    getattr(machine, how).add(NEW)
    with pytest.raises(XpuError, match=f"The former driver {OLD} is in force again") as error:
        machine.converge(NEW)
    assert words in error.value.msg
    assert in_force(machine) == (OLD, OLD)
    assert machine.installed["libcuda1"] == machine.installed["nvidia-driver-cuda"] == OLD
    assert not machine.converge(OLD)["changed"]
    getattr(machine, how).clear()
    assert machine.converge(NEW)["changed"]
    assert in_force(machine) == (NEW, NEW)


@pytest.mark.parametrize("case", FAILURES)
def test_a_first_installation_that_fails_leaves_no_package(
    case: str, machine: PackageMachine
) -> None:
    how, words = FAILURES[case]
    before = machine.installed
    getattr(machine, how).add(NEW)
    with pytest.raises(XpuError, match="There was no driver before, and none is in force") as error:
        machine.converge(NEW)
    assert words in error.value.msg
    assert machine.installed == before
    getattr(machine, how).clear()
    assert machine.converge(NEW)["changed"]
    assert machine.converge(NEW, state="absent")["changed"]
    assert machine.installed == before


def test_programs_that_use_the_cards_are_named_and_no_package_is_touched(
    machine: PackageMachine,
) -> None:
    machine.converge(OLD)
    uses_cards(machine.root, 41, "vllm", "/kubepods.slice/pod1")
    machine.calls.clear()
    with pytest.raises(XpuError, match=r"while programs use the cards: vllm \(pid 41\)"):
        machine.converge(NEW)
    assert {call[0] for call in machine.calls} == {"apt-cache"}
    with pytest.raises(XpuError, match=r"while programs use the cards: vllm \(pid 41\)"):
        machine.converge(OLD, state="absent")
    assert in_force(machine) == (OLD, OLD)


# -- NVSwitches --------------------------------------------------------------------------------


def with_fabric(machine: Machine, version: str = NEW, **more: Any) -> dict[str, Any]:
    return machine.converge(version, fabric_packages=FABRIC, **more)


@pytest.mark.parametrize("method", ["run", "packages"])
def test_fabric_manager_and_nscq_come_with_the_driver_and_follow_it(
    method: str, machine: PackageMachine
) -> None:
    nvswitches(machine.root)
    wanted: dict[str, Any] = {"method": method, "fabric_packages": FABRIC}
    more: dict[str, Any] = {"method": method}
    if method == "run":
        more["installer"] = Machine.installer(machine, OLD)
    found = step(machine.host, desired(version=OLD, **wanted))
    assert found["action"] == "install"
    assert f"nvidia-fabricmanager-580, libnvidia-nscq-580 of version {OLD}" in found["reason"]
    with_fabric(machine, OLD, **more)
    assert machine.installed["nvidia-fabricmanager-580"] == OLD
    units = [call for call in machine.programs_run if "fabricmanager.service" in call]
    assert units[-2:] == [
        "systemctl enable nvidia-fabricmanager.service",
        "systemctl restart nvidia-fabricmanager.service",
    ]
    assert not with_fabric(machine, OLD, **more)["changed"]

    if method == "run":
        more["installer"] = Machine.installer(machine, NEW)
    assert step(machine.host, desired(**wanted))["action"] == "change"
    with_fabric(machine, NEW, **more)
    assert machine.installed["nvidia-fabricmanager-580"] == NEW
    assert machine.installed["libnvidia-nscq-580"] == NEW
    machine.calls.clear()
    with_fabric(machine, NEW, state="absent", **more)
    # A daemon that holds the switches would keep the driver from being removed.
    assert machine.programs_run[0] == "systemctl disable --now nvidia-fabricmanager.service"
    assert not [name for name in machine.installed if "nvidia" in name]
    assert not machine.host.exists(by_packages.PIN_FILE)


def test_a_driver_of_a_run_file_is_not_put_in_again_for_what_follows_it(
    machine: PackageMachine,
) -> None:
    """The switches are found, or the packages asked for, after the driver came."""
    more: dict[str, Any] = {"method": "run", "installer": Machine.installer(machine, NEW)}
    machine.converge(NEW, **more)
    nvswitches(machine.root)
    machine.calls.clear()
    assert with_fabric(machine, NEW, **more)["changed"]
    assert machine.installed["nvidia-fabricmanager-580"] == NEW
    assert "sh" not in [call[0] for call in machine.calls]
    assert not with_fabric(machine, NEW, **more)["changed"]


def test_fabric_manager_goes_back_with_the_driver(machine: PackageMachine) -> None:
    nvswitches(machine.root)
    with_fabric(machine, OLD)
    machine.broken.add(NEW)
    with pytest.raises(XpuError, match=f"The former driver {OLD} is in force again"):
        with_fabric(machine, NEW)
    assert machine.installed["nvidia-fabricmanager-580"] == OLD
    assert machine.programs_run[-1] == "systemctl start nvidia-fabricmanager.service"


def test_fabric_manager_waits_for_the_boot_that_loads_its_driver(machine: PackageMachine) -> None:
    nvswitches(machine.root)
    with_fabric(machine, OLD)
    machine.module_stays = True
    machine.calls.clear()
    assert with_fabric(machine, NEW)["reboot_required"]
    assert machine.programs_run[-1] == "systemctl enable nvidia-fabricmanager.service"


def test_a_fabric_manager_of_somebody_elses_is_used_or_refused_never_changed(
    machine: PackageMachine,
) -> None:
    nvswitches(machine.root, manager=OLD)
    wanted: dict[str, Any] = {**BY_PACKAGES, "fabric_packages": FABRIC}
    found = step(machine.host, desired(**wanted))
    assert found["action"] == "blocked"
    assert f"found Fabric Manager {OLD} (`nvidia-fabricmanager-580`)" in found["reason"]
    with_fabric(machine, OLD)
    assert "libnvidia-nscq-580" not in machine.installed
    with_fabric(machine, OLD, state="absent")
    assert machine.installed["nvidia-fabricmanager-580"] == OLD


def test_fabric_packages_that_would_bring_the_driver_beside_a_run_file_are_refused(
    machine: PackageMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvswitches(machine.root)
    monkeypatch.setitem(packagemachine.NEEDS, "nvidia-fabricmanager-580", ("libcuda1",))
    before = snapshot(machine.root)
    installer = Machine.installer(machine, NEW)
    with pytest.raises(XpuError, match=r"would bring the driver as packages \(libcuda1\)"):
        with_fabric(machine, method="run", installer=installer)
    assert before.items() <= snapshot(machine.root).items()
    assert "sh" not in [call[0] for call in machine.calls]


@pytest.mark.parametrize(("state", "wanted"), [("active", "ok"), ("failed", "failed")])
def test_a_driver_whose_fabric_manager_does_not_run_is_not_right(
    state: str, wanted: str, machine: PackageMachine
) -> None:
    nvswitches(machine.root)
    with_fabric(machine, NEW)
    told = hostroot.SCRIPT % f"echo {state}"
    hostroot.put(machine.root, "/usr/bin/systemctl", told, 0o755)
    (judged,) = judge(Host(str(machine.root)), "h", {"nvidia_driver": NEW}, {})["components"]
    assert judged["state"] == wanted
    if wanted == "failed":
        assert judged["reason"] == (
            "6 NVSwitches, and nvidia-fabricmanager.service is failed: no CUDA program starts"
        )


def test_where_the_site_sees_to_the_fabric_itself_a_mismatch_is_refused(
    machine: PackageMachine,
) -> None:
    nvswitches(machine.root)
    found = step(machine.host, desired(**BY_PACKAGES))
    assert found["action"] == "blocked" and "Fabric Manager absent" in found["reason"]


# -- a site ------------------------------------------------------------------------------------


def test_a_site_of_packages_needs_no_installer_in_its_manifest(tmp_path: Path, site: Site) -> None:
    manifest = Path(variables(site)["flexai_manifest"])
    document = yaml.safe_load(manifest.read_text())
    document["artefacts"] = [e for e in document["artefacts"] if e["name"] != "nvidia-driver"]
    manifest.write_text(yaml.safe_dump(document))
    done = run(tmp_path, site, "preflight")
    assert done.returncode != 0 and "nvidia-driver" in done.stdout
    variables(site)["nvidia_driver_method"] = "packages"
    done = run(tmp_path, site, "preflight")
    assert done.returncode == 0, done.stdout
    assert f"packages nvidia-driver-cuda, {OPEN} of version {NEW}" in done.stdout


# -- other systems -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "flavour", "wanted"),
    [
        ("debian", "open", ["nvidia-driver-cuda", OPEN]),
        ("ubuntu", "open", ["nvidia-headless-580-open", "nvidia-utils-580"]),
        ("ubuntu", "proprietary", ["nvidia-headless-580", "nvidia-utils-580"]),
        ("rhel", "open", ["nvidia-driver-cuda", "kmod-nvidia-open-dkms"]),
        ("openEuler", "proprietary", ["nvidia-driver-cuda", "kmod-nvidia-latest-dkms"]),
    ],
)
def test_each_family_has_its_names_and_each_is_known_as_the_drivers(
    system: str, flavour: str, wanted: list[str]
) -> None:
    assert by_packages.names(system, flavour, NEW) == wanted
    assert all(driver.DRIVER_PACKAGE.fullmatch(name) for name in wanted)


def test_dnf_is_asked_for_the_same(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def run(argv: Any, _limit: float) -> Completed:
        calls.append([Path(argv[0]).name, *argv[1:]])
        return Completed(0, f"{OLD}-1.el9\n{NEW}-1.el9\n")

    hostroot.put(tmp_path, "/usr/bin/dnf", "", 0o755)
    host = Host(str(tmp_path), run)
    exact = repositories.resolve(host, "rpm", ["nvidia-driver-cuda"], NEW, "")
    assert exact == [f"nvidia-driver-cuda-{NEW}-1.el9"]
    assert calls == [
        [*DNF, "--quiet", "repoquery", "--queryformat", "%{version}-%{release}\\n"]
        + ["nvidia-driver-cuda"]
    ]
    assert repositories.install_argv("rpm", exact) == (
        [*DNF, "install", "--assumeyes", "--allowerasing", *exact]
    )
    assert repositories.trial_argv("rpm", exact) == [*DNF, "install", "--assumeno", *exact]
    assert by_packages.pin("rpm", NEW) == ""


@pytest.mark.parametrize(
    ("rc", "said", "found"),
    [
        (1, "Error: No matches found", []),
        (200, "Waiting for process with pid 12", None),
        (1, "Errors during downloading metadata for repository 'nvidia'", None),
    ],
)
def test_a_dnf_that_fails_is_no_repository_without_the_package(
    tmp_path: Path, rc: int, said: str, found: list[str] | None
) -> None:
    hostroot.put(tmp_path, "/usr/bin/dnf", "", 0o755)
    host = Host(str(tmp_path), lambda _argv, _limit: Completed(rc, "", said))
    if found is None:
        with pytest.raises(XpuError, match=f"repoquery .* ended with rc {rc}: {said}"):
            repositories.offered(host, "rpm", "nvidia-driver-cuda")
    else:
        assert repositories.offered(host, "rpm", "nvidia-driver-cuda") == found


def test_a_site_names_its_own_packages(machine: PackageMachine) -> None:
    wanted = driver.Wanted(NEW, method="packages", packages=["cuda-drivers-{branch}"])
    facts = driver.observe(machine.host, packages.everything(machine.host), wanted)
    assert driver.asked_names(facts, wanted) == ["cuda-drivers-580"]
