# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench-render``: 1,000 inference services as native objects, twice the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ansible_collections.flexai.xpu.plugins.filter.render_inference import render_inference

from bench.benchlib import Figure, Report, publish

SERVICES, ROUNDS, SEED = 1000, 5, 20261125
FACTS = {"kubernetes_version": "1.31", "volcano_version": "1.10.2"}


def role(replicas: int, gpus: int, image: str) -> dict[str, Any]:
    amounts = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": str(gpus)}
    container = {"name": "engine", "image": image, "resources": {"limits": amounts}}
    return {"replicas": replicas, "template": {"spec": {"containers": [container]}}}


def some_service(number: int, chance: random.Random) -> dict[str, Any]:
    """One of the shapes that sites have: 1 to 4 pods a group, 1 to 4 groups, scaling or not."""
    workers, groups = chance.randrange(4), chance.randint(1, 4)
    gpus = chance.choice([1, 2, 4])
    flexai: dict[str, Any] = {
        "engine": {"name": "vllm", "version": "0.20.0"},
        "model": {"path": "/models/Qwen2-7B-Instruct"},
        "parallelism": {"tp": gpus, "pp": 1 + workers},
        "network": {"profile": chance.choice(["tcp", "roce"])},
    }
    if chance.random() < 0.5:
        trigger = {"server": "http://prometheus:9090", "query": "sum(load)"}
        flexai["scaling"] = {"mode": "keda", "min_groups": 1, "prometheus": trigger}
    spec: dict[str, Any] = {
        "deploymentMode": "DistributeInference",
        "replicas": groups,
        "servers": {"leader": role(1, gpus, "vllm:1")},
        "flexai": flexai,
    }
    if workers:
        image = chance.choice(["vllm:1", "vllm:1", "vllm:2"])
        spec["servers"]["worker"] = role(workers, gpus, image)
    if chance.random() < 0.5:
        spec["scheduler"] = {"queue": "research"}
    return {
        "apiVersion": "system.hero.ai/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": f"service-{number}", "namespace": "serving"},
        "spec": spec,
    }


class Round(NamedTuple):
    """One rendering of all services."""

    seconds: float
    cpu_s: float
    digest: str
    objects: int


def render(services: Sequence[dict[str, Any]]) -> Round:
    began, used = time.perf_counter(), time.process_time()
    made = [render_inference(document, facts=FACTS) for document in services]
    took, used = time.perf_counter() - began, time.process_time() - used
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    return Round(took, used, digest, sum(len(one["objects"]) for one in made))


def main() -> int:
    chance = random.Random(SEED)
    services = [some_service(number, chance) for number in range(SERVICES)]
    rounds = [render(services) for _ in range(ROUNDS)]
    seconds = [one.seconds for one in rounds]
    figures = {
        f"{SERVICES} services": Figure(statistics.median(seconds), "s", 2.0),
        "worst round": Figure(max(seconds), "s"),
        # Beside a busy neighbour the processor's time says more than the clock.
        "processor time": Figure(statistics.median(one.cpu_s for one in rounds), "s"),
        "rounds that differ": Figure(len({one.digest for one in rounds}) - 1, "rounds", 0),
        "objects": Figure(rounds[0].objects, "objects"),
    }
    method = f"median of {ROUNDS} rounds over {SERVICES} services of every layout, seed {SEED}"
    return publish(Report("render", method, "none", figures))


if __name__ == "__main__":
    sys.exit(main())
