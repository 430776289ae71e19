# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA toolkit of a host, by the simulated `.run` file and by packages: there and back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _cuda_toolkit as cuda
from ansible_collections.flexai.xpu.plugins.module_utils import _packages as packages
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils import _site as sites
from ansible_collections.flexai.xpu.plugins.module_utils._decision import Decision
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge
from ansible_collections.flexai.xpu.plugins.module_utils._plan import observe, plan
from ansible_collections.flexai.xpu.plugins.modules import cuda_toolkit as module
from simulators.installers import cudarun

from . import hostroot
from .test_playbooks import files

OLD, NEW = "12.2.0", "12.9.1"
RUNS = {OLD: "12.2.91", NEW: "12.9.86"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the installer refuses others than root")


class Machine:
    """A host root on which the simulated installer runs, with a shell and ldconfig of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran = root, [[""]]
        for program in ("sh", "ldconfig", "apt-get"):
            hostroot.put(root, f"/usr/bin/{program}", "#!/bin/sh\n", 0o755)
        for version, build in RUNS.items():
            (root / "cache" / version).mkdir(parents=True)
            cudarun.pack(root / "cache" / version, version, build)
        self.host = Host(str(root), self.run)
        self.ran.clear()

    def run(self, argv: Sequence[str], timeout_s: float) -> Completed:
        """The host's shell is this machine's."""
        words = [word.removeprefix(str(self.root)) for word in argv]
        self.ran.append(words)
        command = ["/bin/sh", *argv[1:]] if words[0] == "/usr/bin/sh" else list(argv)
        environment = {"PATH": os.environ["PATH"], "NVIDIA_SIM_ROOT": str(self.root)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def installer(self, version: str) -> str:
        (file,) = (self.root / "cache" / version).iterdir()
        return str(file).removeprefix(str(self.root))

    def converge(self, version: str, check: bool = False, **more: Any) -> dict[str, Any]:
        params = {
            "version": version,
            "method": "run",
            "installer": self.installer(version) if version in RUNS else None,
            "state": "present",
            **more,
        }
        return module.converge(self.host, params, check)

    def decision(self, version: str) -> Decision:
        return cuda.plan(cuda.observe(self.host, module._installed(self.host), version), version)

    def found(self) -> dict[str, str]:
        """What a run changes, without the installer's log."""
        return {
            name: what
            for name, what in files(self.root).items()
            if not name.endswith((".log", "/var/log", "/var", "/var/lib"))
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = hostroot.bare(tmp_path / "host")
    # Directories whose own time changes with what is put into them.
    for directory in ("usr/local", "etc/ld.so.conf.d", "var/log"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    return Machine(root)


def without_times(found: dict[str, str]) -> dict[str, str]:
    return {name: " ".join(what.split()[::2]) for name, what in found.items()}


@as_root
def test_predicted_there_silent_and_back_without_a_trace(machine: Machine) -> None:
    before = without_times(machine.found())
    predicted = machine.converge(OLD, check=True)
    assert without_times(machine.found()) == before
    done = machine.converge(OLD)
    assert done["diff"] == predicted["diff"]
    assert machine.ran[0][2:] == [
        "--silent",
        "--toolkit",
        "--toolkitpath=/usr/local/cuda-12.2",
        "--no-man-page",
        "--override",
    ]
    assert machine.host.link(cuda.LINK) == "/usr/local/cuda-12.2"
    assert not machine.converge(OLD)["changed"]
    assert machine.converge(OLD, check=True, state="absent")["changed"]
    assert machine.converge(OLD, state="absent")["changed"]
    assert without_times(machine.found()) == before
    assert not machine.converge(OLD, state="absent")["changed"]


@as_root
def test_another_release_takes_the_place_of_ours(machine: Machine) -> None:
    machine.converge(OLD)
    decision = machine.decision(NEW)
    assert decision.action == "change"
    assert decision.reason == "CUDA toolkit absent → 12.9.1; CUDA toolkit 12.2.0 gives way"
    machine.converge(NEW)
    assert machine.host.link(cuda.LINK) == "/usr/local/cuda-12.9"
    assert not machine.host.exists("/usr/local/cuda-12.2")
    assert not machine.host.exists(cuda.linker_file(OLD))
    assert machine.decision(NEW).action == "ok"
    machine.converge(NEW, state="absent")
    assert not machine.host.exists("/usr/local/cuda-12.9")
    assert not machine.host.exists(cuda.LINK)


@as_root
def test_killed_half_way_the_next_run_takes_it_up(machine: Machine) -> None:
    hostroot.put(machine.root, "/etc/nvidia-sim/fail-cuda", "half-way\n")
    with pytest.raises(XpuError):
        machine.converge(OLD)
    assert machine.decision(OLD).reason.startswith("the installation of 12.2.0 was broken off")
    (machine.root / "etc/nvidia-sim/fail-cuda").unlink()
    assert machine.converge(OLD)["changed"]
    assert machine.decision(OLD).action == "ok"
    machine.converge(OLD, state="absent")
    assert not machine.host.exists(cuda.LINK)


@as_root
def test_a_full_disk_is_told_in_the_installers_words(machine: Machine) -> None:
    hostroot.put(machine.root, "/etc/nvidia-sim/fail-cuda", "disk-full\n")
    with pytest.raises(XpuError) as error:
        machine.converge(OLD)
    assert "No space left on device" in error.value.msg
    assert "/var/log/cuda-installer.log" in error.value.remedy


@as_root
def test_a_link_that_the_site_made_stays(machine: Machine) -> None:
    machine.host.point(cuda.LINK, "/opt/cuda-11")
    machine.converge(OLD)
    assert machine.host.link(cuda.LINK) == "/opt/cuda-11"
    machine.converge(OLD, state="absent")
    assert machine.host.link(cuda.LINK) == "/opt/cuda-11"


@as_root
def test_the_sites_own_toolkit_is_adopted_or_refused_and_never_touched(machine: Machine) -> None:
    machine.converge(OLD)
    records.write(machine.host, cuda.RECORD, {})
    before = machine.found()
    decision = machine.decision(OLD)
    assert (decision.action, decision.stance) == ("ok", "adopt")
    refused = machine.decision("12.2.2")
    assert (refused.action, refused.stance) == ("blocked", "refuse")
    assert "set cuda_toolkit_version: 12.2.0 to use it" in refused.reason
    with pytest.raises(XpuError, match="can't be installed"):
        machine.converge("12.2.2")
    gone = machine.converge(OLD, state="absent")
    assert not gone["changed"]
    assert gone["left"] == ["CUDA toolkit 12.2.0: not installed by flexai.xpu"]
    assert machine.found() == before


def test_packages_of_somebody_else_are_adopted_or_refused(machine: Machine) -> None:
    status = machine.root / "var/lib/dpkg/status"
    status.write_text(status.read_text() + hostroot.package("cuda-toolkit-12-2", "12.2.2-1"))
    assert machine.decision("12.2.2").stance == "adopt"
    refused = machine.decision(OLD)
    assert refused.stance == "refuse"
    assert refused.owner == "packages of dpkg"


def test_packages_are_asked_for_by_release_and_version_and_go_with_what_came(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = machine.root / "var/lib/dpkg/status"
    before = status.read_text()
    install = f"""#!/bin/sh
cat >> {status} <<'END'
{hostroot.package("cuda-toolkit-12-2", "12.2.0-1")}{hostroot.package("libcublas-12-2", "12.2.1-1")}
END
mkdir -p {machine.root}/usr/local/cuda-12.2/bin
echo '{{"cuda": {{"version": "12.2.0"}}}}' > {machine.root}/usr/local/cuda-12.2/version.json
"""
    hostroot.put(machine.root, "/usr/bin/apt-get", install, 0o755)
    hostroot.put(machine.root, "/usr/local/cuda-12.2/bin/nvcc", "#!/bin/sh\n", 0o755)
    monkeypatch.setattr(cuda, "claim", lambda *_: None)  # the compiler stands there by our hand
    machine.converge(OLD, method="packages")
    argv = ["/usr/bin/apt-get", "install", "--yes", "--no-install-recommends"]
    assert machine.ran[0] == [*argv, "cuda-toolkit-12-2=12.2.0-1"]
    record = records.read(machine.host, cuda.RECORD)
    assert record["packages"] == ["cuda-toolkit-12-2", "libcublas-12-2"]
    hostroot.put(machine.root, "/usr/bin/apt-get", "#!/bin/sh\n", 0o755)
    machine.ran.clear()
    machine.converge(OLD, state="absent")
    purge = ["/usr/bin/apt-get", "purge", "--yes", "cuda-toolkit-12-2", "libcublas-12-2"]
    assert machine.ran[0] == purge
    assert before  # what dpkg itself forgets is dpkg's


def test_dnf_is_asked_in_its_own_words() -> None:
    argv = cuda.package_argv("rpm", OLD)
    alone = ["dnf", "--setopt=exit_on_lock=True"]
    assert argv == [*alone, "install", "--assumeyes", "cuda-toolkit-12-2-12.2.0"]
    removal = packages.removal_argv("rpm", ["a"])
    assert removal == [*alone, "remove", "--assumeyes", "a"]


# -- in the plan and the verdict -------------------------------------------------------------


def wanting(version: str, method: str = "run") -> dict[str, Any]:
    desired: dict[str, Any] = hostroot.desired()
    desired["architectures"]["cuda_toolkit"] = ["x86_64"]
    return {**desired, "cuda_toolkit": {"version": version, "method": method}}


def steps(machine: Machine, desired: dict[str, Any]) -> dict[str, str]:
    return {step.component: step.action for step in plan(observe(machine.host, desired), desired)}


def test_it_is_a_component_only_where_a_site_wants_one(machine: Machine) -> None:
    assert "cuda_toolkit" not in steps(machine, wanting(""))
    assert list(steps(machine, wanting(OLD)))[:2] == ["nvidia_driver", "cuda_toolkit"]


def test_without_its_artefact_it_is_blocked_unless_packages_are_asked_for(machine: Machine) -> None:
    lacking = wanting(OLD)
    lacking["architectures"]["cuda_toolkit"] = ["aarch64"]
    assert steps(machine, lacking)["cuda_toolkit"] == "blocked"
    by_packages = {**lacking, "cuda_toolkit": {"version": OLD, "method": "packages"}}
    assert steps(machine, by_packages)["cuda_toolkit"] == "install"


@as_root
def test_the_verdict_asks_the_compiler(machine: Machine) -> None:
    def told(version: str) -> tuple[str, str, str]:
        (part,) = judge(machine.host, "h", {"cuda_toolkit": version}, {})["components"]
        return part["state"], part["found"], part["reason"]

    absent = ("absent", "", "/usr/local/cuda-12.2/bin/nvcc is not installed")
    assert told(OLD) == absent
    machine.converge(OLD)
    assert told(OLD) == ("ok", "12.2.91", "nvcc of release 12.2")
    nvcc = machine.root / "usr/local/cuda-12.2/bin/nvcc"
    nvcc.write_text(nvcc.read_text().replace("release 12.2", "release 11.8"))
    assert told(OLD)[0] == "failed"


@pytest.mark.parametrize(
    ("driver", "version", "text"),
    [
        ("535.183.06", "12.2.0", ""),
        ("535.183.06", "13.0.0", "CUDA 13.0 needs driver 580.65.06 or newer, 535.183.06 is older"),
        ("580.95.05", "12", "cuda_toolkit_version: cuda '12' is not a toolkit in the table"),
    ],
)
def test_a_driver_that_cannot_run_it_is_told_on_the_controller(
    driver: str, version: str, text: str
) -> None:
    values = {
        "flexai_profile": "documents",
        "container_toolkit_version": "1.17.8",
        "nvidia_driver_version": driver,
        "nvidia_driver_kernel_module_type": "",
        "cuda_toolkit_version": version,
    }
    found = sites.contradictions(values)
    assert len(found) == bool(text)
    assert text in "".join(found)
