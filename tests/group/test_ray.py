# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray itself under run.sh, with a stub engine on it (vLLM's CPU backend refuses Ray); ``-m soak``.

Ray's daemons leave their session and their parent; a group formed anew has none of the old ones.
Needs root, 2 GB of free memory and, once, 260 MB for Ray. 3 minutes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from group.conftest import MakeGroup, rooted
from group.members import Group, Process, descendants, wait_for

ENGINE = Path(__file__).with_name("ray") / "engine.py"
PATIENCE_S = 600.0
RAY = (
    f"{sys.executable} -m ray.scripts.scripts start --disable-usage-stats --num-cpus 2"
    " --object-store-memory 80000000"
)
FRAGMENTS = {
    "leader.sh": f'{RAY} --head --port 6379 --node-ip-address "$POD_IP" --include-dashboard=false'
    f" || exit 1\n{sys.executable} {ENGINE} 2\n",
    "worker.sh": f'{RAY} --address "$FLEXAI_LEADER_IP":6379 --node-ip-address "$POD_IP" --block\n',
}
pytestmark = [
    pytest.mark.soak,
    rooted,
    pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64",
                       reason="the pinned wheels are of Linux on x86_64"),
]  # fmt: skip


def engine(group: Group) -> list[Process]:
    """All that runs in the members but run.sh and its server."""
    helper = [p for p in descendants(group.leader.pid()) if p.name.startswith("python3")][:1]
    found = [p for member in group.members for p in descendants(member.pid())]
    return [process for process in found if process not in helper]


def serving(group: Group, but: str = "") -> str:
    def another() -> str:
        epoch = group.epoch()
        return "" if epoch == but else epoch

    epoch = str(wait_for(another, "a serving group", group.logs, PATIENCE_S))
    assert group.complete() == (200, '{"choices": [{"text": "xx"}]}'), group.logs()
    return epoch


@pytest.fixture
def short_paths() -> Iterator[list[str]]:
    """One for each member, as in containers, and short: it becomes part of a socket's name."""
    directories = [tempfile.mkdtemp(prefix="fxray-", dir="/tmp") for _member in range(2)]
    yield directories
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(("index", "name"), [(1, "raylet"), (0, "gcs_server")])
def test_a_group_on_ray_is_formed_anew(
    short_paths: list[str], make_group: MakeGroup, tmp_path: Path, index: int, name: str
) -> None:
    from xpubuild.cache import Cache
    from xpubuild.recipes import ray

    settings = {
        "FLEXAI_BACKEND": "ray",
        "FLEXAI_GROUP_FAILURE_TIMEOUT": "20",
        "FLEXAI_DEEP_PROBE_SECONDS": "5",
        "PYTHONPATH": str(ray.build(Cache()) / "site"),
        "HOME": str(tmp_path),
    }
    group = make_group(environment=settings, fragments=FRAGMENTS)
    for member, directory in zip(group.members, short_paths, strict=True):
        member.environment["RAY_TMPDIR"] = directory
    group.start()
    epoch = serving(group)
    before = engine(group)
    victims = [p.pid for p in descendants(group.members[index].pid()) if p.name == name]
    os.kill(victims[0], signal.SIGKILL)
    serving(group, but=epoch)
    assert not {p.pid for p in before} & {p.pid for p in engine(group)}
