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

from group.conftest import rooted
from group.members import STUB, Network, children, descendants, tool, wait_for

API = f"http://{Network.address(0)}:8000"
TOKEN = {"model": "stub", "prompt": "1", "max_tokens": 1}
pytestmark = rooted


class Bare:
    """A rank started by hand."""

    def __init__(self, network: Network, index: int, log: Path) -> None:
        self.log = log
        environment = {
            "LWS_GROUP_SIZE": "2",
            "LWS_WORKER_INDEX": str(index),
            "POD_IP": network.address(index),
            "FLEXAI_LEADER_IP": network.address(0),
        }
        inside = [tool("ip"), "netns", "exec", network.namespaces[index]]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*inside, sys.executable, str(STUB), "worker" if index else "leader"],
                env=environment,
                stderr=out,
            )

    def kill(self) -> None:
        """All of it, as a container's end does."""
        for process in [*descendants(self.process.pid)]:
            os.kill(process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def complaints(self) -> int:
        return self.log.read_text().count("recvValue failed")


class Pair:
    """Two ranks in a network of their own, and their client."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network, self._directory = network, directory
        self.ranks: list[Bare] = []

    def start(self, index: int) -> Bare:
        log = self._directory / f"{len(self.ranks)}.log"
        self.ranks.append(Bare(self.network, index, log))
        return self.ranks[-1]

    def health(self) -> int:
        return self.network.ask(f"{API}/health")[0]

    def complete(self) -> int:
        return self.network.ask(f"{API}/v1/completions", TOKEN)[0]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Network(2) as network:
        bare = Pair(network, tmp_path)
        try:
            for index in (0, 1):
                bare.start(index)
            wait_for(lambda: bare.health() == 200, "a bare group that serves")
            assert bare.complete() == 200
            yield bare
        finally:
            for rank in bare.ranks:
                rank.kill()


def test_a_dead_worker_leaves_health_at_200_until_a_request_gets_500(pair: Pair) -> None:
    leader, worker = pair.ranks
    worker.kill()
    assert [pair.health() for _time in range(5)] == [200] * 5
    assert leader.process.poll() is None
    assert pair.complete() == 500
    wait_for(lambda: leader.process.poll() == 1, "the leader's end")


def test_a_dead_leader_leaves_a_worker_that_never_ends_and_a_group_that_hangs(pair: Pair) -> None:
    leader, worker = pair.ranks
    leader.kill()
    wait_for(lambda: worker.complaints() > 5, "complaints")
    again = pair.start(0)
    wait_for(lambda: len(children(again.process.pid)) == 1, "the leader's restart")
    said = worker.complaints()
    wait_for(lambda: worker.complaints() > said + 20, "more complaints")
    assert worker.process.poll() is None
    assert pair.health() == 0  # it waits for a rank that never comes
