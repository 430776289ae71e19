# SPDX-License-Identifier: GPL-3.0-or-later
"""A testbed's life on this machine: up, again, reboot, killed, down, and nothing left of it.

Needs root and whatever ``python -m testbed`` installs. The host image is built when it is not in
the cache (two minutes).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed import down, machine
from testbed.errors import TestbedError
from testbed.hosts import STATE_ROOT, Host, Testbed, load
from testbed.podman import podman
from testbed.up import boot_id, system_state

TESTS = Path(__file__).parents[1]
ONE_HOST = TESTS.parent / "topologies/one-host.yaml"
FIRST, SECOND = "life-a", "life-b"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="hosts are privileged containers: root")


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "testbed", *map(str, argv)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv), env=environment(), capture_output=True, text=True, check=False
    )


def ok(*argv: str | Path) -> str:
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*argv: str | Path) -> str:
    done = run(*argv)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "remedy:" in done.stderr
    return done.stderr


def killed_up(moment: float, *argv: str | Path, children: bool = False) -> None:
    """Start ``up`` and end it with SIGKILL after *moment* seconds, with its *children* or alone."""
    process = subprocess.Popen(
        command("up", ONE_HOST, *argv),
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(moment)
    if children:
        # The group lives on in the process we have not waited for, so its number is still ours.
        os.killpg(process.pid, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()


def machine_state() -> dict[str, str]:
    """Everything on the machine that a testbed could leave something in."""
    commands = {
        "interfaces": ["ip", "-brief", "address"],
        "routes": ["ip", "-4", "route"],
        "networks": ["podman", "network", "ls", "--format", "{{.Name}}"],
        "containers": ["podman", "ps", "--all", "--external", "--format", "{{.Names}}"],
        "rules": ["iptables-save"],
    }
    state = {name: machine.run(argv).stdout.decode() for name, argv in commands.items()}
    state["mounts"] = Path("/proc/self/mountinfo").read_text()
    state["cgroups"] = "\n".join(map(str, sorted(Path("/sys/fs/cgroup").glob("*/flexai*"))))
    state["locks"] = "\n".join(map(str, sorted(machine.LOCKS.glob("flexai*"))))
    return state


def processes_of(name: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            cgroup = (path / "cgroup").read_text()
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if name.replace("-", "_") in cgroup or any(w.startswith(f"{name}-h1") for w in words):
            found.append(f"process: {path.name} {' '.join(words)[:100]}")
    return found


def mentions(name: str, subnet: str) -> list[str]:
    """Lines of the machine's state that bear the testbed's name, cgroup or subnet."""
    needles = (name, name.replace("-", "_"), subnet.rsplit(".", 1)[0] + ".")
    found = [
        f"{kind}: {line}"
        for kind, text in machine_state().items()
        for line in text.splitlines()
        if any(needle in line for needle in needles)
    ]
    if (STATE_ROOT / name).exists():
        found.append(f"state: {STATE_ROOT / name}")
    return [*found, *processes_of(name)]


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    for name in (FIRST, SECOND):
        ok("down", "--name", name)
    yield
    for name in (FIRST, SECOND):
        ok("down", "--name", name)


@pytest.fixture
def first() -> Testbed:
    """The one testbed most tests look at; made by the first of them, found by the others."""
    ok("up", ONE_HOST, "--name", FIRST)
    return load(FIRST)


def test_two_testbeds_begun_in_the_same_moment_live_side_by_side() -> None:
    begun = [
        subprocess.Popen(command("up", ONE_HOST, "--name", name), env=environment())
        for name in (FIRST, SECOND)
    ]
    assert [process.wait() for process in begun] == [0, 0]
    first, second = load(FIRST), load(SECOND)
    assert second.subnet != first.subnet
    assert second.host("h1").cards[0].uuid != first.host("h1").cards[0].uuid
    first.host("h1").put("/tmp/only-here", b"")
    assert second.host("h1").exec(["test", "-e", "/tmp/only-here"], check=False).rc == 1
    ok("reboot", "h1", "--name", SECOND)
    assert system_state(first.host("h1")) == "running"
    ok("down", "--name", SECOND)
    assert mentions(SECOND, second.subnet) == []
    assert system_state(first.host("h1")) == "running"


def test_a_host_is_a_machine_of_its_own(first: Testbed) -> None:
    host = first.host("h1")
    assert system_state(host) == "running"
    assert host.exec(["hostname"]).stdout.strip() == "h1"
    assert boot_id(host) != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert host.exec(["stat", "-f", "-c", "%T", "/var/lib"]).stdout.strip() != "overlayfs"
    release = host.exec(["uname", "-r"]).stdout.strip()
    assert host.exec(["test", "-d", f"/lib/modules/{release}/build"]).rc == 0


def test_a_host_sees_its_own_cards_and_none_of_the_machines(first: Testbed) -> None:
    host = first.host("h1")
    (card,) = host.cards
    assert host.exec(["ls", "/sys/bus/pci/devices"]).stdout.split() == [card.pci_address]
    simulated = host.get(f"/sys/bus/pci/devices/{card.pci_address}/simgpu").decode()
    assert f"uuid {card.uuid}\n" in simulated


def test_systemd_keeps_to_its_hosts_cgroup(first: Testbed) -> None:
    # On cgroup v1 podman gives every host the machine's own systemd hierarchy (plan.INIT_SCRIPT).
    lines = Path(f"/proc/{first.host('h1').pid()}/cgroup").read_text().splitlines()
    assert [line for line in lines if "/flexai_testbed_life_a" not in line] == []


def test_exec_put_and_get(first: Testbed) -> None:
    host = first.host("h1")
    # /var/run is an absolute link: it must lead to the host's /run, not to the machine's.
    host.put("/var/run/flexai test/a file", b"\0binary\xff", 0o600)
    assert host.get("/run/flexai test/a file") == b"\0binary\xff"
    assert not Path("/run/flexai test").exists()
    assert host.exec(["stat", "-c", "%a", "/run/flexai test/a file"]).stdout == "600\n"
    host.put("/tmp/copy", ONE_HOST)
    assert host.get("/tmp/copy") == ONE_HOST.read_bytes()
    assert host.exec(["cat"], input="text").stdout == "text"
    assert host.exec(["sh", "-c", "exit 7"], check=False).rc == 7
    with pytest.raises(TestbedError, match=r"host h1: sh -c 'echo why >&2; exit 7' exited 7\nwhy"):
        host.exec(["sh", "-c", "echo why >&2; exit 7"])
    with pytest.raises(TestbedError, match=r"host h1: could not read /nope: .*No such file"):
        host.get("/nope")


def test_a_command_that_takes_too_long_is_ended_on_the_host(first: Testbed) -> None:
    host = first.host("h1")
    with pytest.raises(TestbedError, match=r"host h1: sleep 987 did not end within 1 s"):
        host.exec(["sleep", "987"], timeout=1)
    assert host.exec(["pgrep", "-f", "^sleep 987"], check=False).rc == 1


def test_ssh_works_with_the_keys_in_the_state_directory(first: Testbed) -> None:
    keys = first.state_dir / "ssh"
    argv: list[str | Path] = ["ssh", "-i", keys / "id_ed25519", "-o", "BatchMode=yes"]
    argv += ["-o", f"UserKnownHostsFile={keys / 'known_hosts'}", f"root@{first.hosts[0].address}"]
    assert machine.run([*argv, "hostname"]).stdout == b"h1\n"


def test_a_second_up_changes_nothing(first: Testbed) -> None:
    host = first.host("h1")
    before = (host.pid(), boot_id(host), first.document())
    ok("up", ONE_HOST, "--name", FIRST)
    assert (host.pid(), boot_id(host), load(FIRST).document()) == before


def test_reboot_changes_the_boot_id_and_keeps_the_files(first: Testbed) -> None:
    host = first.host("h1")
    host.put("/etc/kept", b"kept")
    before = boot_id(host)
    ok("reboot", "h1", "--name", FIRST)
    assert boot_id(host) != before
    assert host.get("/etc/kept") == b"kept"
    boots = host.exec(["journalctl", "--list-boots", "--no-pager"]).stdout
    assert boot_id(host).replace("-", "") in boots


def test_a_host_that_reboots_itself_comes_back(first: Testbed) -> None:
    host = first.host("h1")
    before = boot_id(host)
    host.exec(["systemctl", "reboot"], check=False)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if boot_id(host) != before and system_state(host) == "running":
                return
        except TestbedError:
            pass  # between the two boots there is no host to ask
        time.sleep(0.2)
    pytest.fail("did not come back within 60 s")


def test_a_stopped_host_is_started_again(first: Testbed) -> None:
    def states() -> list[str]:
        status: dict[str, Any] = json.loads(ok("status", "--json", "--name", FIRST))
        return [host["system"] for host in status["hosts"]]

    podman("stop", "--time=20", f"{FIRST}-h1")
    assert states() == ["stopped"]
    with pytest.raises(TestbedError, match=r"host h1 \(container life-a-h1\) is not running"):
        first.host("h1").get("/etc/hostname")
    ok("up", ONE_HOST, "--name", FIRST)
    assert states() == ["running"]


def test_a_host_whose_start_was_broken_off_is_started(first: Testbed) -> None:
    container = first.hosts[0].container
    podman("stop", "--time=5", container)
    podman("init", container)
    # What a podman does that is killed before it notes that the container runs.
    machine.run(["runc", "start", podman("inspect", "--format", "{{.Id}}", container).strip()])
    ok("up", ONE_HOST, "--name", FIRST)
    assert system_state(load(FIRST).hosts[0]) == "running"


def test_a_taken_subnet_is_refused_and_nothing_is_made(first: Testbed) -> None:
    text = refused("up", ONE_HOST, "--name", SECOND, "--subnet", first.subnet)
    assert f"subnet {first.subnet} is already taken by podman network {FIRST}" in text
    assert not (STATE_ROOT / SECOND).exists()


def test_a_taken_container_name_is_refused_and_nothing_is_made(first: Testbed) -> None:
    image = podman("inspect", "--format", "{{.Image}}", f"{FIRST}-h1").strip()
    podman("create", "--name", f"{SECOND}-h1", image)
    try:
        text = refused("up", ONE_HOST, "--name", SECOND)
        assert f"a container called '{SECOND}-h1' exists already and is no testbed's" in text
        assert not (STATE_ROOT / SECOND).exists()
        # down takes only what bears the testbed's mark.
        ok("down", "--name", SECOND)
        assert podman("ps", "--all", "--quiet", "--filter", f"name=^{SECOND}-h1$").strip()
    finally:
        podman("rm", "--force", f"{SECOND}-h1")


def test_a_foreign_network_of_the_testbeds_name_is_no_obstacle_and_kept() -> None:
    podman("network", "create", SECOND)
    try:
        ok("up", ONE_HOST, "--name", SECOND)
        ok("down", "--name", SECOND)
        assert SECOND in podman("network", "ls", "--format", "{{.Name}}").split()
    finally:
        podman("network", "rm", SECOND)


def test_another_topology_under_a_used_name_is_refused(first: Testbed, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("name: other\nhosts:\n  - {name: h2, os: debian12}\n")
    text = refused("up", other, "--name", FIRST)
    assert f"testbed '{FIRST}' exists with another topology or subnet" in text


def test_an_unknown_host_is_named_with_the_known_ones(first: Testbed) -> None:
    text = refused("reboot", "h9", "--name", FIRST)
    assert f"testbed {FIRST} has no host 'h9'" in text
    assert "use one of: h1" in text


def test_without_root_the_first_sentence_says_so() -> None:
    """No root but for reading: the checkout may lie in root's own directory."""
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    with tempfile.TemporaryDirectory() as name:
        # Whether a file is readable is asked for the user alone.
        Path(name).chmod(0o755)
        topology = shutil.copy(ONE_HOST, name)
        done = subprocess.run(
            [*argv, *command("up", topology)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the testbed needs root")


def test_down_leaves_nothing(first: Testbed) -> None:
    before = mentions(FIRST, first.subnet)
    # Each kind must be seen while the testbed lives, else its absence later proves nothing.
    for kind in ("interfaces", "networks", "containers", "rules", "cgroups", "state", "process"):
        assert any(line.startswith(kind) for line in before), kind
    ok("down", "--name", FIRST)
    assert mentions(FIRST, first.subnet) == []


def test_down_with_nothing_there_says_so() -> None:
    done = run("down", "--name", FIRST)
    assert done.returncode == 0
    assert f"nothing of testbed {FIRST} here" in done.stderr


@pytest.mark.parametrize("missing", ["state", "network", "container"])
def test_down_works_on_a_half_removed_testbed(missing: str) -> None:
    ok("up", ONE_HOST, "--name", FIRST)
    subnet = load(FIRST).subnet
    if missing == "state":
        (STATE_ROOT / FIRST / "state.json").unlink()
    if missing == "network":
        podman("network", "rm", "--force", load(FIRST).network)
    if missing == "container":
        podman("rm", "--force", "--time=0", f"{FIRST}-h1")
    ok("down", "--name", FIRST)
    assert mentions(FIRST, subnet) == []


# Seconds into `up` of one host with a warm cache; it takes about three.
@pytest.mark.parametrize("moment", [0.5, 0.9, 1.3, 1.8])
def test_down_works_after_up_was_killed(moment: float) -> None:
    killed_up(moment, "--name", FIRST, "--subnet", "10.89.250.0/24")
    ok("down", "--name", FIRST)
    assert mentions(FIRST, "10.89.250.0/24") == []
    assert down.look(FIRST).lines() == []


@pytest.mark.soak
@pytest.mark.parametrize("round_", range(40))
def test_down_works_after_up_and_its_podman_were_killed(round_: int) -> None:
    moment = 0.4 + 0.06 * round_
    killed_up(moment, "--name", FIRST, "--subnet", "10.89.250.0/24", children=True)
    ok("down", "--name", FIRST)
    assert mentions(FIRST, "10.89.250.0/24") == []


def test_up_goes_on_where_a_killed_one_stopped() -> None:
    for moment in (0.8, 1.2):
        killed_up(moment, "--name", FIRST)
    ok("up", ONE_HOST, "--name", FIRST)
    host = load(FIRST).host("h1")
    assert system_state(host) == "running"
    assert host.get("/root/.ssh/authorized_keys").startswith(b"ssh-ed25519 ")
    ok("down", "--name", FIRST)


def kill_every_process(host: Host) -> None:
    """As when all processes of a session are ended: the host's and the monitor podman set on it."""
    monitor = int(podman("inspect", "--format", "{{.State.ConmonPid}}", host.container))
    first = host.pid()
    for pid in (monitor, first):
        os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{first}").exists():
        time.sleep(0.05)


def test_up_starts_a_host_again_of_which_every_process_was_killed() -> None:
    ok("up", ONE_HOST, "--name", FIRST)
    host = load(FIRST).host("h1")
    host.put("/etc/kept", b"of before\n")
    before = boot_id(host)
    kill_every_process(host)
    assert podman("inspect", "--format", "{{.State.Status}}", host.container).strip() == "running"
    ok("up", ONE_HOST, "--name", FIRST)
    assert system_state(host) == "running"
    assert boot_id(host) != before
    assert host.get("/etc/kept") == b"of before\n"
    ok("down", "--name", FIRST)


def start_killed_at_its_network(host: Host, scratch: Path) -> None:
    """Start a host by a podman that dies once it has taken the address, before it notes so."""
    helper = scratch / "netavark"
    helper.write_text('#!/bin/sh\ncase " $* " in *" setup "*) kill -KILL "$PPID" ;; esac\n')
    helper.chmod(0o755)
    settings = scratch / "containers.conf"
    settings.write_text(f'[engine]\nhelper_binaries_dir = ["{scratch}"]\n')
    argv = ["podman", "--runtime", "runc", "start", host.container]
    killed = machine.run(argv, check=False, env={"CONTAINERS_CONF": str(settings)})
    assert killed.returncode != 0


def test_an_address_that_a_killed_podman_took_is_free_after_down(tmp_path: Path) -> None:
    ok("up", ONE_HOST, "--name", FIRST)
    before = load(FIRST)
    podman("stop", "--time=0", before.host("h1").container)
    start_killed_at_its_network(before.host("h1"), tmp_path)
    assert "take the testbed down, then up again" in refused("up", ONE_HOST, "--name", FIRST)
    ok("down", "--name", FIRST)
    ok("up", ONE_HOST, "--name", FIRST)
    after = load(FIRST)
    assert after.host("h1").address == before.host("h1").address
    assert after.network != before.network
    ok("down", "--name", FIRST)
