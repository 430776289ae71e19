# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped program finds MIG instances through a simulated NVML, and slices one of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simulators import simnode
from xpubuild.cache import Cache
from xpubuild.recipes import cluster

INSTANCE = "MIG-51000000-{:02x}00-4000-8000-000000000000"


@pytest.fixture
def cards(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What `slice list` says of a node with a card in MIG mode and one that isn't."""
    node = simnode.up(tmp_path / "node", ["a100-40g-mig", "t4"])
    procfs = tmp_path / "procfs"
    procfs.mkdir()
    (procfs / "driver").symlink_to(node.directory / "proc")
    words = {
        "--nvml-library": node.driver / "lib/libnvidia-ml.so.1",
        "--proc-dir": procfs,
        "--state-dir": tmp_path / "state",
        "--slice-dir": tmp_path / "etc",
        "--cdi-file": tmp_path / "cdi.yaml",
    }

    def listed() -> list[dict[str, Any]]:
        argv: list[str | Path] = [cluster.build(Cache()) / "gpu-device-plugin", "slice", "list"]
        argv += ["--output", "json", *(word for pair in words.items() for word in pair)]
        done = subprocess.run(
            argv,
            env={**os.environ, **node.environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        found: list[dict[str, Any]] = json.loads(done.stdout)["cards"]
        return found

    yield listed
    simnode.down(node.directory)


def test_instances_stand_beside_cards(
    cards: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    a100 = "NVIDIA A100-PCIE-40GB MIG "
    wanted = [
        (100, INSTANCE.format(1), a100 + "3g.20gb", 19968),
        (101, INSTANCE.format(5), a100 + "2g.10gb", 9984),
        (102, INSTANCE.format(13), a100 + "1g.5gb", 4864),
        (1, "GPU-51000000-0000-4000-8000-000000000001", "Tesla T4", 15360),
    ]
    keys = ("index", "uuid", "model", "memory_mib")
    assert [tuple(card[key] for key in keys) for card in cards()] == wanted
    # One that is destroyed is gone at the next look, and comes back as itself.
    capability = tmp_path / "node/dev/nvidia-caps/nvidia-cap49"
    capability.unlink()
    assert [card["uuid"] for card in cards()] == [one[1] for one in (wanted[0], *wanted[2:])]
    capability.touch()
    assert [card["uuid"] for card in cards()] == [one[1] for one in wanted]
