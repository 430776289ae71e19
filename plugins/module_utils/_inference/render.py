# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Native objects of an inference service, in the order in which to apply them (pure).

Services and ConfigMap come before the pods that need them, the PodGroup before its pods (Volcano
1.10 denies pods without it), what scales or watches them after. The same input gives the same
bytes, in whichever order its keys stand.
"""

from __future__ import annotations

import dataclasses
import typing as t

from . import checks, facts, objects, pods, service, templates
from .facts import Facts
from .problem import Problem, shown
from .service import Service

Object = t.Dict[str, t.Any]
# The live StatefulSets' specs by name, as the API server gives them.
Live = t.Mapping[str, t.Mapping[str, t.Any]]
_IMMUTABLE = ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")
OUTPUTS = ("auto", "native", "cr")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What there is to apply, and what to know about it."""

    name: str
    namespace: str
    output: str
    layout: str
    objects: list[Object]
    warnings: list[str]
    groups: list[Object]
    requires_recreate: list[str]
    max_unavailable_groups: int

    def document(self) -> Object:
        """As the filter and the module return it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Outcome(t.NamedTuple):
    """Objects, or all that is wrong; and what there is to know either way."""

    rendered: Rendered | None
    problems: list[Problem]
    warnings: list[str]


def render(
    document: t.Any,
    cluster: Facts,
    scripts: t.Mapping[str, str],
    live: Live | None = None,
    output: str = "auto",
) -> Outcome:
    """A service's objects, or all that is wrong with it."""
    parsed, problems = service.parse(document)
    problems = checks.check(parsed, cluster, problems)
    if problems:
        return Outcome(None, problems, _layout(parsed, _merged(parsed))[1])
    if output == "cr" or (output == "auto" and cluster.hero_controller):
        made = _own_resource(parsed, cluster)
    else:
        made = _native(parsed, cluster, scripts, live or {})
    return Outcome(made, [], made.warnings)


def _merged(parsed: Service) -> templates.Merged:
    return templates.merge(parsed.leader, parsed.worker, parsed.resource_policy)


def _own_resource(parsed: Service, cluster: Facts) -> Rendered:
    """The document's own resource, for a cluster whose controller reconciles it."""
    document = dict(parsed.document)
    spec = {key: value for key, value in document["spec"].items() if key != "flexai"}
    document["metadata"] = {
        **document["metadata"],
        "namespace": parsed.namespace,
        "labels": {**parsed.labels, **objects.owner(parsed)},
    }
    warnings = []
    if "flexai" in parsed.document["spec"]:
        warnings.append(
            "spec.flexai: left out of the resource, whose controller doesn't know it; run.sh, "
            "probes, disruption budget and scaling are that controller's then"
        )
    if cluster.lacks(facts.INFERENCE_SERVICE):
        warnings.append(f"output cr: the cluster has no {facts.INFERENCE_SERVICE}")
    return Rendered(
        parsed.name,
        parsed.namespace,
        "cr",
        "cr",
        [_plain({**document, "spec": spec})],
        warnings,
        [],
        [],
        parsed.max_unavailable_groups,
    )


def _plain(thing: t.Any) -> t.Any:
    """A copy that shares nothing with the input, with sorted keys."""
    if isinstance(thing, dict):
        return {key: _plain(thing[key]) for key in sorted(thing)}
    if isinstance(thing, (list, tuple)):
        return [_plain(item) for item in thing]
    return thing


def _native(parsed: Service, cluster: Facts, scripts: t.Mapping[str, str], live: Live) -> Rendered:
    merged = _merged(parsed)
    layout, warnings = _layout(parsed, merged)
    how = pods.launched(parsed)
    env = (merged.leader_env, merged.worker_env) if layout == "single" else ({}, {})
    data = pods.files(scripts, how, *env)
    plan = objects.Plan(
        service=parsed,
        facts=cluster,
        layout=layout,
        how=how,
        merged=merged.template,
        data=data,
        runtime=f"{parsed.name}-runtime-{pods.digest(data)}",
        live={name: spec.get("replicas", 0) for name, spec in live.items()},
    )
    made = _plain(list(objects.all_of(plan)))
    warnings += how.warnings
    warnings += objects.warnings(plan)
    return Rendered(
        parsed.name,
        parsed.namespace,
        "native",
        layout,
        made,
        warnings,
        objects.groups(plan),
        _requires_recreate(made, live),
        parsed.groups if parsed.rollout_strategy == "all" else parsed.max_unavailable_groups,
    )


def _layout(parsed: Service, merged: templates.Merged) -> tuple[str, list[str]]:
    """The layout, and what there is to say about how it was chosen."""
    if parsed.layout in ("split", "lws"):
        return parsed.layout, []
    warnings = [f"spec.servers.worker.template.{text}" for text in merged.warnings]
    if not merged.differences:
        return "single", warnings
    for found in merged.differences:
        sides = (
            "differ" if "env" in found.path else f"{shown(found.leader)} and {shown(found.worker)}"
        )
        warnings.append(
            f"spec.servers.worker.template.{found.path}: leader and worker have {sides}; one "
            "StatefulSet has one template, so the group becomes two (layout split)"
        )
    return "split", warnings


def _requires_recreate(made: t.Sequence[Object], live: Live) -> list[str]:
    """StatefulSets whose live form differs in what can't be changed."""
    found = []
    for thing in made:
        spec = live.get(thing["metadata"]["name"]) if thing["kind"] == "StatefulSet" else None
        if spec and any(key in spec and spec[key] != thing["spec"].get(key) for key in _IMMUTABLE):
            found.append(thing["metadata"]["name"])
    return found
