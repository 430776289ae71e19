# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens without run.sh, and why it exists; seen with vLLM 0.32, here with the stub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from group.members import STUB, _ask, children, descendants, wait_for

HOSTS = ("127.0.77.1", "127.0.77.2")
API = f"http://{HOSTS[0]}:8000"
TOKEN = {"model": "stub", "prompt": "1", "max_tokens": 1}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, all of 127/8 is here")


class Bare:
    """A rank started by hand."""

    def __init__(self, index: int, log: Path) -> None:
        self.log = log
        environment = {
            "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(index),
            "POD_IP": HOSTS[index], "FLEXAI_LEADER_IP": HOSTS[0],
        }  # fmt: skip
        role = "worker" if index else "leader"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(STUB), role], env=environment, stderr=out
            )

    def kill(self) -> None:
        """All of it, as a container's end does."""
        for process in [*descendants(self.process.pid)]:
            os.kill(process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def complaints(self) -> int:
        return self.log.read_text().count("recvValue failed")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Bare]]:
    bare = [Bare(index, tmp_path / f"{index}.log") for index in (0, 1)]
    try:
        wait_for(lambda: _ask(f"{API}/health", None, 5)[0] == 200, "a bare group that serves")
        assert _ask(f"{API}/v1/completions", TOKEN, 60)[0] == 200
        yield bare
    finally:
        for one in bare:
            one.kill()


def test_a_dead_worker_leaves_health_at_200_until_a_request_gets_500(pair: list[Bare]) -> None:
    leader, worker = pair
    worker.kill()
    assert [_ask(f"{API}/health", None, 5)[0] for _ in range(5)] == [200] * 5
    assert leader.process.poll() is None
    assert _ask(f"{API}/v1/completions", TOKEN, 60)[0] == 500
    wait_for(lambda: leader.process.poll() == 1, "the leader's end")


def test_a_dead_leader_leaves_a_worker_that_never_ends_and_a_group_that_hangs(
    pair: list[Bare], tmp_path: Path
) -> None:
    leader, worker = pair
    leader.kill()
    wait_for(lambda: worker.complaints() > 5, "complaints")
    pair.append(Bare(0, tmp_path / "again.log"))
    wait_for(lambda: len(children(pair[2].process.pid)) == 1, "the leader's restart")
    said = worker.complaints()
    wait_for(lambda: worker.complaints() > said + 20, "more complaints")
    assert worker.process.poll() is None
    assert _ask(f"{API}/health", None, 5)[0] == 0  # it waits for a rank that never comes
