# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Each object that a service consists of (pure)."""

from __future__ import annotations

import typing as t

from .._cluster import OWNER
from . import facts, pods, scaling, templates
from .checks import group_name
from .facts import Facts
from .service import Service

Object = t.Dict[str, t.Any]

GROUP_MIN_MEMBER = "scheduling.volcano.sh/group-min-member"
QUEUE_NAME = "scheduling.volcano.sh/queue-name"
GROUP_NAME = "scheduling.k8s.io/group-name"
LWS_LABELS = "leaderworkerset.sigs.k8s.io/"
# The label of a pod's ordinal is there from 1.28 on, the PodGroup of an owner's annotation from
# Volcano 1.12 on.
POD_INDEX_SINCE, OWNER_ANNOTATION_SINCE = (1, 28), (1, 12)
# Not handed down: who manages the document doesn't manage what is made from it.
_NOT_INHERITED = "app.kubernetes.io/managed-by"


class Plan(t.NamedTuple):
    """All that the objects are made from."""

    service: Service
    facts: Facts
    layout: str
    how: pods.Launched
    merged: t.Mapping[str, t.Any]
    data: t.Mapping[str, str]
    runtime: str
    live: t.Mapping[str, int]

    @property
    def indexed(self) -> bool:
        """Whether pods bear their ordinal as a label."""
        return self.facts.kubernetes is None or self.facts.kubernetes >= POD_INDEX_SINCE

    @property
    def gang(self) -> bool:
        """Whether a group's pods are placed all at once or not at all."""
        return self.service.gang == "volcano" and self.service.pods > 1

    @property
    def owner_annotation(self) -> bool:
        """Whether Volcano makes the PodGroup; two StatefulSets would be two gangs to it."""
        version = facts.version(self.service.volcano_version) or self.facts.volcano
        new = version is not None and version >= OWNER_ANNOTATION_SINCE
        return self.gang and new and self.layout == "single"

    @property
    def headless(self) -> str:
        """The Service that gives each pod a name; LWS makes its own, called as the set."""
        return f"{self.service.name}-{'g' if self.layout == 'lws' else 'hl'}"


class Member(t.NamedTuple):
    """One StatefulSet of a group."""

    name: str
    role: str
    replicas: int
    first: int


def members(plan: Plan, index: int) -> list[Member]:
    """The StatefulSets of a group."""
    name, service = group_name(plan.service, index), plan.service
    if plan.layout == "split":
        return [
            Member(name, "leader", 1, 0),
            Member(f"{name}-w", "worker", service.workers, 1),
        ]
    return [Member(name, "", service.groups if service.collapsed else service.pods, 0)]


def indices(plan: Plan) -> range:
    """Groups that have objects of their own."""
    return range(1 if plan.service.collapsed else plan.service.groups)


def owner(service: Service) -> dict[str, str]:
    """Labels of every object of a service."""
    return {**OWNER, pods.SERVICE_LABEL: service.name}


def _thing(service: Service, kind: str, name: str, **body: t.Any) -> Object:
    """An object; *kind* is ``group/version/Kind``."""
    api_version, _rest, word = kind.rpartition("/")
    inherited = {key: value for key, value in service.labels.items() if key != _NOT_INHERITED}
    labels = {**inherited, **owner(service)}
    meta = {"name": name, "namespace": service.namespace, "labels": labels}
    return {"apiVersion": api_version, "kind": word, "metadata": meta, **body}


def all_of(plan: Plan) -> t.Iterator[Object]:
    """Every object, in the order in which to apply them."""
    service = plan.service
    yield _thing(service, "v1/ConfigMap", plan.runtime, data=dict(plan.data), immutable=True)
    yield from _services(plan)
    if service.network_policy:
        yield _network_policy(service)
    if plan.layout == "lws":
        yield _leader_worker_set(plan)
    else:
        if plan.gang and not plan.owner_annotation:
            yield from (_pod_group(plan, index) for index in indices(plan))
        for index in indices(plan):
            for member in members(plan, index):
                yield _stateful_set(plan, index, member)
    yield _disruption_budget(service)
    yield from _scalers(plan)
    if service.monitoring and plan.facts.has(facts.SERVICE_MONITOR):
        yield _service_monitor(service)


# -- names and addresses -------------------------------------------------------------------------


def _leader_selector(plan: Plan) -> dict[str, str]:
    """Labels of the leaders of all groups."""
    labels = {pods.SERVICE_LABEL: plan.service.name}
    if plan.layout == "lws":
        return {**labels, f"{LWS_LABELS}worker-index": "0"}
    if plan.layout == "split":
        return {**labels, pods.ROLE_LABEL: "leader"}
    return labels if plan.service.collapsed else {**labels, pods.POD_INDEX: "0"}


def _services(plan: Plan) -> t.Iterator[Object]:
    service = plan.service
    every = {pods.SERVICE_LABEL: service.name}
    port = {"name": "http", "port": service.port, "targetPort": service.port}
    if plan.layout != "lws":
        spec = {
            "clusterIP": "None",
            # Members have to find each other before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": every,
            "ports": [port],
        }
        yield _thing(service, "v1/Service", plan.headless, spec=spec)
    by_label = plan.indexed or plan.layout != "single" or service.collapsed
    yield _client(service, service.name, _leader_selector(plan) if by_label else _by_name(plan, 0))
    if not by_label:
        # Without the ordinal's label a selector can name one pod only.
        for index in indices(plan)[1:]:
            yield _client(service, group_name(service, index), _by_name(plan, index))


def _by_name(plan: Plan, index: int) -> dict[str, str]:
    leader = f"{group_name(plan.service, index)}-0"
    return {
        pods.SERVICE_LABEL: plan.service.name,
        "statefulset.kubernetes.io/pod-name": leader,
    }


def _client(service: Service, name: str, selector: t.Mapping[str, str]) -> Object:
    port = {"name": "http", "port": service.port, "targetPort": service.port}
    thing = _thing(service, "v1/Service", name, spec={"selector": dict(selector), "ports": [port]})
    thing["metadata"]["labels"]["app.kubernetes.io/component"] = "api"
    return thing


def _network_policy(service: Service) -> Object:
    """Members talk to each other without any authentication; nobody else gets there."""
    own = {"podSelector": {"matchLabels": {pods.SERVICE_LABEL: service.name}}}
    api: Object = {"ports": [{"port": service.port, "protocol": "TCP"}]}
    if service.clients:
        api["from"] = [dict(peer) for peer in service.clients]
    spec = {**own, "policyTypes": ["Ingress"], "ingress": [{"from": [own]}, api]}
    return _thing(service, "networking.k8s.io/v1/NetworkPolicy", service.name, spec=spec)


# -- workloads -----------------------------------------------------------------------------------


def _pod_group(plan: Plan, index: int) -> Object:
    # No minResources: a PodGroup without pods would hold them in its queue (Volcano 1.10).
    spec: Object = {"minMember": plan.service.pods}
    if plan.service.queue:
        spec["queue"] = plan.service.queue
    return _thing(plan.service, facts.POD_GROUP, group_name(plan.service, index), spec=spec)


def _scheduling(plan: Plan, index: int) -> dict[str, str]:
    """Annotations of a group's pods, for Volcano."""
    if plan.service.gang != "volcano":
        return {}
    if plan.gang and not plan.owner_annotation and plan.layout != "lws":
        return {GROUP_NAME: group_name(plan.service, index)}
    return {QUEUE_NAME: plan.service.queue} if plan.service.queue else {}


def _pod(plan: Plan, index: int, role: str, labels: t.Mapping[str, str]) -> Object:
    service, lws = plan.service, plan.layout == "lws"
    template = {"leader": service.leader, "worker": service.worker}.get(role, plan.merged)
    name = f"{group_name(service, index)}-0"
    leader = "$(POD_NAME)" if service.collapsed else name
    alone = role == "leader" or service.collapsed
    member = pods.Member(
        labels=labels,
        annotations=_scheduling(plan, index),
        scheduler=plan.facts.scheduler_name if service.gang == "volcano" else "",
        leader_address=f"{leader}.{plan.headless}.{service.namespace}.svc",
        ordinal="0" if alone else "",
        index_label=pods.POD_INDEX if plan.indexed else "",
        lws=lws,
        runtime=plan.runtime,
    )
    return pods.pod(service, template, plan.how, member)


def _replicas(plan: Plan, index: int, member: Member) -> int:
    """A group that scales keeps its live size, but never a part of itself."""
    if plan.service.scaling.mode == "none":
        return member.replicas
    live = plan.live.get(member.name)
    if plan.service.collapsed:
        return plan.service.scaling.min_groups if live is None else live
    on = index < plan.service.scaling.min_groups if live is None else live > 0
    return member.replicas if on else 0


def _stateful_set(plan: Plan, index: int, member: Member) -> Object:
    service = plan.service
    # Immutable, so no more than what tells this StatefulSet's pods from all others'.
    selector = {pods.SERVICE_LABEL: service.name, pods.GROUP_LABEL: str(index)}
    if member.role:
        selector[pods.ROLE_LABEL] = member.role
    spec = {
        "serviceName": plan.headless,
        "replicas": _replicas(plan, index, member),
        # In order, no worker would come before the leader is ready, nor the gang ever be whole.
        "podManagementPolicy": "Parallel",
        # Members of two revisions can't form a group: groups are rolled, not pods.
        "updateStrategy": {"type": "OnDelete"},
        "revisionHistoryLimit": 3,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "selector": {"matchLabels": selector},
        "template": _pod(plan, index, member.role, selector),
    }
    if member.first:
        spec["ordinals"] = {"start": member.first}
    thing = _thing(service, "apps/v1/StatefulSet", member.name, spec=spec)
    thing["metadata"]["labels"][pods.GROUP_LABEL] = str(index)
    if plan.owner_annotation:
        thing["metadata"]["annotations"] = {GROUP_MIN_MEMBER: str(service.pods)}
    return thing


def _leader_worker_set(plan: Plan) -> Object:
    service = plan.service
    labels = {pods.SERVICE_LABEL: service.name}
    live = plan.live.get(plan.headless)
    scaled = service.scaling.min_groups if live is None else live
    spec = {
        "replicas": service.groups if service.scaling.mode == "none" else scaled,
        "startupPolicy": "LeaderCreated",
        "networkConfig": {"subdomainPolicy": "Shared"},
        "leaderWorkerTemplate": {
            "size": service.pods,
            # run.sh forms the group anew in its pods, which keeps addresses and devices.
            "restartPolicy": "None",
            "leaderTemplate": _pod(plan, 0, "leader", labels),
            "workerTemplate": _pod(plan, 0, "worker", labels),
        },
    }
    return _thing(service, facts.LEADER_WORKER_SET, plan.headless, spec=spec)


def _disruption_budget(service: Service) -> Object:
    """One for all groups: the first eviction makes all of its group unready, which blocks the
    other groups' evictions and, by AlwaysAllow, not that group's own."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {pods.SERVICE_LABEL: service.name}},
    }
    return _thing(service, "policy/v1/PodDisruptionBudget", service.name, spec=spec)


# -- what watches and scales them ----------------------------------------------------------------


def _scalers(plan: Plan) -> t.Iterator[Object]:
    service = plan.service
    mode = service.scaling.mode
    if mode == "none":
        return
    if mode == "hpa":
        spec = scaling.pod_autoscaler(service, group_name(service, 0))
        yield _thing(service, "autoscaling/v2/HorizontalPodAutoscaler", service.name, spec=spec)
        return
    if plan.layout == "lws" or service.collapsed:
        kind = facts.LEADER_WORKER_SET if plan.layout == "lws" else scaling.STATEFUL_SET
        name = plan.headless if plan.layout == "lws" else group_name(service, 0)
        spec = scaling.by_group(service, kind, name)
        yield _thing(service, facts.SCALED_OBJECT, name, spec=spec)
    else:
        for index in range(service.scaling.min_groups, service.groups):
            for member in members(plan, index):
                spec = scaling.all_or_nothing(service, index, member.name, member.replicas)
                yield _thing(service, facts.SCALED_OBJECT, member.name, spec=spec)
    if service.scaling.http_hosts:
        spec = scaling.route(service)
        yield _thing(service, facts.INTERCEPTOR_ROUTE, service.name, spec=spec)


def _service_monitor(service: Service) -> Object:
    labels = {pods.SERVICE_LABEL: service.name, "app.kubernetes.io/component": "api"}
    spec = {
        "selector": {"matchLabels": labels},
        "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
    }
    return _thing(service, facts.SERVICE_MONITOR, service.name, spec=spec)


# -- what to know --------------------------------------------------------------------------------


def groups(plan: Plan) -> list[Object]:
    """Each group: its name, how many pods it has and how to find them."""
    service, found = plan.service, []
    for index in range(service.groups):
        selector = f"{pods.SERVICE_LABEL}={service.name}"
        if plan.layout == "lws":
            selector += f",{LWS_LABELS}group-index={index}"
            sets, leader = [plan.headless], f"{plan.headless}-{index}"
        elif service.collapsed:
            selector += f",{pods.POD_INDEX}={index}"
            sets = [group_name(service, 0)]
            leader = f"{sets[0]}-{index}"
        else:
            selector += f",{pods.GROUP_LABEL}={index}"
            sets = [member.name for member in members(plan, index)]
            leader = f"{sets[0]}-0"
        found.append(
            {
                "name": group_name(service, index),
                "index": index,
                "pods": service.pods,
                "workloads": sets,
                "shared": plan.layout == "lws" or service.collapsed,
                "leader": leader,
                "selector": selector,
            }
        )
    return found


def warnings(plan: Plan) -> list[str]:
    """What is rendered otherwise than it may seem."""
    service, found = plan.service, []
    for path in ("leader", "worker") if service.workers else ("leader",):
        container = templates.engine(getattr(service, path))
        for key in ("startupProbe", "readinessProbe", "livenessProbe"):
            if key in container:
                found.append(
                    f"spec.servers.{path}.template.spec.containers[0].{key}: replaced by "
                    "probe.sh, which alone knows whether a member waits, forms or serves"
                )
        if "preStop" in container.get("lifecycle", {}):
            found.append(
                f"spec.servers.{path}.template.spec.containers[0].lifecycle.preStop: replaced by "
                "prestop.sh, which lets requests end"
            )
    if plan.layout == "lws" and plan.gang:
        found.append(
            "spec.scheduler.queue: with layout lws the gang is LWS's own affair; have its "
            "gang scheduling turned on"
        )
    if not plan.indexed and plan.layout == "single" and service.groups > 1:
        found.append(
            "spec.replicas: before Kubernetes 1.28 each group has a Service of its own; "
            f"{service.name} is group 0's"
        )
    return found
