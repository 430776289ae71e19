# SPDX-License-Identifier: GPL-3.0-or-later
"""A card in MIG mode: its instances as CUDA, NVML and the driver's files show them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from simulators.simnode import Node
from simulators.tests.harness import Tenant, environment, ledger
from simulators.tests.test_interfaces import ask

NOT_SUPPORTED, NOT_FOUND = 3, 6
WHOLE = "GPU-51000000-0000-4000-8000-000000000000"
THREE, TWO, ONE = (f"MIG-51000000-{gi:02x}00-4000-8000-000000000000" for gi in (1, 5, 13))


def seen(node: Node) -> dict[str, Any]:
    """What NVML says of card 0 and its instances."""
    done = subprocess.run(
        [sys.executable, "-m", "simulators.tests.mig_look"],
        env=environment(node),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def mig(node_of: Callable[..., Node]) -> Node:
    """A node with a card in MIG mode and, beside it, one that isn't."""
    return node_of("a100-40g-mig", "t4")


def test_nvml_shows_a_card_with_instances(mig: Node) -> None:
    said = seen(mig)
    instances = said.pop("instances")
    assert said == {
        "cards": 2,  # instances are not counted among the cards
        "mode": [0, 1, 1],
        "most": 7,
        "busy": NOT_SUPPORTED,  # of a divided card nobody knows how busy it is
        "end": NOT_FOUND,
    }
    assert [
        (one["uuid"], one["name"].rpartition(" MIG ")[2], one["mib"], one["ids"], one["slices"])
        for one in instances
    ] == [
        (THREE, "3g.20gb", 19968, [1, 0], 3),
        (TWO, "2g.10gb", 9984, [5, 0], 2),
        (ONE, "1g.5gb", 4864, [13, 0], 1),
    ]
    for one in instances:
        assert one["is"] == 1 and one["same"] == [True, True] and not one["used"]
        assert {one[what] for what in ("samples", "minor", "events")} == {NOT_SUPPORTED}


def test_nvidia_smi_lists_instances_below_their_card(mig: Node) -> None:
    assert mig.run("nvidia-smi", "-L") == (
        f"GPU 0: NVIDIA A100-PCIE-40GB (UUID: {WHOLE})\n"
        f"  MIG 3g.20gb     Device  0: (UUID: {THREE})\n"
        f"  MIG 2g.10gb     Device  1: (UUID: {TWO})\n"
        f"  MIG 1g.5gb      Device  2: (UUID: {ONE})\n"
        f"GPU 1: Tesla T4 (UUID: {mig.uuids[1]})\n"
    )


def test_an_instance_is_there_while_its_device_nodes_are(mig: Node) -> None:
    # As mig-minors numbers them: card 0, GPU instances 1 and 13, compute instance 0.
    minors = (mig.directory / "proc/nvidia-caps/mig-minors").read_text().splitlines()
    assert {"gpu0/gi1/access 12", "gpu0/gi1/ci0/access 13", "gpu0/gi13/access 120"} <= set(minors)
    (mig.directory / "dev/nvidia-caps/nvidia-cap13").unlink()
    assert [one["uuid"] for one in seen(mig)["instances"]] == [TWO, ONE]
    (mig.directory / "dev/nvidia-caps/nvidia-cap13").touch()
    assert [one["uuid"] for one in seen(mig)["instances"]] == [THREE, TWO, ONE]


@pytest.mark.parametrize(
    ("wanted", "majors"),
    [(None, [7]), (THREE, [8]), (f"{ONE},{TWO}", [8]), ("0", [7]), (WHOLE, [])],
)
def test_cuda_shows_a_process_one_instance_that_it_names(
    mig: Node, wanted: str | None, majors: list[int]
) -> None:
    more = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
    assert [card["major"] for card in ask(mig, "devices", **more)[1].get("seen", [])] == majors


def test_alone_the_first_instance_is_the_device(node_of: Callable[..., Node]) -> None:
    node = node_of("a100-40g-mig")
    assert len(ask(node, "devices")[1]["seen"]) == 1
    (node.directory / "dev/nvidia-caps/nvidia-cap12").unlink()  # as where one may open another
    assert len(ask(node, "devices", CUDA_VISIBLE_DEVICES=TWO)[1]["seen"]) == 1


def test_who_works_on_an_instance_is_charged_there(
    node_of: Callable[..., Node], tenant: Callable[..., Tenant]
) -> None:
    node = node_of("a100-40g-mig")
    one = tenant(node, "hold", 64)
    one.says()
    held = {line["uuid"]: line["memory_bytes"] for line in ledger(node) if line["memory_bytes"]}
    assert set(held) == {THREE}
    assert [one["used"] for one in seen(node)["instances"]] == [True, False, False]
    one.end()
