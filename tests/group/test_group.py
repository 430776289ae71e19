# SPDX-License-Identifier: GPL-3.0-or-later
"""run.sh with real processes: whatever dies, hangs or is cut off, the group serves again, whole.

Every member is PID 1 of its own PID namespace, with a network of its own (members.py); the engine
is a stub (stub_engine.py). A test waits for a condition and never for a time.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._inference import engines

from group.conftest import MakeGroup, rooted
from group.members import Group, Network, descendants, stub_fragments, wait_for

pytestmark = rooted
# An engine that leaves a daemon in a session of its own behind, and an orphan that ends at once.
DAEMONS = "(setsid sleep 7777 &)\n(sleep 0.1 &)"


def names(group: Group, index: int) -> list[str]:
    """Of all processes in a member, the supervisor's own besides."""
    return sorted(process.name for process in descendants(group.members[index].pid()))


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Three members that outlive many deaths."""
    with Network(3) as network:
        group = Group(
            tmp_path_factory.mktemp("trio"), network,
            {"FLEXAI_MAX_GROUP_RESTARTS": "1000"}, stub_fragments(DAEMONS),
        )  # fmt: skip
        try:
            group.start()
            group.wait_serving()
            yield group
        finally:
            group.stop()


@pytest.mark.xdist_group("trio")
@pytest.mark.parametrize("kind", ["main", "core", "rank", "shell"])
@pytest.mark.parametrize("index", [0, 2])
def test_kill_9_of_any_process_of_an_engine(trio: Group, index: int, kind: str) -> None:
    epoch = trio.wait_serving()
    before = {p.pid for member in trio.members for p in member.engine()}
    victim = trio.members[index]
    if kind == "shell":
        os.kill(next(p.pid for p in victim.engine() if p.name == "bash"), signal.SIGKILL)
    else:
        os.kill(victim.engine_process(kind), signal.SIGKILL)
    trio.wait_serving(but=epoch)
    after = {p.pid for member in trio.members for p in member.engine()}
    assert not before & after  # every member has begun anew
    assert [member.starts for member in trio.members] == [1, 1, 1]  # no container has
    for member_index in range(3):
        assert names(trio, member_index).count("sleep") == 1  # the old daemon is gone


@pytest.mark.xdist_group("trio")
def test_orphans_are_reaped(trio: Group) -> None:
    for member in trio.members:
        states = [
            Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            for process in descendants(member.pid())
            if Path(f"/proc/{process.pid}/stat").exists()
        ]
        assert states and "Z" not in states


@pytest.mark.parametrize("index", [0, 1])
def test_kill_9_of_a_containers_first_process(make_group: MakeGroup, index: int) -> None:
    group = make_group()
    group.start()
    epoch = group.wait_serving()
    victim = group.members[index]
    victim.kill()
    victim.wait_end()
    victim.start()
    group.wait_serving(but=epoch)
    assert [member.starts for member in group.members] == [1 + (i == index) for i in (0, 1)]


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (1, 0, 2), (1, 2, 0)],
    ids=["leader first", "worker first", "leader last"],
)
def test_members_may_start_in_any_order(make_group: MakeGroup, order: tuple[int, ...]) -> None:
    group = make_group(3)
    for index in order:
        group.members[index].start()
        wait_for(lambda: group.members[index].state().get("phase"), "its state")  # noqa: B023
        assert group.members[index].state()["phase"] == "waiting" or index == order[-1]
    group.wait_serving()
    assert [member.state()["restarts"] for member in group.members] == ["0"] * 3


def test_probes_tell_a_group_that_forms_from_one_that_serves(make_group: MakeGroup) -> None:
    group = make_group()
    leader, worker = group.members
    leader.start()
    wait_for(lambda: "1" in leader.state().get("reason", ""), "the leader misses member 1")
    assert leader.probe("liveness") == (0, "")
    assert leader.probe("startup") == (1, "startup: waiting: members not there: 1")
    assert leader.probe("readiness") == (1, "readiness: waiting: members not there: 1")
    worker.start()
    group.wait_serving()
    for member in group.members:
        for question in ("startup", "readiness", "liveness"):
            assert member.probe(question) == (0, ""), question
    # A worker is ready by the leader's word alone.
    os.kill(leader.engine_process("main"), signal.SIGSTOP)
    status, text = worker.probe("readiness")
    assert (status, text) == (1, "readiness: /health of the leader at 10.99.0.1 says 000")


def test_a_stopped_rank_is_found(make_group: MakeGroup) -> None:
    group = make_group()
    group.start()
    epoch = group.wait_serving()
    os.kill(group.workers[0].engine_process("rank"), signal.SIGSTOP)
    group.wait_serving(but=epoch)
    assert "are stopped (state T)" in group.leader.log.read_text()


def test_a_hung_rank_is_found_by_the_deep_probe(make_group: MakeGroup) -> None:
    group = make_group(environment={"FLEXAI_DEEP_PROBE_SECONDS": "1"})
    group.start()
    epoch = group.wait_serving()
    os.kill(group.workers[0].engine_process("rank"), signal.SIGUSR1)
    group.wait_serving(but=epoch)
    assert "deep probe: no token within 5 s" in group.leader.log.read_text()


def test_a_deep_probe_is_no_failure(make_group: MakeGroup) -> None:
    group = make_group(environment={"FLEXAI_DEEP_PROBE_SECONDS": "1"})
    group.start()
    epoch = group.wait_serving()
    before = int(group.leader.state()["beat"])
    wait_for(lambda: int(group.leader.state()["beat"]) > before + 3, "three probes")
    assert group.epoch() == epoch


def test_a_stopped_leaders_engine_is_found_by_its_health(make_group: MakeGroup) -> None:
    group = make_group(environment={"FLEXAI_GROUP_FAILURE_TIMEOUT": "3"})
    group.start()
    epoch = group.wait_serving()
    os.kill(group.leader.engine_process("main"), signal.SIGSTOP)
    group.wait_serving(but=epoch)


@pytest.mark.parametrize("index", [0, 1])
def test_a_stopped_supervisor_is_missed(make_group: MakeGroup, index: int) -> None:
    """The others stop their engines and wait; what has been stopped comes to its senses later."""
    group = make_group()
    group.start()
    epoch = group.wait_serving()
    other = group.members[1 - index]
    group.members[index].kill(signal.SIGSTOP)
    if index:
        wait_for(lambda: other.state()["phase"] == "waiting", "the leader's wait")
        group.members[index].kill(signal.SIGCONT)
    else:
        # Its group server goes on, so that only its engine could be missed; here it is not.
        group.members[index].kill(signal.SIGCONT)
        os.kill(group.leader.engine_process("rank"), signal.SIGKILL)
    group.wait_serving(but=epoch)


@pytest.mark.parametrize("index", [0, 1])
def test_a_cut_network(make_group: MakeGroup, index: int) -> None:
    group = make_group()
    group.start()
    epoch = group.wait_serving()
    group.network.cut(index)
    for member in group.members:
        wait_for(lambda: member.state()["phase"] == "waiting", "both wait")  # noqa: B023
        assert not member.engine()
    group.network.mend(index)
    group.wait_serving(but=epoch)


def test_a_name_server_that_is_slow_and_does_not_know_at_first(
    make_group: MakeGroup, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    getent = tools / "getent"
    getent.write_text(
        "#!/bin/bash\n"
        f'[[ $* == "ahosts leader.group" ]] || exit 3\n'
        f"if [[ ! -e {tmp_path}/asked ]]; then touch {tmp_path}/asked; exit 2; fi\n"
        "sleep 7\n"
        "echo fd00::1 STREAM leader.group\necho 10.99.0.1 STREAM leader.group\n"
    )
    getent.chmod(0o755)
    group = make_group(
        environment={"LWS_LEADER_ADDRESS": "leader.group", "PATH": f"{tools}:/usr/bin:/bin"}
    )
    group.start()
    worker = group.workers[0]
    wait_for(lambda: "leader.group has no address" in worker.log.read_text(), "the first answer")
    beat = worker.state()["beat"]
    wait_for(lambda: worker.state()["beat"] != beat, "a beat while the name server takes its time")
    group.wait_serving()
    assert worker.state()["leader_ip"] == "10.99.0.1"


@pytest.mark.xdist_group("trio")
def test_nobody_can_upset_a_group_with_nonsense(trio: Group) -> None:
    epoch = trio.wait_serving()

    def send(data: bytes) -> bytes:
        with socket.create_connection(("10.99.0.1", 29400), timeout=60) as stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            return stream.recv(4096)

    for request, status in (
        (b"GET /epoch HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /epoch?idx=7&id=x HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /epoch?idx=1 HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /beat?idx=\xc2\xb2&id=x HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /beat?idx=1&id=x&epoch=old HTTP/1.0\r\n\r\n", b"409"),
        (b"POST /down?idx=1&id=x&epoch=" + epoch.encode() + b" HTTP/1.0\r\n\r\n", b"409"),
        (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", b"404"),
        (b"PUT / HTTP/1.0\r\n\r\n", b"501"),
        (b"\0" * 70000 + b"\r\n\r\n", b""),
    ):
        answer = trio.network.call(send, request)
        assert status in answer[:20], (request[:60], answer)
    assert trio.wait_serving() == epoch


def test_a_member_that_is_not_there_is_named_and_ends_the_wait(make_group: MakeGroup) -> None:
    group = make_group(3, {"FLEXAI_START_TIMEOUT": "3"})
    group.leader.start()
    group.workers[0].start()
    assert group.leader.wait_end() == 1
    assert group.leader.termination.read_text() == (
        "members not there: 2 after FLEXAI_START_TIMEOUT=3 s; "
        "see whether their pods are scheduled\n"
    )
    assert group.workers[0].wait_end() == 1


def test_the_restart_budget_ends_the_container_for_all_to_see(make_group: MakeGroup) -> None:
    fragments = {**stub_fragments(), "worker.sh": "exit 7\n"}
    group = make_group(environment={"FLEXAI_MAX_GROUP_RESTARTS": "1"}, fragments=fragments)
    group.start()
    assert group.leader.wait_end() == 1
    assert group.leader.termination.read_text() == (
        "restart budget used up (1 in 3600 s); last: member 1: its engine has ended with status 7\n"
    )
    assert group.leader.state()["phase"] == "failed"
    wait_for(lambda: group.workers[0].state()["phase"] == "waiting", "the worker's wait")
    assert group.workers[0].ended() is None
    group.leader.start()  # as the kubelet does, later and later
    assert group.leader.wait_end() == 1


def test_an_occupied_port_is_named(make_group: MakeGroup) -> None:
    group = make_group()
    group.leader.environment["FLEXAI_GROUP_PORT"] = "29501"
    squatter = subprocess.Popen(
        ["ip", "netns", "exec", group.network.namespaces[0], "python3", "-c",
         "import socket,time; s=socket.create_server(('10.99.0.1', 29501)); print(); "
         "time.sleep(3600)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert squatter.stdout is not None
        squatter.stdout.read(1)
        group.leader.start()
        assert group.leader.wait_end() == 1
    finally:
        squatter.kill()
        squatter.wait()
    assert "cannot listen on 10.99.0.1 port 29501: Address already in use" in (
        group.leader.termination.read_text()
    )


@pytest.fixture
def small_disk(make_group: MakeGroup) -> Iterator[Group]:
    """A pair whose state directories are a disk of 16 KiB each."""
    group = make_group()
    directories = [str(member.state_directory) for member in group.members]
    for directory in directories:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", directory], check=True)
    try:
        yield group
    finally:
        group.stop()
        for directory in directories:
            subprocess.run(["umount", directory], check=True)


def fill(directory: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (directory / "full").write_bytes(b"\0" * (1 << 20))


def test_a_disk_that_becomes_full_changes_nothing(small_disk: Group) -> None:
    small_disk.start()
    epoch = small_disk.wait_serving()
    for member in small_disk.members:
        fill(member.state_directory)
    os.kill(small_disk.workers[0].engine_process("rank"), signal.SIGKILL)
    epoch = small_disk.wait_serving(but=epoch)
    assert [member.probe("liveness") for member in small_disk.members] == [(0, "")] * 2
    victim = small_disk.leader
    victim.kill()
    victim.wait_end()
    victim.start()
    small_disk.wait_serving(but=epoch)


def test_a_disk_that_is_full_from_the_start_is_told(small_disk: Group) -> None:
    fill(small_disk.leader.state_directory)
    small_disk.leader.start()
    assert small_disk.leader.wait_end() == 1
    said = small_disk.leader.log.read_text().splitlines()
    assert len(said) == 1
    assert said[0].endswith("free the disk or mount another")


def test_a_leader_drains(make_group: MakeGroup) -> None:
    """A request that has begun is answered, and no worker disturbs it."""
    group = make_group(environment={"STUB_TOKEN_SECONDS": "0.2"})
    group.start()
    group.wait_serving()
    answer: list[tuple[int, str]] = []
    client = threading.Thread(target=lambda: answer.append(group.complete(tokens=15)))
    client.start()
    wait_for(lambda: established(group), "a request on its way")
    group.leader.kill(signal.SIGTERM)
    assert group.leader.wait_end() == 0
    client.join()
    assert answer[0][0] == 200, group.logs()
    assert "1 requests to finish" in group.leader.log.read_text()
    wait_for(lambda: not group.workers[0].engine(), "a worker without engine", group.logs)


def established(group: Group) -> bool:
    """Has the client a connection to the API?"""
    shown = subprocess.run(
        ["ip", "netns", "exec", group.network.namespaces[0], "cat", "/proc/net/tcp"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return any(
        f"{8000:04X}" == line.split()[1].split(":")[1] and line.split()[3] == "01"
        for line in shown.splitlines()[1:]
    )


def test_a_drain_has_an_end(make_group: MakeGroup) -> None:
    group = make_group(
        environment={"STUB_TOKEN_SECONDS": "3600", "FLEXAI_DRAIN_SECONDS": "1"},
    )
    group.start()
    wait_for(group.epoch, "a serving group")
    client = threading.Thread(target=group.complete)
    client.start()
    wait_for(lambda: established(group), "a request on its way")
    group.leader.kill(signal.SIGTERM)
    assert group.leader.wait_end() == 0
    client.join()
    assert "not drained within FLEXAI_DRAIN_SECONDS=1" in group.leader.log.read_text()


def test_a_worker_waits_before_its_end_until_the_leader_is_gone(make_group: MakeGroup) -> None:
    group = make_group(environment={"FLEXAI_PRESTOP_SECONDS": "1", "FLEXAI_DRAIN_SECONDS": "600"})
    group.start()
    group.wait_serving()
    leader, worker = group.members
    answers: list[tuple[int, str]] = []
    hook = threading.Thread(target=lambda: answers.append(worker.prestop()))
    hook.start()
    assert leader.prestop() == (0, "")
    assert hook.is_alive()
    assert group.complete()[0] == 200
    leader.kill(signal.SIGTERM)
    assert leader.wait_end() == 0
    hook.join()
    assert answers == [(0, "")]
    worker.kill(signal.SIGTERM)
    assert worker.wait_end() == 0


def test_a_worker_that_is_told_to_stop_says_so(make_group: MakeGroup) -> None:
    group = make_group(environment={"FLEXAI_GROUP_FAILURE_TIMEOUT": "86400"})
    group.start()
    epoch = group.wait_serving()
    worker = group.workers[0]
    worker.kill(signal.SIGTERM)
    assert worker.wait_end() == 0
    wait_for(lambda: group.leader.state()["phase"] == "waiting", "the leader's wait")
    worker.start()
    group.wait_serving(but=epoch)
    assert "member 1: told to stop" in group.leader.log.read_text()


def test_an_engine_that_ignores_sigterm_is_killed(make_group: MakeGroup) -> None:
    group = make_group(fragments=stub_fragments("trap '' TERM"))
    group.start()
    epoch = group.wait_serving()
    os.kill(group.workers[0].engine_process("rank"), signal.SIGKILL)
    group.wait_serving(but=epoch)


def test_the_group_server_is_started_again(make_group: MakeGroup) -> None:
    group = make_group()
    group.start()
    epoch = group.wait_serving()
    helper = next(p for p in descendants(group.leader.pid()) if p.name.startswith("python3"))
    os.kill(helper.pid, signal.SIGKILL)
    group.wait_serving(but=epoch)


def test_a_python3_that_cannot_run_the_group_server_uses_up_the_budget(
    make_group: MakeGroup, tmp_path: Path
) -> None:
    broken = tmp_path / "tools" / "python3"
    broken.parent.mkdir()
    broken.write_text("#!/bin/bash\necho no module named http >&2\nexit 1\n")
    broken.chmod(0o755)
    group = make_group(environment={"PATH": f"{broken.parent}:/usr/bin:/bin"})
    group.leader.start()
    assert group.leader.wait_end() == 1
    assert group.leader.termination.read_text() == (
        "restart budget used up (5 in 3600 s); last: the group server has ended\n"
    )


def test_commands_that_do_not_meet_are_a_group_all_the_same(make_group: MakeGroup) -> None:
    """Document 004's first example: a web server, and a worker that sleeps."""
    server = (
        "import http.server as h, os\n"
        "class Ok(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "h.HTTPServer((os.environ['POD_IP'], 8000), Ok).serve_forever()\n"
    )
    fragments = {"leader.sh": f"python3 -c {shlex.quote(server)}\n", "worker.sh": "sleep 3600\n"}
    group = make_group(fragments=fragments)
    group.start()
    epoch = wait_for(group.epoch, "a serving group", group.logs)
    sleeper = next(p for p in descendants(group.workers[0].pid()) if p.name == "sleep")
    os.kill(sleeper.pid, signal.SIGKILL)
    wait_for(lambda: group.epoch() not in ("", epoch), "a group formed anew", group.logs)


def test_one_pod_alone(make_group: MakeGroup) -> None:
    """No group, no python3, no setsid; a fragment that ends in an exec."""
    fragments = {k: v.replace("\n/", "\nexec /") for k, v in stub_fragments().items()}
    group = make_group(1, {"FLEXAI_BACKEND": "none", "PATH": "/nowhere"}, fragments)
    group.start()
    epoch = group.wait_serving()
    os.kill(group.leader.engine_process("core"), signal.SIGKILL)
    group.wait_serving(but=epoch)
    group.leader.kill(signal.SIGTERM)
    assert group.leader.wait_end() == 0
    assert "0 requests to finish" in group.leader.log.read_text()


def test_an_image_without_ray_is_told_and_uses_up_the_budget(make_group: MakeGroup) -> None:
    """What the renderer writes for backend ray, where the image has none."""
    made = engines.commands(
        engines.Launch(
            engine="vllm", version="0.17.0", model_path="/model", served_name="stub", port=8000,
            group_size=2, backend="ray",
        )
    )  # fmt: skip
    group = make_group(
        environment={"FLEXAI_BACKEND": "ray", "FLEXAI_MAX_GROUP_RESTARTS": "1"},
        fragments={"leader.sh": made.leader, "worker.sh": made.worker},
    )
    group.start()
    assert group.leader.wait_end() == 1
    said = group.leader.termination.read_text()
    assert said.startswith("restart budget used up (1 in 3600 s); last: ")
    assert "ended with status 127" in said
    logs = "".join(member.log.read_text() for member in group.members)
    assert "ray is not in this image (vLLM brings it up to 0.17): add it" in logs


@pytest.mark.parametrize("index", [0, 1])
def test_an_image_with_nothing_but_bash(make_group: MakeGroup, index: int) -> None:
    """No python3, so no epochs: the group goes by who is connected to the rendezvous."""
    group = make_group(
        environment={"PATH": "/nowhere", "FLEXAI_GROUP_FAILURE_TIMEOUT": "3"},
    )
    group.start()
    wait_for(
        lambda: [m.state().get("phase") for m in group.members] == ["serving"] * 2,
        "a serving group",
        group.logs,
    )
    before = {p.pid for member in group.members for p in member.engine()}
    os.kill(group.members[index].engine_process("rank"), signal.SIGKILL)

    def anew() -> bool:
        states = [member.state().get("phase") for member in group.members]
        now = [{p.pid for p in member.engine()} for member in group.members]
        return states == ["serving"] * 2 and all(pids and not pids & before for pids in now)

    wait_for(anew, "a group formed anew", group.logs)
    assert group.complete()[0] == 200, group.logs()
