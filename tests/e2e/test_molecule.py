# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role has a Molecule scenario: short on the running demo, in full from bare hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from testbed.artefacts import publish_all

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "extensions" / "molecule"
MOLECULE = Path(sysconfig.get_path("scripts")) / "molecule"
_STEPS = yaml.safe_load((SCENARIOS / "utils/vars/order.yml").read_text("utf-8"))
ORDER = [step["role"] for step in _STEPS["role_order"]]
CHANGED = re.compile(r"ok=\d+ +changed=(\d+)")
# The testbed's hosts have their engine from the beginning.
THERE_ALREADY = ("container_engine",)
# The demo has no NPU: their scenarios run in integration/test_ascend.py.
ON_NPUS = ("ascend_driver", "ascend_cann", "ascend_vnpu")
# One line of Ansible's own log: which process of it said what.
LOGGED = re.compile(r"^\S+ \S+ p=(\d+) u=\S+ n=ansible \w+\| ?(.*)$")


def roles() -> set[str]:
    return {path.name for path in (ROOT / "roles").iterdir() if path.is_dir()}


def run(
    config: str, *arguments: str, state: Path | None = None, log: Path | None = None
) -> subprocess.CompletedProcess[str]:
    own = {"MOLECULE_EPHEMERAL_DIRECTORY": str(state)} if state else {}
    own |= {"ANSIBLE_LOG_PATH": str(log)} if log else {}
    return subprocess.run(
        [str(MOLECULE), "-c", str(SCENARIOS / config), *arguments],
        cwd=ROOT,
        env={**os.environ, **own, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def molecule(
    config: str, *arguments: str, state: Path | None = None, log: Path | None = None
) -> str:
    done = run(config, *arguments, state=state, log=log)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def told(log: Path) -> list[str]:
    """What each run of ansible-playbook said, of several that wrote into *log* at the same time."""
    runs: dict[str, list[str]] = {}
    for line in log.read_text("utf-8").splitlines():
        if match := LOGGED.match(line):
            runs.setdefault(match[1], []).append(match[2])
    return ["\n".join(lines) for lines in runs.values()]


def changes(output: str) -> int:
    """How much all hosts of one run of ansible-playbook say they changed."""
    found = CHANGED.findall(output)
    assert found, output[-6000:]
    return sum(map(int, found))


def changed_tasks(output: str) -> list[str]:
    """``host: task`` of everything that Ansible's output reports as changed."""
    found, task = [], ""
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line.removeprefix("TASK [").partition("]")[0]
        elif line.startswith("changed: ["):
            found.append(f"{line.removeprefix('changed: [').partition(']')[0]}: {task}")
    return found


def test_every_role_has_a_scenario_that_verifies() -> None:
    assert roles() == {path.parent.name for path in SCENARIOS.glob("*/verify.yml")}


@pytest.mark.usefixtures("demo")
def test_each_role_applied_again_changes_nothing(tmp_path: Path) -> None:
    """Two at a time: who changes nothing is in nobody's way."""
    log = tmp_path / "ansible.log"
    others = [f"--exclude={role}" for role in ON_NPUS]
    molecule("config.yml", "test", "--all", *others, "--workers", "2", log=log)
    outputs = told(log)
    assert len(outputs) == 2 * len(roles() - set(ON_NPUS))  # converge and verify
    assert [changed_tasks(output) for output in outputs] == [[]] * len(outputs)
    assert [changes(output) for output in outputs] == [0] * len(outputs)


def test_the_order_names_every_role() -> None:
    assert sorted(ORDER) == sorted(roles())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A testbed of its own for all roles; Molecule's notes of it lie where nothing older is."""
    publish_all(ROOT / "build" / "artefacts")
    state = tmp_path_factory.mktemp("molecule")
    molecule("full.yml", "destroy", "-s", ORDER[0], state=state)
    molecule("full.yml", "create", "-s", ORDER[0], state=state)
    yield state
    molecule("full.yml", "destroy", "-s", ORDER[0], state=state)


# NVIDIA's plugin wants a node that ours doesn't serve, sysHAX and vLLM engines and a model: full
# sequences are in test_nvidia_plugin.py, integration/test_syshax.py and test_vllm_service.py.
ELSEWHERE = ("nvidia_device_plugin", "syshax", "vllm_service", *ON_NPUS)
# The sandbox names no service (test_serving.py does): nothing to make, nothing to undo.
IDLE = ("inference_service",)


@pytest.mark.soak
@pytest.mark.parametrize("role", [role for role in ORDER if role not in ELSEWHERE])
def test_full_sequence(role: str, bare: Path, tmp_path: Path) -> None:
    """In order, so that preparing costs only the role before; each alone prepares them all."""

    def step(name: str) -> str:
        # Molecule skips what it remembers to have done; the testbed is what tells here.
        return molecule("full.yml", name, "-s", role, state=tmp_path / name)

    undone = (ROOT / "roles" / role / "tasks" / "uninstall.yml").exists()
    writes = undone and role not in (*THERE_ALREADY, *IDLE)
    step("prepare")
    predicted = changes(step("check"))
    done = changes(step("converge"))
    assert bool(predicted) == bool(done) == writes, (predicted, done)
    assert changes(step("converge")) == 0
    step("verify")
    removed = changes(step("cleanup"))
    assert bool(removed) == writes
    assert changes(step("cleanup")) == 0
