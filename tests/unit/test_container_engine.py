# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine: installed where absent and wanted, never changed, its version judged."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils import _container_engine as engines
from ansible_collections.flexai.xpu.plugins.module_utils import _records as records
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Completed, Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge
from ansible_collections.flexai.xpu.plugins.module_utils._plan import observe, plan
from ansible_collections.flexai.xpu.plugins.modules import container_engine as module
from ansible_collections.flexai.xpu.plugins.modules import containerd_runtime

from . import hostroot

SAID = {
    "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1": "1.6.20",
    "containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da": "1.7.27",
    "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4": "2.1.4",
    "Docker version 20.10.24+dfsg1, build 297e128": "20.10.24",
    "Docker version 25.0.3, build f417435e5f6216828dec57958c490c4f8bae4f98": "25.0.3",
    "dockerd: error while loading shared libraries": "",
}


@pytest.mark.parametrize("said", SAID)
def test_what_an_engine_says_of_its_version(said: str) -> None:
    assert engines.version_of(said) == SAID[said]


class Machine:
    """A host root whose package manager brings the engine's program; it keeps what ran."""

    def __init__(self, root: Path, version: str = "1.6.20") -> None:
        self.root, self.ran = root, list[list[str]]()
        self.host = Host(str(root), self.run)
        status = root / "var/lib/dpkg/status"
        containerd = f"#!/bin/sh\necho containerd github.com/containerd/containerd {version} x\n"
        brings = hostroot.package("containerd", version) + hostroot.package("runc", "1.1.5")
        hostroot.put(
            root,
            "/usr/bin/apt-get",
            f"#!/bin/sh\ncat >> {status} <<'END'\n{brings}END\n"
            f"cat > {root}/usr/bin/containerd <<'END'\n{containerd}END\n"
            f"chmod 755 {root}/usr/bin/containerd\n",
            0o755,
        )
        hostroot.put(root, "/usr/bin/systemctl", "#!/bin/sh\n", 0o755)

    def run(self, argv: Sequence[str], timeout_s: float) -> Completed:
        words = [word.removeprefix(str(self.root)) for word in argv]
        self.ran.append(words)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)

    def converge(self, check: bool = False, **more: Any) -> dict[str, Any]:
        params = {"engine": "containerd", "packages": [], "since": "", "state": "present"}
        return module.converge(self.host, {**params, **more}, check)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host without an engine."""
    root = hostroot.bare(tmp_path / "host")
    for name in ("containerd", "ctr"):
        (root / "usr/bin" / name).unlink()
    return Machine(root)


def test_absent_it_is_predicted_installed_and_started_then_left_alone(machine: Machine) -> None:
    assert machine.converge(check=True) == {
        "changed": True,
        "version": "",
        "diff": {"before": "", "after": "containerd\n"},
    }
    assert machine.ran == []
    done = machine.converge()
    assert done["version"] == "1.6.20"
    assert machine.ran[0] == [
        "/usr/bin/apt-get", "install", "--yes", "--no-install-recommends", "containerd",
    ]  # fmt: skip
    assert machine.ran[1] == ["/usr/bin/systemctl", "enable", "--now", "containerd.service"]
    record = records.read(machine.host, engines.RECORD)
    assert record == {"engine": "containerd", "packages": ["containerd", "runc"]}
    assert not machine.converge()["changed"]


def test_only_the_packages_that_came_are_removed(machine: Machine) -> None:
    machine.converge()
    hostroot.put(machine.root, "/usr/bin/apt-get", "#!/bin/sh\n", 0o755)
    machine.ran.clear()
    assert machine.converge(check=True, state="absent")["changed"]
    assert machine.ran == []
    assert machine.converge(state="absent")["changed"]
    assert machine.ran == [["/usr/bin/apt-get", "purge", "--yes", "containerd", "runc"]]
    assert not machine.converge(state="absent")["changed"]


def test_one_of_the_site_is_never_removed(tmp_path: Path) -> None:
    machine = Machine(hostroot.bare(tmp_path / "host"))
    assert not machine.converge(state="absent")["changed"]
    assert machine.ran == []


def test_packages_that_bring_too_old_a_version_are_told(machine: Machine) -> None:
    with pytest.raises(XpuError) as error:
        machine.converge(since="1.7.0")
    assert error.value.msg == (
        "The packages containerd are installed, but containerd 1.6.20 is older than 1.7.0; upgrade "
        "it, or set container_engine_since: 1.6.20 to use it as it is."
    )
    assert records.read(machine.host, engines.RECORD)["packages"] == ["containerd", "runc"]


def test_a_package_manager_that_fails_is_told_and_nothing_is_ours(machine: Machine) -> None:
    hostroot.put(
        machine.root, "/usr/bin/apt-get", "#!/bin/sh\necho no route >&2; exit 100\n", 0o755
    )
    with pytest.raises(XpuError, match="ended with rc 100: no route"):
        machine.converge()
    assert records.read(machine.host, engines.RECORD) == {}


@pytest.mark.parametrize(
    ("system", "engine", "names"),
    [
        ("debian", "docker", ("docker.io",)),
        ("openEuler", "docker", ("moby",)),
        ("openEuler", "containerd", ("containerd",)),
        ("rhel", "docker", ("docker-ce",)),
        ("alpine", "docker", ()),
    ],
)
def test_the_distributions_own_packages(system: str, engine: str, names: tuple[str, ...]) -> None:
    assert engines.packages(engines.Wanted(True), system, engine) == names
    assert engines.packages(engines.Wanted(True, ("mine",)), system, engine) == ("mine",)


def facts(**changes: Any) -> engines.Facts:
    return engines.Facts("docker", True, "25.0.3", "openEuler", {})._replace(**changes)


JUDGED: dict[str, tuple[engines.Facts, engines.Wanted, str, str]] = {
    "document 002's": (facts(), engines.Wanted(True), "ok", ""),
    "older": (
        facts(version="20.10.24"),
        engines.Wanted(True),
        "blocked",
        "docker 20.10.24 is older than 25.0.3; upgrade it, or set container_engine_since: "
        "20.10.24 to use it as it is",
    ),
    "older, and the site knows": (
        facts(version="20.10.24"),
        engines.Wanted(True, since="20.10"),
        "ok",
        "",
    ),
    "silent": (
        facts(version=""),
        engines.Wanted(True),
        "blocked",
        "docker of an unknown version is older than 25.0.3; upgrade it, or set "
        "container_engine_since: 0 to use it as it is",
    ),
    "unknown system": (
        facts(installed=False, system="alpine"),
        engines.Wanted(True),
        "blocked",
        "no package of docker is known for alpine; name it in container_engine_packages",
    ),
    "absent": (
        facts(installed=False),
        engines.Wanted(True),
        "install",
        "docker absent; moby from the host's repositories",
    ),
}


@pytest.mark.parametrize("case", JUDGED)
def test_its_version_is_judged_before_any_change(case: str) -> None:
    found, wanted, action, reason = JUDGED[case]
    decision = engines.plan(found, wanted)
    assert (decision.action, decision.reason) == (action, reason)


# -- in the plan and the verdict -------------------------------------------------------------


def steps(host: Host, install: bool) -> dict[str, str]:
    desired: dict[str, Any] = {
        **hostroot.desired(),
        "container_engine": {"install": install, "packages": [], "since": ""},
    }
    return {step.component: step.action for step in plan(observe(host, desired), desired)}


def test_an_absent_engine_blocks_the_runtime_unless_it_is_to_be_installed(machine: Machine) -> None:
    unasked = steps(machine.host, install=False)
    assert "container_engine" not in unasked
    assert unasked["container_runtime"] == "blocked"
    asked = steps(machine.host, install=True)
    assert asked["container_engine"] == asked["container_runtime"] == "install"


def test_a_check_predicts_a_runtime_for_the_engine_to_come(machine: Machine) -> None:
    params = {"state": "present", "engine_expected": True}
    assert containerd_runtime.converge(machine.host, params, check=True)["changed"]
    with pytest.raises(XpuError, match="is not installed"):
        containerd_runtime.converge(machine.host, params, check=False)
    with pytest.raises(XpuError, match="is not installed"):
        containerd_runtime.converge(machine.host, {"state": "present"}, check=True)


CTR = """Client:
  Version:  1.7.27
  Go version: go1.23.7

Server:
  Version:  {}
  Revision: 05044ec0a9a75232cad458027ca83437aae3f4da
  UUID: 1f0b0f5b-7d5c-4d6e-9a3c-2f6f2d9c7a11
"""


@pytest.mark.parametrize(
    ("text", "rc", "state", "found"),
    [
        (CTR.format("1.7.27"), 0, "ok", "containerd 1.7.27"),
        (CTR.format("v2.1.4"), 0, "ok", "containerd 2.1.4"),
        (CTR.format("1.5.9"), 0, "failed", "containerd 1.5.9"),
        ("cannot connect", 1, "failed", ""),
    ],
)
def test_the_verdict_asks_what_serves(
    text: str, rc: int, state: str, found: str, tmp_path: Path
) -> None:
    root = hostroot.bare(tmp_path / "host")
    hostroot.put(root, "/usr/bin/ctr", f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {rc}\n", 0o755)
    wanted = {"container_engine": {"name": "containerd", "since": "1.6.0"}}
    (part,) = judge(Host(str(root)), "h", wanted, {})["components"]
    assert (part["state"], part["found"]) == (state, found)
