# SPDX-License-Identifier: GPL-3.0-or-later
"""A change that waits for a boot: the host goes on by itself, once, and says how that ended."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _nvidia_driver as driver
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils import _resume as resume
from ansible_collections.flexai.xpu.plugins.module_utils import _transaction as transaction
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.modules import node_transaction

from . import hostroot
from .packagemachine import PackageMachine
from .test_driver import OLD

NEW = hostroot.DRIVER
RUNS = "#!/bin/sh\n{}\n"


def boot(root: Path, number: int) -> None:
    hostroot.put(root, resume.BOOT_ID, f"boot-{number}\n")


@pytest.fixture
def machine(tmp_path: Path) -> PackageMachine:
    """The new driver is installed, the old module runs until the boot that is due."""
    made = PackageMachine(tmp_path / "host", (NEW, OLD))
    boot(made.root, 1)
    made.converge(OLD)
    made.module_stays = True
    assert made.converge(NEW)["reboot_required"]
    return made


def note(machine: PackageMachine, state: str, step: str | None = None, **more: Any) -> Any:
    params = {"state": state, "step": step, "reason": "why", "in_cluster": True, **more}
    return node_transaction.converge(machine.host, params, False)


def armed(machine: PackageMachine, in_cluster: bool = True) -> None:
    note(machine, "open", "reboot")
    assert note(machine, "armed", in_cluster=in_cluster)["changed"]


def after_boot(machine: PackageMachine, version: str = NEW) -> None:
    boot(machine.root, 2)
    machine.load(version)


def standing(machine: PackageMachine) -> dict[str, Any]:
    return records.read(machine.host, transaction.RECORD)


def left(machine: PackageMachine) -> list[str]:
    paths = (resume.PROGRAM, resume.UNIT_FILE, records.path(resume.RECORD))
    return [path for path in paths if machine.host.exists(path)]


# -- before the boot ---------------------------------------------------------------------------


def test_armed_is_a_unit_that_runs_once_and_one_file_of_code(machine: PackageMachine) -> None:
    machine.calls.clear()
    armed(machine)
    unit = machine.host.read(resume.UNIT_FILE) or ""
    assert "Type=oneshot" in unit and f" {resume.PROGRAM}\n" in unit
    assert machine.programs_run == ["systemctl daemon-reload", f"systemctl enable {resume.UNIT}"]
    with zipfile.ZipFile(machine.root / resume.PROGRAM.lstrip("/")) as packed:
        names = set(packed.namelist())
        text = "".join(packed.read(name).decode() for name in names)
    assert f"{resume.PACKAGE}/_driver_change.py" in names
    assert "import ansible" not in text and "from ansible" not in text


def test_nothing_is_armed_where_nothing_waits(tmp_path: Path) -> None:
    machine = PackageMachine(tmp_path / "host", (NEW,))
    machine.converge(NEW)
    assert not note(machine, "armed")["changed"]
    assert left(machine) == []


def test_what_waits_is_noted_no_longer_than_it_does(machine: PackageMachine) -> None:
    assert records.read(machine.host, driver.RECORD)["waiting"]["wanted"]["version"] == NEW
    after_boot(machine)
    assert not machine.converge(NEW)["changed"]
    assert "waiting" not in records.read(machine.host, driver.RECORD)


# -- after it ----------------------------------------------------------------------------------


def test_a_node_of_a_cluster_is_finished_and_left_to_a_play_to_release(
    machine: PackageMachine,
) -> None:
    armed(machine)
    after_boot(machine)
    assert "and right; the next run of the play lets pods come back" in resume.go_on(machine.host)
    assert standing(machine)["step"] == "release"
    assert left(machine) == []


def test_a_host_without_a_cluster_is_finished_altogether(machine: PackageMachine) -> None:
    armed(machine, in_cluster=False)
    after_boot(machine)
    assert resume.go_on(machine.host) == "taken up after the boot, and right"
    assert standing(machine) == {} and left(machine) == []


def test_a_driver_that_waited_for_nouveau_to_go_is_installed(tmp_path: Path) -> None:
    machine = PackageMachine(tmp_path / "host", (NEW,))
    boot(machine.root, 1)
    nouveau = hostroot.put(machine.root, "/sys/module/nouveau/refcnt", "1")
    assert machine.converge(NEW)["reboot_required"]
    assert driver.library_version(machine.host) == ""
    armed(machine, in_cluster=False)
    boot(machine.root, 2)
    nouveau.unlink()
    nouveau.parent.rmdir()
    assert resume.go_on(machine.host) == "taken up after the boot, and right"
    assert driver.loaded_version(machine.host) == NEW


def test_what_is_not_right_keeps_the_node_cordoned_and_says_why(machine: PackageMachine) -> None:
    machine.mute.add(NEW)
    armed(machine)
    after_boot(machine)
    told = resume.go_on(machine.host)
    assert "not right: failed: nvidia-smi" in told
    assert standing(machine) == {"step": "validate", "reason": told}
    assert left(machine) == []


def test_an_error_of_the_change_is_the_reason(tmp_path: Path) -> None:
    machine = PackageMachine(tmp_path / "host", (NEW,))
    boot(machine.root, 1)
    hostroot.put(machine.root, "/sys/module/nouveau/refcnt", "1")
    machine.converge(NEW)
    armed(machine)
    boot(machine.root, 2)
    (machine.root / "sys/module/nouveau/refcnt").unlink()
    (machine.root / "sys/module/nouveau").rmdir()
    machine.versions = (OLD,)
    assert f"No repository of the host has version {NEW}" in resume.go_on(machine.host)
    assert standing(machine)["step"] == "validate"


def test_without_a_boot_the_unit_does_nothing(machine: PackageMachine) -> None:
    armed(machine)
    before = standing(machine)
    assert "has not booted since" in resume.go_on(machine.host)
    assert standing(machine) == before
    assert len(left(machine)) == 3


def test_a_change_that_somebody_finished_meanwhile_is_none_of_the_units(
    machine: PackageMachine,
) -> None:
    armed(machine)
    (machine.root / records.path(transaction.RECORD).lstrip("/")).unlink()
    after_boot(machine)
    machine.calls.clear()
    assert resume.go_on(machine.host) == "nothing waits for a boot"
    assert left(machine) == []
    assert {call[0] for call in machine.calls} == {"systemctl"}


# -- a play beside it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "step"), [("settled", None), ("open", "drain"), ("closed", None)]
)
def test_a_play_takes_the_order_away_before_it_goes_on_itself(
    state: str, step: str | None, machine: PackageMachine
) -> None:
    armed(machine)
    assert note(machine, state, step)["changed"]
    assert left(machine) == []
    assert not note(machine, state, step)["changed"]


def test_a_driver_that_is_removed_does_not_come_back_with_the_next_boot(
    machine: PackageMachine,
) -> None:
    armed(machine)
    machine.converge(NEW, state="absent")
    assert left(machine) == []


def test_a_play_waits_for_a_unit_that_is_at_work(machine: PackageMachine) -> None:
    armed(machine)
    handle = os.open(machine.root / records.DIRECTORY.lstrip("/"), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    waiting = threading.Thread(target=resume.settle, args=(machine.host,))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and len(left(machine)) == 3
    os.close(handle)
    waiting.join(60)
    assert left(machine) == []


def test_a_unit_that_never_ends_is_named(machine: PackageMachine) -> None:
    handle = os.open(machine.root / records.DIRECTORY.lstrip("/"), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    words = r"flexai-xpu-resume\.service still works"
    with pytest.raises(XpuError, match=words), resume.alone(machine.host, limit_s=0):
        pass
    os.close(handle)


# -- the packed program itself -----------------------------------------------------------------


def test_the_one_file_runs_where_there_is_nothing_but_python(machine: PackageMachine) -> None:
    armed(machine, in_cluster=False)
    after_boot(machine)
    for name in ("systemctl", "modprobe"):
        hostroot.put(machine.root, f"/usr/bin/{name}", RUNS.format("exit 0"), 0o755)
    done = subprocess.run(
        [sys.executable, "-I", machine.root / resume.PROGRAM.lstrip("/"), str(machine.root)],
        capture_output=True,
        text=True,
        env={},
        cwd="/",
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "taken up after the boot, and right\n"), done
    assert standing(machine) == {} and left(machine) == []
    record = json.loads((machine.root / records.path(driver.RECORD).lstrip("/")).read_text())
    assert record["version"] == NEW and "waiting" not in record
