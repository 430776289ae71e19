# SPDX-License-Identifier: GPL-3.0-or-later
"""A model over two pods on two nodes, from inference.yml to nothing: the stub engine, real pods.

``-m soak``: vLLM itself, where the machine has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import serving
from e2e.conftest import Demo
from e2e.platform import Platform, Run, changed

NAMESPACE, NAME, MODEL = serving.PAIR
LEADER, WORKER = "pair-g0-0", "pair-g0-1"
KINDS = (
    "namespaces,configmaps,services,endpointslices,networkpolicies,statefulsets,"
    "poddisruptionbudgets,controllerrevisions,pods"
)
# In a pod: bash and Python are all that the image has.
KILL = """\
import os, pathlib, sys
for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
    if comm.read_text().startswith(sys.argv[1]):
        os.kill(int(comm.parent.name), 9)
        print("killed")
"""


class Pair:
    """The service as an operator and its clients see it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def play(self, *arguments: str, **more: Any) -> Run:
        options = {"serving_failure_timeout": 5, **more}
        return serving.inference(self.platform, "pair", *arguments, **options)

    def pods(self) -> dict[str, Any]:
        found = self.platform.kubectl("-n", NAMESPACE, "get", "pods", "-o", "json").output
        return {pod["metadata"]["name"]: pod for pod in json.loads(found)["items"]}

    def state(self, pod: str) -> dict[str, str]:
        """What run.sh last wrote of this member; nothing while its container isn't there."""
        done = self.platform.in_pod(f"{NAMESPACE}/{pod}", "cat", "/run/flexai/state", check=False)
        words = done.output.strip().split("\t") if done.rc == 0 else []
        return dict(word.split("=", 1) for word in words if "=" in word)

    def epoch(self) -> str:
        """The epoch that both members serve in, or none."""
        states = [self.state(pod) for pod in (LEADER, WORKER)]
        epochs = {state.get("epoch", "") for state in states}
        serves = all(state.get("phase") == "serving" for state in states)
        return epochs.pop() if serves and len(epochs) == 1 else ""

    def wait_serving(self, but: str) -> str:
        """Until both serve in one epoch, another than *but*; an answer proves it."""

        def another() -> str:
            epoch = self.epoch()
            return "" if epoch == but else epoch

        epoch = str(serving.wait_for(another, "a group formed anew", self.logs))
        assert self.chat()
        return epoch

    def chat(self) -> str:
        """Once the Service has taken the leader up again, its answer."""

        def ready() -> bool:
            found = [pod["status"].get("conditions", []) for pod in self.pods().values()]
            met = [{c["type"]: c["status"] for c in conditions} for conditions in found]
            return len(met) == 2 and all(conditions.get("Ready") == "True" for conditions in met)

        serving.wait_for(ready, "two ready pods", self.logs)
        return serving.chat(self.platform, *serving.PAIR, "红楼梦是什么")

    def logs(self) -> str:
        words = ("logs", "--prefix", "--tail=30", "-l", f"flexai.io/inferenceservice={NAME}")
        return self.platform.kubectl("-n", NAMESPACE, *words, check=False).output

    def left(self) -> list[str]:
        found = self.platform.kubectl("get", KINDS, "-A", "-o", "name").output
        return [line for line in found.split() if NAME in line or NAMESPACE in line]


@pytest.fixture(scope="module")
def pair(demo: Demo) -> Iterator[Pair]:
    nodes = serving.nodes(demo.platform)
    serving.place(serving.stub(), nodes)
    found = Pair(demo.platform)
    yield found
    demo.platform.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    serving.remove(nodes)


def test_a_group_forms_over_two_nodes_and_answers_through_its_service(pair: Pair) -> None:
    assert changed(pair.play()) != {0}
    assert {pod["spec"]["nodeName"] for pod in pair.pods().values()} == {"gpu1", "gpu2"}
    assert pair.chat() == "xxxxxxxx"


def test_a_second_run_changes_nothing(pair: Pair) -> None:
    assert changed(pair.play()) == {0}
    assert changed(pair.play("--check")) == {0}


def test_its_status_is_a_row_and_the_same_as_json(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    done = pair.play(playbook="inference_status", inference_service_status_file=str(file))
    assert changed(done) <= {0, 1}  # the file is new
    titles, row = serving.table(done)
    columns = dict(zip(titles.split(), row.split(), strict=True))
    (told,) = json.loads(file.read_text("utf-8"))
    (group,) = told["groups"]
    assert columns == {
        "service": f"{NAMESPACE}/{NAME}", "group": "pair-g0", "phase": "Serving", "ready": "2/2",
        "restarts": "0", "tokens/s": "0.0", "reason": "-", "address": told["address"],
    }  # fmt: skip
    assert told["address"] == f"http://{NAME}.{NAMESPACE}.svc:8000"
    assert (group["phase"], group["ready"], group["pods"]) == ("Serving", 2, 2)
    assert (group["restarts"], group["tokens_per_second"]) == (0, 0.0)


def test_a_killed_engine_of_the_leader_is_a_group_formed_anew(pair: Pair) -> None:
    epoch = pair.epoch()
    killed = pair.platform.in_pod(f"{NAMESPACE}/{LEADER}", "python3", "-c", KILL, "stub-rank")
    assert killed.output.strip() == "killed"
    pair.wait_serving(but=epoch)
    # In place: no container has begun anew, so no pod waits for a longer and longer back-off.
    restarts = [
        pod["status"]["containerStatuses"][0]["restartCount"] for pod in pair.pods().values()
    ]
    assert restarts == [0, 0]


@pytest.mark.parametrize("member", [LEADER, WORKER], ids=["leader", "worker"])
def test_a_deleted_pod_is_a_group_formed_anew(pair: Pair, member: str) -> None:
    epoch, before = pair.epoch(), pair.pods()
    pair.platform.kubectl("-n", NAMESPACE, "delete", "pod", member, "--wait=true")
    pair.wait_serving(but=epoch)
    after = pair.pods()
    other = ({LEADER, WORKER} - {member}).pop()
    uid = {
        name: (before[name]["metadata"]["uid"], after[name]["metadata"]["uid"]) for name in after
    }
    assert uid[member][0] != uid[member][1]
    assert uid[other][0] == uid[other][1]


def test_nothing_is_left_of_it(pair: Pair) -> None:
    predicted = pair.play("--check", inference_service_state="absent")
    assert changed(predicted) != {0}
    assert pair.left() != []
    assert changed(pair.play(inference_service_state="absent")) != {0}
    assert pair.left() == []
    assert changed(pair.play(inference_service_state="absent")) == {0}


@pytest.mark.soak
def test_vllm_itself_answers_before_and_after_a_death(demo: Demo) -> None:
    nodes = serving.nodes(demo.platform)
    engine = serving.best(nodes[0].directory)
    if engine.site is None:
        pytest.skip(engine.why)
    pair = Pair(demo.platform)
    serving.place(engine, nodes)
    try:
        pair.play(serving_failure_timeout=20)
        said, epoch = pair.chat(), pair.epoch()
        assert said
        killed = pair.platform.in_pod(f"{NAMESPACE}/{WORKER}", "python3", "-c", KILL, "VLLM::Work")
        assert killed.output.strip() == "killed"
        pair.wait_serving(but=epoch)
        assert pair.chat() == said
        pair.play(inference_service_state="absent")
    finally:
        demo.platform.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
        serving.remove(nodes)
