# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Leader's and worker's pod templates: one template for both, or why there can't be one (pure).

A StatefulSet has one template. Commands, arguments and plain environment may differ all the same:
they lie in files that run.sh reads by role. Labels, annotations and volumes are united. Whatever
else differs is a difference, and then it takes two StatefulSets.
"""

from __future__ import annotations

import typing as t

from . import quantity

Object = t.Dict[str, t.Any]
Given = t.Mapping[str, t.Any]
# Keys of the engine's container that both roles may have differently: run.sh, its files and the
# renderer's own probes take their place. The name is the leader's, the ports too.
_ROLES_OWN = {
    "name", "command", "args", "env", "ports", "startupProbe", "readinessProbe", "livenessProbe",
    "lifecycle",
}  # fmt: skip
_UNITED = {"volumes": "name", "volumeMounts": "mountPath"}


class Difference(t.NamedTuple):
    """What keeps leader and worker from sharing a template; the path is inside the template."""

    path: str
    leader: t.Any
    worker: t.Any


def containers(template: Given) -> list[Given]:
    """The containers of a template; the first is the engine's."""
    return list(template.get("spec", {}).get("containers", ()))


def engine(template: Given) -> Given:
    """The engine's container; empty where the template has none."""
    found = containers(template)
    return found[0] if found else {}


def resources(container: Given) -> dict[str, t.Any]:
    """What a container gets of each resource: limits, and requests where nothing is limited."""
    block = container.get("resources", {})
    return {**block.get("requests", {}), **block.get("limits", {})}


class _Merge:
    def __init__(self, resource_policy: str) -> None:
        self._largest = resource_policy == "max"
        self.differences: list[Difference] = []
        self.warnings: list[str] = []

    def differ(self, path: str, leader: t.Any, worker: t.Any) -> None:
        self.differences.append(Difference(path, leader, worker))

    def union(self, path: str, leader: Given, worker: Given) -> Object:
        """Both maps in one; the same key with two values is a difference."""
        for key in sorted(set(leader) & set(worker)):
            if leader[key] != worker[key]:
                self.differ(f"{path}[{key}]", leader[key], worker[key])
        return {**worker, **leader}

    def union_by(self, path: str, key: str, leader: t.Any, worker: t.Any) -> list[t.Any]:
        """Both lists in one by an item's *key*, the leader's first."""
        at = {item.get(key): item for item in leader}
        for item in worker:
            if at.setdefault(item.get(key), item) != item:
                self.differ(f"{path}[{item.get(key)}]", at[item.get(key)], item)
        return list(at.values())

    def same(self, path: str, leader: Given, worker: Given, leave: t.Collection[str]) -> Object:
        """A map whose keys must be the same on both sides, but for those to *leave*."""
        merged = {}
        for key in sorted(set(leader) | set(worker)):
            one, other = leader.get(key), worker.get(key)
            if key in leave:
                merged[key] = one
            elif key in _UNITED:
                merged[key] = self.union_by(f"{path}.{key}", _UNITED[key], one or (), other or ())
            elif key == "resources":
                merged[key] = self._resources(f"{path}.{key}", one or {}, other or {})
            else:
                merged[key] = one if one is not None else other
                if one != other:
                    self.differ(f"{path}.{key}", one, other)
        return {key: value for key, value in merged.items() if value is not None}

    def _resources(self, path: str, leader: Given, worker: Given) -> Object:
        merged: Object = {}
        for block in sorted(set(leader) | set(worker)):
            one, other = leader.get(block), worker.get(block)
            if not isinstance(one or {}, dict) or not isinstance(other or {}, dict):
                if one != other:
                    self.differ(f"{path}.{block}", one, other)
                merged[block] = one if one is not None else other
                continue
            merged[block] = self._amounts(f"{path}.{block}", one or {}, other or {})
        return merged

    def _amounts(self, path: str, leader: Given, worker: Given) -> Object:
        merged = {}
        for name in sorted(set(leader) | set(worker)):
            one, other = leader.get(name), worker.get(name)
            if quantity.same(one, other):
                merged[name] = one
            elif self._largest:
                most = max((one, other), key=lambda a: quantity.amount(a if a else 0) or 0)
                merged[name] = most
                self.warnings.append(
                    f"{path}[{name}]: leader has {one}, worker {other}; both get {most} "
                    "(resource_policy: max)"
                )
            else:
                merged[name] = one if one is not None else other
                self.differ(f"{path}[{name}]", one, other)
        return merged

    def environment(self, path: str, leader: t.Any, worker: t.Any) -> Object:
        """``{common: entries of the template, leader: plain values, worker: plain values}``."""
        sides = [{entry.get("name", ""): entry for entry in side} for side in (leader, worker)]
        names = list(dict.fromkeys([*sides[0], *sides[1]]))
        common = [sides[0][n] for n in names if sides[0].get(n) == sides[1].get(n)]
        files: list[dict[str, str]] = [{}, {}]
        for name in names:
            one, other = sides[0].get(name), sides[1].get(name)
            if one == other:
                continue
            if any(entry and not plain(entry) for entry in (one, other)):
                self.differ(f"{path}[{name}]", _source(one), _source(other))
            for file, entry in zip(files, (one, other)):
                if entry and plain(entry):
                    file[name] = entry.get("value", "")
        return {"common": common, "leader": files[0], "worker": files[1]}


def _source(entry: t.Any) -> str | None:
    """Where a variable's value comes from; never the value."""
    if entry is None:
        return None
    return "valueFrom" if "valueFrom" in entry else "value"


def plain(entry: Given) -> bool:
    """Whether a shell can set the variable: the kubelet alone knows other sources and $(NAME)."""
    return "valueFrom" not in entry and "$(" not in entry.get("value", "")


class Merged(t.NamedTuple):
    """One template for both roles, and the environment that each role has of its own."""

    template: Object
    leader_env: dict[str, str]
    worker_env: dict[str, str]
    differences: list[Difference]
    warnings: list[str]


def merge(leader: Given, worker: Given, resource_policy: str) -> Merged:
    """*leader* and *worker* as one template; with differences it is not to be used."""
    if leader is worker or leader == worker:
        return Merged(dict(leader), {}, {}, [], [])
    run = _Merge(resource_policy)
    metadata = {
        key: run.union(
            f"metadata.{key}",
            leader.get("metadata", {}).get(key, {}),
            worker.get("metadata", {}).get(key, {}),
        )
        for key in ("annotations", "labels")
    }
    one, other = containers(leader), containers(worker)
    spec = run.same("spec", leader.get("spec", {}), worker.get("spec", {}), {"containers"})
    env: Object = {"leader": {}, "worker": {}}
    if one and other:
        path = "spec.containers[0]"
        first = run.same(path, one[0], other[0], _ROLES_OWN)
        env = run.environment(f"{path}.env", one[0].get("env", ()), other[0].get("env", ()))
        first.pop("env", None)
        if env["common"]:
            first["env"] = env["common"]
        if one[1:] != other[1:]:
            names = [[c.get("name") for c in side[1:]] for side in (one, other)]
            run.differ("spec.containers[1:]", *names)
        spec["containers"] = [first, *one[1:]]
    template = {"metadata": metadata, "spec": spec}
    return Merged(template, env["leader"], env["worker"], run.differences, run.warnings)
