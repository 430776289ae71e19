# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups under the testbed's Volcano (1.10): whole or not at all, and one at a time.

Members hold seats, a resource that the tests give to nodes: how many members fit where is then no
matter of what else runs in the testbed. Engines are stubs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import groups
from e2e.conftest import Demo
from e2e.faults import wait_for
from e2e.groups import PATIENCE_S, Document, Site, ready

NAMESPACE = "serving-gang"
SEAT = "testbed.invalid/seat"
NODES = ("gpu1", "gpu2")
POD_GROUP = "podgroups.scheduling.volcano.sh"


def seats(site: Site, **counts: int) -> None:
    """How many members fit on each node; a node that isn't named has room for none."""
    for node in NODES:
        path = f"/status/capacity/{SEAT.replace('/', '~1')}"
        patch = [{"op": "add", "path": path, "value": str(counts.get(node, 0))}]
        arguments = ("patch", "node", node, "--subresource=status", "--type=json", "-p")
        site.kubectl(*arguments, json.dumps(patch))

        def allocatable(node: str = node) -> bool:
            (found,) = site.get("nodes", node)
            return bool(found["status"]["allocatable"].get(SEAT) == str(counts.get(node, 0)))

        wait_for(allocatable, f"{node}'s kubelet offers its seats", PATIENCE_S)


def service(groups_: int, **ours: Any) -> Document:
    document = groups.service(NAMESPACE, groups=groups_, limits={SEAT: "1"}, **ours)
    document["spec"]["scheduler"] = {"queue": "default"}
    return document


@pytest.fixture(scope="module")
def space(demo: Demo) -> Iterator[Site]:
    with groups.site(demo.platform, NAMESPACE) as found:
        try:
            yield found
        finally:
            for node in NODES:
                found.kubectl("uncordon", node)
                path = f"/status/capacity/{SEAT.replace('/', '~1')}"
                patch = json.dumps([{"op": "remove", "path": path}])
                demo.platform.kubectl(
                    "patch", "node", node, "--subresource=status", "--type=json", "-p", patch,
                    check=False,
                )  # fmt: skip


@pytest.fixture
def site(space: Site) -> Iterator[Site]:
    yield space
    space.run(service(1), state="absent")


def test_a_group_that_does_not_fit_waits_whole_and_comes_whole(site: Site) -> None:
    seats(site, gpu1=1)
    done = site.run(service(1), wait=False, rollout=False)
    kinds = [step.split()[1] for step in done["steps"]]
    assert kinds.index("PodGroup") < kinds.index("StatefulSet")

    def refused() -> bool:
        (group,) = site.get(POD_GROUP)
        conditions = group.get("status", {}).get("conditions", ())
        return any(one["type"] == "Unschedulable" for one in conditions)

    # There is a seat for one of the two; Volcano has looked and said that the gang is not placed.
    wait_for(refused, "Volcano has refused the group", PATIENCE_S)
    pods = site.pods()
    assert {name: pod["spec"].get("nodeName") for name, pod in pods.items()} == {
        "stub-g0-0": None,
        "stub-g0-1": None,
    }
    seats(site, gpu1=1, gpu2=1)
    site.await_serving(2)
    placed = site.pods()
    assert {pod["spec"]["nodeName"] for pod in placed.values()} == set(NODES)
    # The very pods that waited.
    assert {n: p["metadata"]["uid"] for n, p in placed.items()} == {
        n: p["metadata"]["uid"] for n, p in pods.items()
    }
    (group,) = site.get(POD_GROUP)
    born = [pod["metadata"]["creationTimestamp"] for pod in pods.values()]
    assert group["metadata"]["creationTimestamp"] <= min(born)
    assert (group["spec"]["minMember"], group["status"]["phase"]) == (2, "Running")
    site.await_answer("stub-g0-1")
    assert not site.run(service(1))["changed"]


def test_a_rollout_takes_one_group_after_the_other(site: Site, tmp_path: Path) -> None:
    seats(site, gpu1=2, gpu2=2)
    site.run(service(2))
    before = site.pods()
    with site.watch("pods", tmp_path) as watch:
        done = site.run(service(2, drain={"seconds": 3, "prestop_seconds": 1}))
        left = groups.departures(watch.events())
    rolled = [step for step in done["steps"] if step.startswith("roll")]
    assert rolled == [f"roll {NAMESPACE}/stub-g0", f"roll {NAMESPACE}/stub-g1"]
    assert [one.group for one in left] == ["0", "0", "1", "1"]
    # Before the second group's first pod left, the first group was whole again.
    assert [name for name in left[2].unready if name.startswith("stub-g0")] == [], left
    after = site.pods()
    assert all(ready(pod) for pod in after.values()) and after.keys() == before.keys()
    assert not {p["metadata"]["uid"] for p in after.values()} & {
        p["metadata"]["uid"] for p in before.values()
    }


@pytest.mark.soak
def test_a_drained_node_disturbs_one_group_at_a_time(site: Site, tmp_path: Path) -> None:
    seats(site, gpu1=4)
    site.run(service(2))
    assert {pod["spec"]["nodeName"] for pod in site.pods().values()} == {"gpu1"}
    seats(site, gpu1=4, gpu2=4)
    with site.watch("pods", tmp_path) as watch:
        site.kubectl(
            "drain", "gpu1", "--ignore-daemonsets", "--delete-emptydir-data",
            f"--pod-selector={groups.SERVICE}={groups.NAME}", f"--timeout={PATIENCE_S}s",
        )  # fmt: skip
        site.await_serving(4)
        left = groups.departures(watch.events())
    assert {pod["spec"]["nodeName"] for pod in site.pods().values()} == {"gpu2"}
    assert len(left) == 4
    for one in left:
        # The budget gives a ready pod away only where all others are ready.
        assert not one.ready or one.unready == (), left
    site.kubectl("uncordon", "gpu1")
