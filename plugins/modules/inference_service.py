#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: inference_service
short_description: Have inference services in a cluster, as native objects
version_added: 0.1.0
description:
  - Renders each C(InferenceService) as filter P(flexai.xpu.render_inference#filter) does, with what
    the cluster is found to have, and applies what differs (server-side, as C(flexai.xpu)). Objects
    of a service that are no longer rendered are deleted.
  - All services are checked before anything is changed, and everything that is wrong is told at
    once.
  - Groups whose pods are of an older revision are then rolled, as many at once as
    C(spec.flexai.rollout) says; all pods of a group go together and the next group waits until all
    of them are ready again.
  - Where Hero's own controller reconciles C(InferenceService), only that resource is written, and
    native objects of ours go.
  - Runs on the controller.
options:
  services:
    description:
      - Documents C(InferenceService). With O(state=absent) their C(metadata) is enough.
    type: list
    elements: dict
    required: true
  scripts:
    description: Files of C(/opt/flexai), C(run.sh) among them. Role inference_service has them.
    type: dict
    default: {}
  facts:
    description: What of the cluster can't be asked of it, as filter render_inference takes it.
    type: dict
    default: {}
  output:
    description: Native objects or the C(InferenceService) itself; V(auto) asks the cluster.
    type: str
    choices: [auto, native, cr]
    default: auto
  state:
    description:
      - V(absent) deletes everything of the services. V(status) changes nothing and returns
        RV(services) alone.
    type: str
    choices: [present, absent, status]
    default: present
  recreate:
    description:
      - Whether a StatefulSet that can't be changed in place is deleted with its pods and made anew.
        Otherwise that is an error before anything is changed.
    type: bool
    default: false
  rollout:
    description: Whether groups of an older revision are rolled.
    type: bool
    default: true
  wait:
    description: Whether to wait until every group serves, or every object has gone.
    type: bool
    default: true
  sample_s:
    description:
      - With O(state=status), how many seconds to look at the counters of groups that serve, for
        their tokens a second; 0 doesn't. They are asked through the API server, and an engine
        without them is left out.
    type: int
    default: 0
  timeout_s:
    description: How long to wait for one group, or for what was deleted.
    type: int
    default: 1800
extends_documentation_fragment:
  - flexai.xpu._cluster
  - flexai.xpu._host.attributes
attributes:
  diff_mode:
    description: Shows each object that differs before and after.
    support: full
author:
  - flexai.xpu contributors (@flexai-xpu)
"""

EXAMPLES = r"""
- name: Have the services of a site
  flexai.xpu.inference_service:
    kubeconfig: /etc/kubernetes/admin.conf
    services: "{{ inference_services }}"
    scripts: "{{ inference_scripts }}"
  delegate_to: localhost
"""

RETURN = r"""
services:
  description: Each service with its address and its groups, as they are.
  returned: success
  type: list
  elements: dict
steps:
  description: What was, or would be, done, one request or rollout each.
  returned: success
  type: list
  elements: str
table:
  description: The groups as lines of a table.
  returned: with O(state=status)
  type: list
  elements: str
warnings_of_services:
  description: What is rendered otherwise than it may seem, one text each.
  returned: success
  type: list
  elements: str
"""

import re
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._cluster import Cluster, Object, connect
from ..module_utils._errors import XpuError, run_module
from ..module_utils._inference import apply, facts, render, status
from ..module_utils._inference.pods import SERVICE_LABEL
from ..module_utils._inference.problem import Problem

MANAGER = "flexai.xpu"
POLL_S = 2.0
HERO = "inference-controller"
VOLCANO = "vc-controller-manager"
# Kinds that a cluster may lack.
OPTIONAL = (
    facts.INFERENCE_SERVICE,
    facts.POD_GROUP,
    facts.LEADER_WORKER_SET,
    facts.SCALED_OBJECT,
    facts.INTERCEPTOR_ROUTE,
    facts.SERVICE_MONITOR,
)
Name = t.Tuple[str, str]
# Before rendering judges it, it is part of a request's path.
_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


# -- what is there -------------------------------------------------------------------------------


def kinds(cluster: Cluster) -> list[str]:
    """Which of the optional kinds the cluster has."""
    found = []
    for kind in OPTIONAL:
        version, _rest, word = kind.rpartition("/")
        served = (cluster.get(f"/apis/{version}") or {}).get("resources", ())
        if any(resource["kind"] == word for resource in served):
            found.append(kind)
    return found


def _image_of(deployments: t.Iterable[Object], word: str) -> str:
    """The image of the first workload whose image or name has *word* in it."""
    for thing in deployments:
        for container in thing["spec"]["template"]["spec"]["containers"]:
            if word in str(container.get("image", "")) or word in thing["metadata"]["name"]:
                return str(container.get("image", "")) or word
    return ""


def discover(cluster: Cluster) -> Object:
    """What filter render_inference calls facts, as far as the API server knows them."""
    found: Object = {"kinds": kinds(cluster)}
    release = cluster.get("/version") or {}
    found["kubernetes_version"] = release.get("gitVersion", "")
    deployments = cluster.list("/apis/apps/v1/deployments")
    if facts.POD_GROUP in found["kinds"]:
        queues = cluster.list("/apis/scheduling.volcano.sh/v1beta1/queues")
        found["queues"] = {
            q["metadata"]["name"]: (q.get("status") or {}).get("state", "Open") for q in queues
        }
        tag = _image_of(deployments, VOLCANO).rpartition(":")[2]
        if facts.version(tag):
            found["volcano_version"] = tag
    reconciles = facts.INFERENCE_SERVICE in found["kinds"] and _image_of(deployments, HERO)
    found["hero_controller"] = bool(reconciles)
    return found


class Live:
    """Objects and pods of services, one request a kind and namespace."""

    def __init__(self, cluster: Cluster, present: t.Collection[str], spaces: t.Iterable[str]):
        self._cluster, self._spaces = cluster, sorted(set(spaces))
        self._kinds = [k for k in apply.COLLECTIONS if k not in OPTIONAL or k in present]

    def objects(self) -> list[Object]:
        found = []
        for namespace in self._spaces:
            for kind in self._kinds:
                version, _rest, word = kind.rpartition("/")
                path = apply.collection(kind, namespace)
                for thing in self._cluster.list(path, label_selector=SERVICE_LABEL):
                    # Items of a list bear neither.
                    found.append({**thing, "apiVersion": version, "kind": word})
        return found

    def pods(self) -> list[Object]:
        return [
            pod
            for namespace in self._spaces
            for pod in self._cluster.list(
                f"/api/v1/namespaces/{namespace}/pods", label_selector=SERVICE_LABEL
            )
        ]


def _matches(pod: Object, namespace: str, selector: str) -> bool:
    labels = pod["metadata"].get("labels") or {}
    wanted = dict(part.split("=", 1) for part in selector.split(","))
    return bool(pod["metadata"]["namespace"] == namespace and wanted.items() <= labels.items())


def _service_of(pod: Object) -> Name:
    return pod["metadata"]["namespace"], apply.service_of(pod)


class View:
    """A moment's objects and pods, by group."""

    def __init__(self, live: Live) -> None:
        self.objects, self._pods = live.objects(), live.pods()

    def pods(self, made: render.Rendered, group: Object) -> list[Object]:
        return [p for p in self._pods if _matches(p, made.namespace, group["selector"])]

    def workloads(self, made: render.Rendered, group: Object) -> list[Object]:
        return [
            thing
            for thing in self.objects
            if thing["kind"] in ("StatefulSet", "LeaderWorkerSet")
            and thing["metadata"]["namespace"] == made.namespace
            and thing["metadata"]["name"] in group["workloads"]
        ]

    def mounted(self) -> set[tuple[str, str]]:
        """(namespace, name) of each ConfigMap that a pod of ours has."""
        return {
            (pod["metadata"]["namespace"], volume["configMap"]["name"])
            for pod in self._pods
            for volume in pod["spec"].get("volumes") or ()
            if "configMap" in volume
        }

    def strays(self, made: t.Sequence[render.Rendered]) -> list[Object]:
        """Pods of these services that no group has any more."""
        services = {(one.namespace, one.name) for one in made}
        theirs = {
            (one.namespace, pod["metadata"]["name"])
            for one in made
            for group in one.groups
            for pod in self.pods(one, group)
        }
        return [
            pod
            for pod in self._pods
            if _service_of(pod) in services
            and (pod["metadata"]["namespace"], pod["metadata"]["name"]) not in theirs
        ]

    def stale(self, made: render.Rendered, group: Object) -> list[str]:
        return status.stale(self.pods(made, group), self.workloads(made, group))

    def serves(self, made: render.Rendered, group: Object) -> bool:
        """Whether a group is whole and new, or rightly empty."""
        workloads = self.workloads(made, group)
        if not all(status.observed(thing) for thing in workloads):
            return False
        phase = status.of_group(group, self.pods(made, group), workloads)["phase"]
        return phase in (status.SERVING, status.IDLE)

    def report(self, made: render.Rendered) -> Object:
        port = next(
            (
                thing["spec"]["ports"][0]["port"]
                for thing in made.objects
                if thing["kind"] == "Service" and thing["metadata"]["name"] == made.name
            ),
            None,
        )
        address = f"http://{made.name}.{made.namespace}.svc:{port}" if port else ""
        groups = [
            status.of_group(group, self.pods(made, group), self.workloads(made, group))
            for group in made.groups
        ]
        return {
            "name": made.name,
            "namespace": made.namespace,
            "output": made.output,
            "layout": made.layout,
            "address": address,
            "groups": groups,
        }


# -- what is wanted ------------------------------------------------------------------------------


def _refuse(problems: t.Sequence[str]) -> t.NoReturn:
    lines = "".join(f"\n  {text}" for text in problems)
    raise XpuError(f"{len(problems)} to correct; nothing was changed:{lines}\n", "correct them.")


def names_of(services: t.Sequence[Object]) -> list[Name]:
    """(namespace, name) of each document; each once."""
    found, wrong = [], []
    for index, document in enumerate(services):
        given = document.get("metadata")
        meta = given if isinstance(given, dict) else {}
        name = meta.get("name")
        if not isinstance(name, str) or not name:
            allowed = "the service's name"
            problem = Problem(f"services[{index}].metadata.name", name, allowed, "write it")
            wrong.append(str(problem))
            continue
        space = meta.get("namespace") or "default"
        if not isinstance(space, str) or not _NAMESPACE.match(space):
            allowed = "lower-case letters, digits and dashes"
            path = f"services[{index}].metadata.namespace"
            wrong.append(str(Problem(path, space, allowed, "correct it")))
            continue
        if (space, name) in found:
            allowed = "each service once"
            path = f"services[{index}].metadata.name"
            wrong.append(str(Problem(path, name, allowed, "rename or remove one")))
        found.append((space, name))
    if wrong:
        _refuse(wrong)
    return found


def render_all(
    params: t.Mapping[str, t.Any], known: Object, found: t.Sequence[Object]
) -> list[render.Rendered]:
    """Every service, or all that is wrong with all of them."""
    cluster, problems = facts.parse({**known, **params["facts"]})
    wrong = [str(problem) for problem in problems]
    workloads: dict[str, dict[str, Object]] = {}
    for thing in found:
        if thing["kind"] in ("StatefulSet", "LeaderWorkerSet"):
            meta = thing["metadata"]
            workloads.setdefault(meta["namespace"], {})[meta["name"]] = thing["spec"]
    made = []
    for (namespace, name), document in zip(names_of(params["services"]), params["services"]):
        live = workloads.get(namespace, {})
        outcome = render.render(document, cluster, params["scripts"], live, params["output"])
        wrong += [f"{namespace}/{name}: {problem}" for problem in outcome.problems]
        if outcome.rendered is not None:
            made.append(outcome.rendered)
    stuck = [f"{one.namespace}/{name}" for one in made for name in one.requires_recreate]
    if stuck and not params["recreate"]:
        wrong.append(
            f"StatefulSets {', '.join(stuck)} can't be changed in place; allowed: the same "
            "selector, serviceName and podManagementPolicy; do: run with recreate: true, which "
            "ends their pods"
        )
    if wrong:
        _refuse(wrong)
    return made


def refuse_strangers(
    cluster: Cluster, made: t.Sequence[render.Rendered], found: t.Sequence[Object]
) -> None:
    """What is there under a name that we want, and is not ours, stays as it is."""
    ours = {apply.key(thing): thing for thing in found}

    def live(thing: Object) -> Object | None:
        kind, namespace, name = apply.key(thing)
        there = ours.get((kind, namespace, name))
        return there or cluster.get(f"{apply.collection(kind, namespace)}/{name}")

    problems = apply.strangers([thing for one in made for thing in one.objects], live)
    if problems:
        _refuse([str(problem) for problem in problems])


# -- what is done --------------------------------------------------------------------------------


def _await(timeout_s: float, lacking: t.Callable[[], str]) -> None:
    """Until nothing is lacking."""
    deadline = time.monotonic() + timeout_s
    while True:
        what = lacking()
        if not what:
            return
        if time.monotonic() > deadline:
            raise XpuError(
                f"After {timeout_s} s {what}.",
                "look at the pods' events and logs (kubectl describe pod, kubectl logs), mend the "
                "cause and run again: what is done already stays done.",
            )
        time.sleep(POLL_S)


def _delete(cluster: Cluster, path: str) -> None:
    """What somebody else has deleted meanwhile is deleted too."""
    try:
        cluster.change("delete", path)
    except XpuError:
        if cluster.get(path) is not None:
            raise


def carry_out(cluster: Cluster, step: apply.Step, timeout_s: float) -> None:
    """One request; a deletion that something waits for is waited for."""
    path = f"{apply.collection(step.kind, step.namespace)}/{step.name}"
    if step.verb == "apply":
        # Replicas may be an autoscaler's; nothing else of ours is anybody's.
        force = step.kind not in ("apps/v1/StatefulSet", facts.LEADER_WORKER_SET)
        cluster.apply(path, step.after or {}, MANAGER, force)
        return
    _delete(cluster, path)
    _await(timeout_s, lambda: f"{step} has not ended" if cluster.get(path) else "")


def roll(cluster: Cluster, live: Live, made: render.Rendered, timeout_s: float) -> list[str]:
    """Have all pods of the newest revision, as many groups at once as the service says."""
    _await(timeout_s, lambda: _unobserved(View(live), made))
    view, steps = View(live), []
    todo = [group for group in made.groups if view.stale(made, group)]
    at_once = made.max_unavailable_groups
    for start in range(0, len(todo), at_once):
        batch = todo[start : start + at_once]
        for group in batch:
            for pod in view.pods(made, group):
                name = pod["metadata"]["name"]
                _delete(cluster, f"/api/v1/namespaces/{made.namespace}/pods/{name}")
            steps.append(f"roll {made.namespace}/{group['name']}")
        for group in batch:
            wait_for(live, made, group, timeout_s)
    return steps


def _unobserved(view: View, made: render.Rendered) -> str:
    names = [
        thing["metadata"]["name"]
        for group in made.groups
        for thing in view.workloads(made, group)
        if not status.observed(thing)
    ]
    return f"no controller has looked at StatefulSet {', '.join(names)}" if names else ""


def wait_for(live: Live, made: render.Rendered, group: Object, timeout_s: float) -> None:
    """Until a group serves, or rests where scaling lets it."""

    def lacking() -> str:
        view = View(live)
        if view.serves(made, group):
            return ""
        row = status.of_group(group, view.pods(made, group), view.workloads(made, group))
        count = f"{row['ready']} of {row['pods']} pods are ready"
        reason = f" ({row['reason']})" if row["reason"] else ""
        return f"{made.namespace}/{group['name']} is {row['phase']}, {count}{reason}"

    _await(timeout_s, lacking)


def _diff(steps: t.Sequence[apply.Step]) -> list[dict[str, t.Any]]:
    return [
        {
            "before": apply.shown(step.before) or "",
            "after": apply.shown(step.after) or "",
            "before_header": str(step),
            "after_header": str(step),
        }
        for step in steps
    ]


def present(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> Object:
    names, known = names_of(params["services"]), discover(cluster)
    live = Live(cluster, known["kinds"], (space for space, _rest in names))
    view = View(live)
    made = render_all(params, known, view.objects)
    refuse_strangers(cluster, made, view.objects)
    wanted = [thing for one in made for thing in one.objects]
    again = {(one.namespace, name) for one in made for name in one.requires_recreate}
    steps = apply.plan(wanted, view.objects, set(names), again, view.mounted())
    cleared: list[apply.Step] = []
    if check:
        every = apply.plan(wanted, view.objects, set(names), again)
        rolls = predicted_rolls(view, made, steps) if params["rollout"] else []
        cleared = [step for step in every if step not in steps] if rolls else []
        done = [*map(str, steps), *rolls, *map(str, cleared)]
    else:
        done = converge(cluster, params, (live, view), made, steps)
        if done:
            view = View(live)
            rest = apply.plan(wanted, view.objects, set(names), (), view.mounted())
            cleared = [step for step in rest if step.kind == apply.CONFIG_MAP]
            for step in cleared:
                carry_out(cluster, step, params["timeout_s"])
            done += map(str, cleared)
    return {
        "changed": bool(done),
        "steps": done,
        "warnings_of_services": [f"{o.namespace}/{o.name}: {w}" for o in made for w in o.warnings],
        "services": [view.report(one) for one in made],
        "diff": _diff([*steps, *cleared]),
    }


def predicted_rolls(
    view: View, made: t.Iterable[render.Rendered], steps: t.Iterable[apply.Step]
) -> list[str]:
    """Groups that have pods of a revision that is old, or will be."""
    changing = {(step.namespace, step.name) for step in steps if apply.new_revision(step)}
    return [
        f"roll {one.namespace}/{group['name']}"
        for one in made
        for group in one.groups
        if view.stale(one, group)
        or (
            view.pods(one, group)
            and any((one.namespace, name) in changing for name in group["workloads"])
        )
    ]


def converge(
    cluster: Cluster,
    params: t.Mapping[str, t.Any],
    seen: tuple[Live, View],
    made: t.Sequence[render.Rendered],
    steps: t.Sequence[apply.Step],
) -> list[str]:
    """All steps, then a rollout and a wait for each service that needs them."""
    (live, view), done = seen, [str(step) for step in steps]
    for step in steps:
        carry_out(cluster, step, params["timeout_s"])
    touched = {
        (s.namespace, apply.service_of(thing))
        for s in steps
        for thing in (s.after, s.before)
        if thing is not None
    }
    for one in made:
        changed = (one.namespace, one.name) in touched
        if params["rollout"] and (changed or any(view.stale(one, g) for g in one.groups)):
            done += roll(cluster, live, one, params["timeout_s"])
        for group in one.groups if params["wait"] else ():
            if changed or not view.serves(one, group):
                wait_for(live, one, group, params["timeout_s"])
    if params["wait"] and any(step.verb == "delete" for step in steps):
        # They have the files of before mounted, which go next.
        _await(params["timeout_s"], lambda: _remaining(View(live).strays(made)))
    return done


def absent(cluster: Cluster, params: t.Mapping[str, t.Any], check: bool) -> Object:
    names, known = names_of(params["services"]), kinds(cluster)
    live = Live(cluster, known, (space for space, _rest in names))
    steps = apply.plan([], live.objects(), set(names))
    if not check:
        for step in steps:
            carry_out(cluster, step, params["timeout_s"])
        if params["wait"] and steps:
            _await(params["timeout_s"], lambda: _remaining(_pods_of(live, set(names))))
    done = [str(step) for step in steps]
    more: Object = {"warnings_of_services": [], "services": [], "diff": _diff(steps)}
    return {"changed": bool(steps), "steps": done, **more}


def _pods_of(live: Live, names: t.Collection[Name]) -> list[Object]:
    return [pod for pod in live.pods() if _service_of(pod) in names]


def _remaining(pods: t.Iterable[Object]) -> str:
    left = [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in pods]
    return f"pods {', '.join(left)} are still there" if left else ""


def look(cluster: Cluster, params: t.Mapping[str, t.Any], _check: bool) -> Object:
    names, known = names_of(params["services"]), discover(cluster)
    view = View(Live(cluster, known["kinds"], (space for space, _rest in names)))
    made = render_all({**params, "recreate": True}, known, view.objects)
    reports = [view.report(one) for one in made]
    if params["sample_s"] > 0:
        sample(cluster, made, reports, params["sample_s"])
    found = {"services": reports, "table": status.table(reports)}
    return {"changed": False, "steps": [], "warnings_of_services": [], **found}


def _generated(cluster: Cluster, namespace: str, leader: str, port: int) -> float | None:
    path = f"/api/v1/namespaces/{namespace}/pods/{leader}:{port}/proxy/metrics"
    try:
        return status.generated(cluster.text(path))
    except XpuError:
        return None  # no metrics there, or none that this user may see


def sample(
    cluster: Cluster,
    made: t.Sequence[render.Rendered],
    reports: t.Sequence[Object],
    seconds: float,
) -> None:
    """Write into each row how many tokens a second its group makes."""
    serving = [
        (row, one.namespace, group["leader"], int(report["address"].rpartition(":")[2]))
        for one, report in zip(made, reports)
        for group, row in zip(one.groups, report["groups"])
        if row["phase"] in (status.SERVING, status.OUTDATED)
    ]
    began = time.monotonic()
    before = [_generated(cluster, *where) for _rest, *where in serving]
    time.sleep(seconds)
    for (row, *where), first in zip(serving, before):
        took = time.monotonic() - began
        row["tokens_per_second"] = status.rate(first, _generated(cluster, *where), took)


STATES = {"present": present, "absent": absent, "status": look}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "services": {"type": "list", "elements": "dict", "required": True},
            "scripts": {"type": "dict", "default": {}},
            "facts": {"type": "dict", "default": {}},
            "output": {"type": "str", "choices": list(render.OUTPUTS), "default": "auto"},
            "state": {"type": "str", "choices": list(STATES), "default": "present"},
            "recreate": {"type": "bool", "default": False},
            "rollout": {"type": "bool", "default": True},
            "wait": {"type": "bool", "default": True},
            "sample_s": {"type": "int", "default": 0},
            "timeout_s": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    do = STATES[module.params["state"]]
    run_module(module, lambda m: do(connect(m.params["kubeconfig"]), m.params, m.check_mode))


if __name__ == "__main__":
    main()
