# SPDX-License-Identifier: GPL-3.0-or-later
"""The node roles on systemd hosts: there and back without a trace, and a daemon that refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from e2e import snapshot
from testbed import artefacts, down, machine, up
from testbed.hosts import Host, Testbed
from testbed.topology import read_topology
from xpubuild.cache import Cache

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "tests/testbed/topologies/node-roles.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-roles"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
RUNTIMES = {"nvidia", "nvidia-cdi"}
COMPLAINT = "the test refuses this configuration"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


class Run(NamedTuple):
    """A finished playbook."""

    rc: int
    output: str


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
ROLES = ("nvidia_driver", "container_toolkit", "container_runtime", "xpu_runtime")
# A start and a reload both end badly as long as our configuration is there.
BREAKAGE = """\
[Service]
ExecStartPre=/bin/sh -c 'if {ours}; then echo {complaint}; exit 1; fi'
ExecReload=
ExecReload=/bin/sh -c 'if {ours}; then echo {complaint}; exit 1; fi'
"""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    machine.prepare()
    down.remove(NAME)  # what a killed earlier run may have left
    with machine.locked(NAME):
        made = up.hosts_up(read_topology(TOPOLOGY), NAME, None, Cache(), lambda _: None)
    # No role of a testbed means containerd alone.
    made.host(CONTAINERD.host).exec(["systemctl", "enable", "--now", CONTAINERD.unit])
    yield made
    down.remove(NAME)


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


def play(tmp_path: Path, host: Host, tasks: list[dict[str, object]], **more: object) -> Run:
    """Tasks on one host, as a site's own play has them."""
    variables = {
        "ansible_connection": "containers.podman.podman",
        "ansible_python_interpreter": "/usr/bin/python3",
        **more,
    }
    inventory = {"all": {"hosts": {host.container: variables}}}
    plays = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    for name, content in {"play.yml": plays, "inventory.yml": inventory}.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [str(PLAYBOOK), "-i", str(tmp_path / "inventory.yml"), str(tmp_path / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr)


def role(name: str, entry: str = "main") -> dict[str, object]:
    include = {"name": f"flexai.xpu.{name}", "tasks_from": entry}
    return {"ansible.builtin.include_role": include}


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


def look(host: Host) -> snapshot.Snapshot:
    """Without what a restart changes of necessity, and the cache that the linker writes anew."""
    found = snapshot.take(lambda _, *argv: host.exec(argv).stdout, host.name)
    return {
        thing: what
        for thing, what in found.items()
        if not thing.startswith("start of ") and thing != "/etc/ld.so.cache"
    }


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


def test_the_roles_go_there_and_back_and_leave_nothing(
    tmp_path: Path, testbed: Testbed, manifest: Path
) -> None:
    host = testbed.host(CONTAINERD.host)
    before = look(host)
    variables = {"flexai_manifest": str(manifest), "container_runtime_engine": CONTAINERD.name}

    rc, output = play(tmp_path, host, [role(name) for name in ROLES], **variables)
    assert rc == 0, output
    rc, output = play(tmp_path, host, [role(name, "validate") for name in ROLES], **variables)
    assert rc == 0 and "changed=0" in output, output
    assert snapshot.differences(before, look(host))

    way_back = [role(name, "uninstall") for name in reversed(ROLES)]
    rc, output = play(tmp_path, host, way_back, **variables)
    assert rc == 0 and "changed=4" in output, output
    assert snapshot.differences(before, look(host)) == []
    rc, output = play(tmp_path, host, way_back, **variables)
    assert rc == 0 and "changed=0" in output, output
