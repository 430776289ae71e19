# SPDX-License-Identifier: GPL-3.0-or-later
"""A mixed crowd of pods that ask for slices, as data: what each asks for, what becomes of it.

Pure. A shape that is added to ``SHAPES`` takes part in every test and in ``make bench-allocate``.
Where the admission webhook sees a pod, several vGPUs a container are several slices; elsewhere that
is refused (docs/interfaces.md section 7), and the scheduler is the one that the pod names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Any

IMAGE = "docker.io/library/xpu-workload:v1.0"
DEFAULT_SCHEDULER = "default-scheduler"
RUNTIME_CLASS = "flexai-xpu"
SHAPE_ANNOTATION = "flexai.io/vgpu-shape"
FULL_CORES = 100
MIB_PER_GIB = 1024
# Long enough to be met by others, short enough to make room for those who wait.
PASSING_S = 3


@dataclass(frozen=True)
class Ask:
    """One container, per vGPU as a user writes it; all zero is a container that wants no card."""

    number: int = 0
    cores: int = 0
    memory_gib: int = 0

    @property
    def resources(self) -> dict[str, str]:
        """The container's limits."""
        wanted = {
            "huawei.com/vgpu-number": self.number,
            "huawei.com/vgpu-cores": self.cores,
            "huawei.com/vgpu-memory-1Gi": self.memory_gib,
        }
        return {name: str(count) for name, count in wanted.items() if count}

    @property
    def cores_each(self) -> int:
        """Percent of each card; by number alone a card is whole."""
        return self.cores if self.cores or self.memory_gib else FULL_CORES

    @property
    def memory_mib_each(self) -> int | None:
        """MiB of each card, None for all it has."""
        return self.memory_gib * MIB_PER_GIB or None


class Fate(Enum):
    """What must become of a pod."""

    STAYS = "stays"  # runs until it is deleted
    PASSES = "passes"  # runs for a moment and succeeds
    REFUSED = "refused"  # never starts, and an event says why


@dataclass(frozen=True)
class Shape:
    """A kind of pod. ``reason`` is a regular expression that an event of a refused one matches."""

    name: str
    containers: tuple[Ask, ...]
    weight: int
    fate: Fate = Fate.STAYS
    init: tuple[Ask, ...] = ()
    reason: str = ""
    # None: the scheduler's choice; else the node's place in the list of nodes with cards, given as
    # nodeName, so that no scheduler is asked.
    pinned: int | None = None
    # Why it is refused where no webhook has seen it; empty: it means the same there.
    unseen: str = ""
    # What an event says while it waits for a card that nobody has a part of. Those that stay may
    # have come to lie on every card of its node; then it waits for good, and is right to.
    waits: str = ""

    def where(self, seen: bool) -> Shape:
        """What becomes of it where the webhook sees pods, or doesn't."""
        if seen or not self.unseen:
            return self
        return replace(self, fate=Fate.REFUSED, reason=self.unseen)


SHAPES = (
    Shape("slice", (Ask(1, 5, 1),), 8),
    Shape("memory", (Ask(1, 0, 1),), 3),
    Shape("two", (Ask(1, 4, 1), Ask(1, 3, 1)), 4),
    Shape("three", (Ask(1, 2, 1), Ask(), Ask(1, 0, 1)), 3),
    Shape("init", (Ask(1, 3, 1),), 2, init=(Ask(1, 3, 1),)),
    # They pass, so that a small node has a whole card free for those who wait for one.
    Shape("pair", (Ask(2, 4, 1),), 2, Fate.PASSES, unseen="webhook", pinned=0),
    Shape("four", (Ask(2, 3, 1), Ask(2, 0, 1)), 1, Fate.PASSES, unseen="webhook", pinned=0),
    Shape("pinned", (Ask(1, 5, 1),), 3, pinned=0),
    Shape("pinned-last", (Ask(1, 5, 1),), 2, pinned=-1),
    Shape("passing", (Ask(1, 5, 2),), 4, Fate.PASSES),
    Shape("passing-two", (Ask(1, 3, 1), Ask(1, 2, 1)), 2, Fate.PASSES),
    # By name: a node's sums don't tell a scheduler without huawei-xpu where a whole card is free.
    Shape("whole", (Ask(1),), 1, Fate.PASSES, pinned=0, waits=r"no room for 1 card"),
    # By name: what Volcano takes into its queue and can't place keeps others out of it for good.
    Shape(
        "too-many", (Ask(9),), 1, Fate.REFUSED, pinned=0,
        reason=r"no room for 9 card|huawei.com/vgpu-cores",
    ),
    # Once only: it holds tokens of a whole card as long as its kubelet tries.
    Shape(
        "over-a-card", (Ask(1, 101, 1),), 0, Fate.REFUSED, pinned=0,
        reason=r"\b101\b",
    ),
    # Volcano leaves what is larger than its queue out of scheduling and says no more than that.
    Shape(
        "over-the-node", (Ask(1, 0, 5000),), 1, Fate.REFUSED,
        reason="vgpu-memory-1Gi|Unschedulable",
    ),
    Shape(
        "over-the-node-pinned", (Ask(1, 0, 5000),), 1, Fate.REFUSED, pinned=0,
        reason="vgpu-memory-1Gi",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """One pod of the crowd."""

    name: str
    shape: Shape
    scheduler: str
    node: str | None

    def manifest(self) -> dict[str, Any]:
        """The pod as the API server takes it."""
        spec: dict[str, Any] = {
            "runtimeClassName": RUNTIME_CLASS,
            "schedulerName": self.scheduler,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Always" if self.shape.fate is Fate.STAYS else "OnFailure",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "nodeSelector": {"gpupool.com/gpu-ready": "true"},
            "containers": [
                _container(f"c{i}", ask, self._arguments())
                for i, ask in enumerate(self.shape.containers)
            ],
        }
        if self.shape.init:
            spec["initContainers"] = [
                _container(f"i{i}", ask, ["look"]) for i, ask in enumerate(self.shape.init)
            ]
        if self.node:
            spec["nodeName"] = self.node
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"shape": self.shape.name}},
            "spec": spec,
        }

    def _arguments(self) -> list[str]:
        return ["hold", str(PASSING_S)] if self.shape.fate is Fate.PASSES else ["hold"]

    @property
    def asks(self) -> dict[str, Ask]:
        """Container → what it asks for, those that run at the same time."""
        return {f"c{i}": ask for i, ask in enumerate(self.shape.containers)}


def _container(name: str, ask: Ask, arguments: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "/workload/witness.py"],
        "args": arguments,
        "resources": {"limits": ask.resources, "requests": ask.resources},
    }


def crowd(
    count: int,
    nodes: Sequence[str],
    schedulers: Sequence[str] = (DEFAULT_SCHEDULER,),
    *,
    seen: bool = True,
    seed: int = 1,
    shapes: Sequence[Shape] = SHAPES,
    prefix: str = "m",
) -> list[Pod]:
    """*count* pods: every shape once, the others by weight, in random order, schedulers in turn."""
    random = Random(seed)
    chosen = list(shapes[:count])
    chosen += random.choices(shapes, [shape.weight for shape in shapes], k=count - len(chosen))
    random.shuffle(chosen)
    turns = itertools.cycle(schedulers)
    return [
        Pod(
            f"{prefix}{i:03}-{shape.name}",
            shape.where(seen),
            next(turns),
            None if shape.pinned is None else nodes[shape.pinned],
        )
        for i, shape in enumerate(chosen)
    ]
