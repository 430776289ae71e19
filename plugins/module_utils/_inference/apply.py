# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""What has to be done so that a cluster has what was rendered, and nothing else of ours (pure)."""

from __future__ import annotations

import hashlib
import json
import typing as t

from . import facts, quantity
from .pods import SERVICE_LABEL
from .problem import Problem

Object = t.Dict[str, t.Any]
Key = t.Tuple[str, str, str]

CONFIG_MAP = "v1/ConfigMap"
# Kind → its collection, in the order in which to apply; deleted in reverse, so that nothing scales
# what is being deleted. The document's own resource is no child of any of these.
COLLECTIONS: t.Mapping[str, str] = {
    facts.INFERENCE_SERVICE: "inferenceservices",
    CONFIG_MAP: "configmaps",
    "v1/Service": "services",
    "networking.k8s.io/v1/NetworkPolicy": "networkpolicies",
    facts.POD_GROUP: "podgroups",
    "apps/v1/StatefulSet": "statefulsets",
    facts.LEADER_WORKER_SET: "leaderworkersets",
    "policy/v1/PodDisruptionBudget": "poddisruptionbudgets",
    "autoscaling/v2/HorizontalPodAutoscaler": "horizontalpodautoscalers",
    facts.SCALED_OBJECT: "scaledobjects",
    facts.INTERCEPTOR_ROUTE: "interceptorroutes",
    facts.SERVICE_MONITOR: "servicemonitors",
}
_ORDER = {kind: place for place, kind in enumerate(COLLECTIONS)}
# Of which rendering the object is; a field that is no longer rendered leaves no other trace.
APPLIED = "flexai.io/applied"


class Step(t.NamedTuple):
    """One request: ``apply`` or ``delete``, and the object as it is and as it shall be."""

    verb: str
    kind: str
    namespace: str
    name: str
    before: Object | None
    after: Object | None

    def __str__(self) -> str:
        return f"{self.verb} {self.kind.rpartition('/')[2]} {self.namespace}/{self.name}"


def kind_of(thing: t.Mapping[str, t.Any]) -> str:
    """``group/version/Kind`` of an object."""
    return f"{thing['apiVersion']}/{thing['kind']}"


def collection(kind: str, namespace: str) -> str:
    """The path of a kind's objects in a namespace."""
    version = kind.rpartition("/")[0]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    return f"{root}/namespaces/{namespace}/{COLLECTIONS[kind]}"


def key(thing: t.Mapping[str, t.Any]) -> Key:
    """What tells an object from all others."""
    meta = thing["metadata"]
    return kind_of(thing), meta["namespace"], meta["name"]


def service_of(thing: t.Mapping[str, t.Any]) -> str:
    """The service that an object is part of, empty for somebody else's."""
    return str((thing["metadata"].get("labels") or {}).get(SERVICE_LABEL, ""))


def strangers(
    wanted: t.Sequence[Object], live: t.Callable[[Object], Object | None]
) -> list[Problem]:
    """What bears the name of something wanted and is part of another service or of none; *live* is
    asked for the object that is there."""
    problems: list[Problem] = []
    rendered: dict[Key, Object] = {}
    for thing in wanted:
        mine = service_of(thing)
        first = rendered.setdefault(key(thing), thing)
        there = live(thing) if first is thing else first
        if there is None or service_of(there) == mine:
            continue
        kind, namespace, name = key(thing)
        problems.append(
            Problem(
                f"{kind.rpartition('/')[2]} {namespace}/{name}",
                _owner(there),
                f"an object of service {mine}, or none",
                f"rename the service, remove the object, or label it {SERVICE_LABEL}={mine}, and "
                "the service takes it over",
            )
        )
    return problems


def _owner(thing: Object) -> str:
    service = service_of(thing)
    if service:
        return f"part of service {service}"
    managers = {entry.get("manager", "") for entry in thing["metadata"].get("managedFields") or ()}
    return f"written by {', '.join(sorted(managers - {''})) or 'somebody else'}"


def marked(thing: Object) -> Object:
    """The object with the digest of what was rendered, but for its size: that may be an
    autoscaler's, and it is rendered in any case."""
    spec = {name: value for name, value in thing.get("spec", {}).items() if name != "replicas"}
    text = json.dumps({**thing, "spec": spec}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    meta = thing["metadata"]
    notes = {**meta.get("annotations", {}), APPLIED: digest}
    return {**thing, "metadata": {**meta, "annotations": notes}}


def holds(live: t.Any, wanted: t.Any) -> bool:
    """Whether all that is wanted is there; the API server adds defaults and drops what is empty."""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return False
        return all(
            holds(live[name], value) if name in live else _empty(value)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(holds(one, other) for one, other in zip(live, wanted))
        )
    return live == wanted or quantity.same(live, wanted)


def _empty(value: t.Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _controlled(thing: t.Mapping[str, t.Any]) -> bool:
    """Whether some controller made it: KEDA hands a ScaledObject's labels down to its HPA, and
    makes it again for as long as there is a ScaledObject."""
    return any(owner.get("controller") for owner in thing["metadata"].get("ownerReferences") or ())


def plan(
    wanted: t.Sequence[Object],
    found: t.Sequence[Object],
    names: t.Collection[tuple[str, str]],
    recreate: t.Collection[tuple[str, str]] = (),
    keep: t.Collection[tuple[str, str]] = (),
) -> list[Step]:
    """Steps from *found* to *wanted*; what belongs to one of *names* (namespace, service) and is
    not wanted goes. StatefulSets of *recreate* (namespace, name) are deleted first; ConfigMaps of
    *keep* stay, since pods of an older revision have them mounted. What a controller made goes with
    its owner."""
    there = {key(thing): thing for thing in found}
    steps = []
    for thing in (marked(thing) for thing in wanted):
        kind, namespace, name = key(thing)
        live = there.pop((kind, namespace, name), None)
        if live is not None and kind == "apps/v1/StatefulSet" and (namespace, name) in recreate:
            steps.append(Step("delete", kind, namespace, name, live, None))
            live = None
        if live is None or not holds(live, thing):
            steps.append(Step("apply", kind, namespace, name, live, thing))
    gone = [
        Step("delete", kind, namespace, name, live, None)
        for (kind, namespace, name), live in there.items()
        if (namespace, service_of(live)) in names
        and not _controlled(live)
        and not (kind == CONFIG_MAP and (namespace, name) in keep)
    ]
    gone.sort(key=lambda step: (-_ORDER[step.kind], step.namespace, step.name))
    return [*steps, *gone]


def new_revision(step: Step) -> bool:
    """Whether a step gives a StatefulSet's pods another template."""
    if step.before is None or step.after is None or step.kind != "apps/v1/StatefulSet":
        return False
    return not holds(step.before["spec"]["template"], step.after["spec"]["template"])


def shown(thing: Object | None) -> Object | None:
    """An object for a diff: without what the API server writes."""
    if thing is None:
        return None
    meta = {
        name: value
        for name, value in thing["metadata"].items()
        if name in ("name", "namespace", "labels", "annotations")
    }
    body = {name: value for name, value in thing.items() if name not in ("metadata", "status")}
    return {**body, "metadata": meta}
