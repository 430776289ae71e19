# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook syshax.yml on a Podman host: there, proven, hit, and back without a trace.

The host has no accelerator: the accelerator's container is a stand-in without a device. Engines are
mock engines here. The long form (``-m soak``) has two real vLLM servers in the containers, and all
of it once more on Docker: Debian 13's 26.1.5, which document 002 takes as it is, and Ubuntu
24.04's 24.0.7, which is older than it wants, so syshax_runtime_since is lowered there alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e import real_engines, snapshot
from e2e.nodeplay import PLAYBOOK, ROOT, Run, look
from e2e.real_engines import MODELS, PLACE, on_machine
from testbed import machine, up
from testbed.hosts import Host, Testbed
from testbed.suite import fresh_hosts
from xpubuild import artefacts, debian
from xpubuild.cache import Cache
from xpubuild.recipes import images, syshax

NAME = os.environ.get("FLEXAI_TESTBED", "demo")
IMAGE = "flexai-test-engine:1"
UNINSTALL = "playbooks/uninstall.yml"
UNITS = ("syshax-gpu.service", "syshax-cpu.service", "syshax.service")
PATIENCE_S = 1200.0
# Document 002's, but that it is asked by Python: the host has no curl.
ASK = """
import json, urllib.request
body = {"model": "ds-32b", "messages": [{"role": "user", "content": PROMPT}], "stream": True,
        "max_tokens": 24}
request = urllib.request.Request("http://0.0.0.0:8010/v1/chat/" + WAY, json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=600) as answer:
    said = answer.read().decode()
    print(json.dumps({"route": answer.headers["x-syshax-route"], "said": said}))
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the testbed needs root")


@dataclass(frozen=True)
class Runtime:
    """What runs the containers, and the host that has it."""

    name: str
    topology: str
    host: str
    variables: Mapping[str, str]


# The choice is the role's own.
PODMAN = Runtime("podman", "syshax.yaml", "pod1", {"syshax_runtime": "auto"})
DOCKER = Runtime("docker", "syshax-docker-26.yaml", "dock1", {"syshax_runtime": "auto"})
DOCKER_24 = Runtime(
    "docker",
    "syshax-docker.yaml",
    "dock1",
    {"syshax_runtime": "docker", "syshax_runtime_since": "24.0.7"},
)


@pytest.fixture(
    scope="module",
    params=[
        PODMAN,
        pytest.param(DOCKER, marks=pytest.mark.soak),
        pytest.param(DOCKER_24, marks=pytest.mark.soak),
    ],
    ids=["podman", "docker", "docker-24"],
)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found: Runtime = request.param
    return found


@pytest.fixture(scope="module")
def testbed(runtime: Runtime) -> Iterator[Testbed]:
    topology = ROOT / "tests/testbed/topologies" / runtime.topology
    with fresh_hosts(topology, f"{NAME}-{topology.stem}") as made:
        yield made


@pytest.fixture(scope="module")
def host(testbed: Testbed, runtime: Runtime) -> Host:
    """With an image of Debian and Python, in which engines find what they import on a volume."""
    host = testbed.host(runtime.host)
    if runtime is PODMAN:
        # Debian's daily look for newer images finds no registry here: it would be a failed unit.
        host.exec(["systemctl", "mask", "--now", "podman-auto-update.timer"])
    rootfs = debian.rootfs(Cache(), images.BASE_SUITE, images.BASE_PACKAGES)
    host.put("/root/rootfs.tar", rootfs)
    host.exec([runtime.name, "import", "/root/rootfs.tar", IMAGE], timeout=600)
    host.exec(["rm", "/root/rootfs.tar"])
    host.exec(["mkdir", "-p", f"{MODELS}/tiny"])
    return host


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conductor's bundle alone; `make artefacts` takes minutes for what isn't needed here."""
    bundle = artefacts._syshax(Cache(), "x86_64")
    return artefacts.publish([bundle], tmp_path_factory.mktemp("artefacts"))


def mock(port: int, *knobs: str) -> list[str]:
    argv = ["python3", f"{PLACE}/mockengine.py", "--host=0.0.0.0", f"--port={port}"]
    return [*argv, *knobs]


@pytest.fixture(scope="module")
def mocks(host: Host, runtime: Runtime, manifest: Path) -> dict[str, Any]:
    """Variables of a site whose containers hold mock engines."""
    place = on_machine(host)
    shutil.copy(ROOT / "native/syshax/mocks/mockengine.py", place)
    shutil.copytree(syshax.build(Cache()) / "site", place / "site")
    engine = {
        "image": IMAGE,
        "env": {"PYTHONPATH": f"{PLACE}/site"},
        "volumes": [f"{PLACE}:{PLACE}:ro"],
    }
    knobs = ("dialect=nixl", "trusting=1")
    return {
        **site(manifest, runtime),
        **{f"syshax_gpu_{key}": value for key, value in engine.items()},
        **{f"syshax_cpu_{key}": value for key, value in engine.items()},
        "syshax_gpu_command": mock(8001, *knobs),
        "syshax_cpu_command": mock(8002, *knobs),
    }


def site(manifest: Path, runtime: Runtime) -> dict[str, Any]:
    return {
        **runtime.variables,
        "flexai_manifest": str(manifest),
        "syshax_accelerator": "stand-in",
        "syshax_models_dir": MODELS,
        "syshax_model": f"{MODELS}/tiny",
        "syshax_served_name": "ds-32b",
        "syshax_shm_size": "256m",
        "syshax_cpu_plan": {"smt": True},
        "syshax_settings": {"heartbeat.interval": 1, "handoff.probe_timeout": 60},
    }


def play(tmp_path: Path, host: Host, variables: dict[str, Any], *words: str) -> Run:
    """playbooks/syshax.yml, as a site runs it."""
    connection = {
        "ansible_connection": "containers.podman.podman",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    hosts = {host.container: {**connection, **variables}}
    inventory = {"all": {"children": {"flexai_syshax": {"hosts": hosts}}}}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    playbook = words[0] if words and words[0].endswith(".yml") else "playbooks/syshax.yml"
    options = [word for word in words if word != playbook]
    done = subprocess.run(
        [str(PLAYBOOK), "-i", str(tmp_path / "inventory.yml"), playbook, *options],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr)


def ask(host: Host, way: str = "completions") -> tuple[str, str]:
    """The engines that answered document 002's request, and what was said."""
    program = ASK.replace("WAY", repr(way)).replace("PROMPT", repr("介绍一下openEuler。" * 40))
    done = host.exec(["python3", "-c", program], timeout=PATIENCE_S)
    answer = json.loads(done.stdout)
    assert answer["said"].count("data: [DONE]") == 1
    return answer["route"], answer["said"]


def started(host: Host, unit: str) -> int:
    """When the unit became active, in microseconds; 0 while it isn't."""
    words = ["systemctl", "show", "--value", "--property", "ActiveState", unit]
    if host.exec(words).stdout.strip() != "active":
        return 0
    words[4] = "ActiveEnterTimestampMonotonic"
    return int(host.exec(words).stdout)


def power_fails(testbed: Testbed, host: Host) -> None:
    """Nothing is stopped in order; what was on the file system is there when it comes back."""
    subprocess.run(["podman", "kill", host.container], check=True, capture_output=True)
    with machine.locked(testbed.name):
        up.hosts_up(testbed.topology, testbed.name, None, Cache(), lambda _: None)


def until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.3)


# Where the role and what it starts keep things, beside what a snapshot looks through.
STATE = "/var/lib/flexai-xpu /var/lib/syshax /var/lib/private/syshax"


def left(host: Host, runtime: Runtime) -> list[str]:
    """Containers, directories and processes of ours that are still there."""
    said = [
        host.exec([runtime.name, "ps", "--all", "--quiet"]).stdout,
        host.exec(["sh", "-c", f"ls -d {STATE} 2> /dev/null; true"]).stdout,
        host.exec(["sh", "-c", "pgrep -fa '[m]ockengine|bin/[s]yshax|[v]llm'; true"]).stdout,
    ]
    return [line for text in said for line in text.splitlines()]


def test_there_proven_hit_and_back(
    tmp_path: Path, testbed: Testbed, host: Host, runtime: Runtime, mocks: dict[str, Any]
) -> None:
    before = look(host)
    predicted = play(tmp_path, host, mocks, "--check")
    assert predicted.rc == 0, predicted.output
    assert "changed=2" in predicted.output, predicted.output  # the bundle, and all the rest
    assert snapshot.differences(before, look(host)) == []

    done = play(tmp_path, host, mocks)
    assert done.rc == 0, done.output
    assert "changed=2" in done.output, done.output
    assert "hand-off proven (gpu>cpu)" in done.output, done.output
    assert "The accelerator here is a stand-in" in done.output
    own = " ".join(mocks["syshax_gpu_command"])
    assert f"Engines are commands of the site, not vllm serve: {own}; " in done.output, done.output
    times = [started(host, unit) for unit in UNITS]
    assert 0 < times[0] < times[1] < times[2], times
    again = play(tmp_path, host, mocks)
    assert again.rc == 0 and "changed=0" in again.output, again.output
    assert [started(host, unit) for unit in UNITS] == times  # and nothing was restarted

    # The document's request, and the engines' own namespaces.
    assert ask(host)[0] in ("gpu", "gpu>cpu")
    assert ask(host, "pd_disagg")[0] == "gpu>cpu"
    ipc = [
        host.exec([runtime.name, "exec", name, "readlink", "/proc/self/ns/ipc"]).stdout
        for name in ("vllm_gpu", "vllm_cpu")
    ]
    assert ipc[0] == ipc[1]
    host.exec(["systemd-analyze", "security", "--no-pager", "--threshold=20", UNITS[2]])

    # The accelerator's engine dies: the CPU's, whose namespace is gone, starts anew behind it.
    host.exec([runtime.name, "kill", "vllm_gpu"])
    until(
        "both engines are back, in order",
        lambda: times[1] < started(host, UNITS[0]) < started(host, UNITS[1]),
    )
    assert started(host, UNITS[2]) == times[2]
    until("it hands over again", lambda: ask(host, "pd_disagg")[0] == "gpu>cpu")

    # The power fails under running containers: all three come back by themselves.
    power_fails(testbed, host)
    until("all units are back", lambda: all(started(host, unit) for unit in UNITS))
    until("it hands over after a boot", lambda: ask(host, "pd_disagg")[0] == "gpu>cpu")

    # The program, as the document types it.
    words = (
        "export SYSHAX_CONFIG=/root/typed.yaml; syshax init && syshax config gpu.port 8001 && "
        "syshax config cpu.port 8002 && syshax config conductor.port 8010 && "
        "syshax config model ds-32b && syshax interfaces && syshax check-config && rm /root/typed*"
    )
    typed = host.exec(["sh", "-c", words]).stdout
    assert "conductor: http://0.0.0.0:8010" in typed and "is valid" in typed

    # An engine that dies while it starts is told at once, not when its time is over.
    dying = {**mocks, "syshax_cpu_command": ["python3", "-c", "raise SystemExit('no such model')"]}
    failed = play(tmp_path, host, dying)
    assert failed.rc != 0, failed.output
    assert "syshax-cpu.service did not become healthy. It said: " in failed.output, failed.output
    assert "no such model" in failed.output, failed.output

    # Engines that can't hand over are found out, and told.
    plain = {**mocks, "syshax_gpu_command": mock(8001, "dialect=plain")}
    plain["syshax_cpu_command"] = mock(8002, "dialect=plain")
    one_sided = play(tmp_path, host, plain)
    assert one_sided.rc != 0, one_sided.output
    assert "sysHAX does not hand over (one-sided)" in one_sided.output, one_sided.output

    # The site's uninstallation takes it along: nothing is left, and a second one has nothing to do.
    predicted = play(tmp_path, host, mocks, UNINSTALL, "--check")
    assert predicted.rc == 0 and "changed=1" in predicted.output, predicted.output
    assert left(host, runtime)
    undone = play(tmp_path, host, mocks, UNINSTALL)
    assert undone.rc == 0 and "changed=1" in undone.output, undone.output
    host.exec(["rm", "-rf", "/var/cache/flexai-xpu"])  # artefacts stay, by their own promise
    assert snapshot.differences(before, look(host)) == []
    assert left(host, runtime) == []
    twice = play(tmp_path, host, mocks, UNINSTALL)
    assert twice.rc == 0 and "changed=0" in twice.output, twice.output


@pytest.mark.soak
@pytest.mark.skipif(
    not real_engines.NUMA.exists(), reason="needs the package libnuma1 on this machine"
)
def test_two_real_servers_hand_over_in_the_roles_containers(
    tmp_path: Path, host: Host, runtime: Runtime, manifest: Path
) -> None:
    """Needs 5 GB of memory; vLLM and a random model come from a volume."""
    real_engines.put(host)
    variables = {
        **site(manifest, runtime),
        **{f"syshax_{name}": value for name, value in real_engines.OPTIONS.items()},
    }
    for role in ("gpu", "cpu"):
        variables[f"syshax_{role}_image"] = IMAGE
        variables[f"syshax_{role}_volumes"] = [f"{PLACE}:{PLACE}:ro"]
        variables[f"syshax_{role}_dtype"] = real_engines.DTYPE
        variables[f"syshax_{role}_env"] = real_engines.ENV
        variables[f"syshax_{role}_args"] = real_engines.ARGS
    done = play(tmp_path, host, variables)
    assert done.rc == 0, done.output
    assert "hand-off proven (gpu>cpu)" in done.output, done.output
    route, said = ask(host, "pd_disagg")
    assert route == "gpu>cpu"
    assert said.count('"delta"') > 5
    assert play(tmp_path, host, variables, UNINSTALL).rc == 0
    assert left(host, runtime) == []
