# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon that does not come back with our configuration: the former one returns, and is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from e2e import snapshot
from testbed import down, machine, up
from testbed.hosts import Host, Testbed
from testbed.topology import read_topology
from xpubuild.cache import Cache

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "tests/testbed/topologies/runtimes.yaml"
NAME = f"{os.environ.get('FLEXAI_TESTBED', 'demo')}-rt"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
RUNTIMES = {"nvidia", "nvidia-cdi"}
COMPLAINT = "the test refuses this configuration"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


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


def run_role(tmp_path: Path, host: Host, engine: Engine, tasks: str = "main") -> tuple[int, str]:
    """The role on one host, as a site's own play has it."""
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.include_role": {
                    "name": "flexai.xpu.container_runtime",
                    "tasks_from": tasks,
                },
                "vars": {"container_runtime_engine": engine.name},
            }
        ],
    }
    variables = {
        "ansible_connection": "containers.podman.podman",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    inventory = {"all": {"hosts": {host.container: variables}}}
    for name, content in {"play.yml": [play], "inventory.yml": inventory}.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [str(PLAYBOOK), "-i", str(tmp_path / "inventory.yml"), str(tmp_path / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def effective_runtimes(host: Host, engine: Engine) -> set[str]:
    """As the daemon itself says."""
    if engine is DOCKER:
        told = host.exec(["docker", "info", "--format", "{{json .Runtimes}}"]).stdout
        return set(json.loads(told)) & RUNTIMES
    told = host.exec(["containerd", "config", "dump"]).stdout
    return {name for name in RUNTIMES if f"containerd.runtimes.{name}.options]" in told}


def look(host: Host) -> snapshot.Snapshot:
    """Without what a restart changes of necessity."""
    found = snapshot.take(lambda _, *argv: host.exec(argv).stdout, host.name)
    return {thing: what for thing, what in found.items() if not thing.startswith("start of ")}


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

    rc, output = run_role(tmp_path, host, engine)
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
    rc, output = run_role(tmp_path, host, engine)
    assert rc == 0, output
    assert "changed=1" in output
    assert effective_runtimes(host, engine) == RUNTIMES

    rc, output = run_role(tmp_path, host, engine)
    assert rc == 0 and "changed=0" in output, output

    rc, output = run_role(tmp_path, host, engine, "uninstall")
    assert rc == 0 and "changed=1" in output, output
    assert active(host, engine) == "active"
    assert effective_runtimes(host, engine) == set()
    assert snapshot.differences(before, look(host)) == []
