# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to flexai.xpu: may change at any time.
"""Who else has a part in the cluster, and what we do about it, per component (pure)."""

from __future__ import annotations

import typing as t

from ._cluster import Object, is_ours
from ._decision import ADOPT, BLOCKED, COEXIST, OK, REFUSE, Claim, Decision

GPU_OPERATOR, NVIDIA_PLUGIN = "gpu-operator", "NVIDIA's device plugin"
ASCEND_PLUGIN, MINDCLUSTER = "Ascend's device plugin", "MindCluster"
# Owner → words of which one stands in the image of a workload of his.
IMAGES: dict[str, tuple[str, ...]] = {
    GPU_OPERATOR: ("/gpu-operator:", "/gpu-operator@"),
    NVIDIA_PLUGIN: ("/k8s-device-plugin:", "/k8s-device-plugin@", "nvidia-device-plugin"),
    ASCEND_PLUGIN: ("ascend-k8sdeviceplugin", "ascend-device-plugin"),
    MINDCLUSTER: ("/clusterd:", "/noded:", "/ascend-operator:", "/hccl-controller:"),
    "npu-exporter": ("/npu-exporter:",),
    "a Volcano": ("vc-scheduler", "vc-controller-manager"),
}
NVIDIA_RESOURCE, OUR_RESOURCE = "nvidia.com/gpu", "huawei.com/vgpu-number"
# Under another name where shares or instances of a card are given out.
NVIDIA_RESOURCES = (NVIDIA_RESOURCE, f"{NVIDIA_RESOURCE}.shared", "nvidia.com/mig-")
PODGROUPS = "podgroups.scheduling.volcano.sh"
HELM_NAME, HELM_NAMESPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"


class Release(t.NamedTuple):
    """A Helm release of ours, as the site names it."""

    name: str
    namespace: str

    def __str__(self) -> str:
        return f"release {self.name} in {self.namespace}"


class Seen(t.NamedTuple):
    """All that is looked at; every entry as the API server gives it."""

    nodes: t.Sequence[Object]
    workloads: t.Sequence[Object]
    runtime_classes: t.Sequence[Object]
    crds: t.Sequence[Object]
    helm_records: t.Sequence[Object]


class Wanted(t.NamedTuple):
    nodes: t.Collection[str]
    labels: t.Mapping[str, str]
    handlers: t.Mapping[str, str]
    gpupool: Release
    volcano: Release
    # Ours where a foreign Volcano runs; its name is the scheduler's too.
    second: Release = Release("flexai-volcano", "flexai-volcano")


def _where(thing: Object) -> str:
    return f"{thing['metadata'].get('namespace', 'default')}/{thing['metadata']['name']}"


def owners_of_workloads(workloads: t.Iterable[Object]) -> dict[str, list[str]]:
    """Owner → the workloads by which he is known."""
    found: dict[str, list[str]] = {}
    for thing in workloads:
        containers = thing["spec"]["template"]["spec"]["containers"]
        images = [str(container.get("image", "")) for container in containers]
        for owner, words in IMAGES.items():
            if any(word in image for word in words for image in images):
                found.setdefault(owner, []).append(_where(thing))
    return found


def shows(node: Object, resource: str) -> bool:
    """Whether a node has some of a resource, or of one whose name begins so where it ends in -."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return any(
        str(amount) not in ("0", "")
        for name, amount in allocatable.items()
        if name == resource or (resource.endswith("-") and name.startswith(resource))
    )


def offers_nvidia(node: Object) -> bool:
    """Whether a plugin like NVIDIA's gives the node's cards out."""
    return any(shows(node, resource) for resource in NVIDIA_RESOURCES)


def _records_of(seen: Seen, release: Release) -> list[Object]:
    """Helm's records of a release."""
    return [
        record
        for record in seen.helm_records
        if (record["metadata"].get("labels") or {}).get("name") == release.name
        and record["metadata"].get("namespace") == release.namespace
    ]


def _is_foreign(seen: Seen, release: Release) -> bool:
    records = _records_of(seen, release)
    return bool(records) and not all(is_ours(record) for record in records)


def _foreign_release(seen: Seen, release: Release) -> Claim | None:
    if not _is_foreign(seen, release):
        return None
    return Claim(
        REFUSE,
        str(release),
        f"{release} was not installed by flexai.xpu; `helm uninstall` it first, or run its own way",
    )


def _gpupool(seen: Seen, wanted: Wanted, owners: t.Mapping[str, list[str]]) -> Claim | None:
    foreign = _foreign_release(seen, wanted.gpupool)
    if foreign:
        return foreign
    ours = [node for node in seen.nodes if node["metadata"]["name"] in wanted.nodes]
    given = sorted(node["metadata"]["name"] for node in ours if offers_nvidia(node))
    by_others = [owner for owner in (GPU_OPERATOR, NVIDIA_PLUGIN) if owner in owners]
    if given:
        owner = by_others[0] if by_others else "another device plugin"
        where = f" ({', '.join(owners.get(owner, ()))})" if owner in owners else ""
        return Claim(
            REFUSE,
            owner,
            f"{owner}{where} hands out the cards of {', '.join(given)} as {NVIDIA_RESOURCE} "
            "already; keep it off these nodes (gpu-operator: label "
            "nvidia.com/gpu.deploy.device-plugin=false; the plugin: its nodeSelector), or take "
            "them out of flexai_kubernetes",
        )
    offering = sorted(node["metadata"]["name"] for node in ours if shows(node, OUR_RESOURCE))
    if offering and not _records_of(seen, wanted.gpupool):
        return Claim(
            REFUSE,
            "another plugin for slices",
            f"{', '.join(offering)} offers {OUR_RESOURCE} already, and {wanted.gpupool} is not "
            "there; remove the plugin that does, or name its release in gpupool_release",
        )
    beside = [owner for owner in (*by_others, ASCEND_PLUGIN, "npu-exporter") if owner in owners]
    if beside:
        said = "; ".join(f"{owner} ({', '.join(owners[owner])})" for owner in beside)
        return Claim(COEXIST, beside[0], f"{said}: has other cards or nodes and stays as it is")
    return None


def foreign_volcano(seen: Seen, volcano: Release) -> str:
    """By what a Volcano is known that somebody else installed; empty where there is none.

    Whose it is, its CRDs say: there is one set of them in a cluster.
    """
    if _is_foreign(seen, volcano):
        return f"{volcano} was not installed by flexai.xpu"
    for crd in seen.crds:
        notes = crd["metadata"].get("annotations") or {}
        whose = Release(notes.get(HELM_NAME, ""), notes.get(HELM_NAMESPACE, ""))
        if crd["metadata"]["name"] == PODGROUPS and whose != volcano:
            return f"CRD {PODGROUPS} belongs to {whose if whose.name else 'no Helm release'}"
    return ""


def _volcano(seen: Seen, wanted: Wanted, owners: t.Mapping[str, list[str]]) -> Claim | None:
    by = MINDCLUSTER if MINDCLUSTER in owners else "another Volcano"
    foreign = foreign_volcano(seen, wanted.volcano)
    if foreign:
        return _foreign_release(seen, wanted.second) or Claim(
            COEXIST,
            by,
            f"{by} is installed ({foreign}) and stays as it is; ours is a second scheduler beside "
            f"it, which pods name as schedulerName {wanted.second.name}",
        )
    strangers = [
        where
        for where in owners.get("a Volcano", ())
        if where.split("/", 1)[0] not in (wanted.volcano.namespace, wanted.second.namespace)
    ]
    if strangers:
        reason = (
            f"{by} runs already ({', '.join(strangers)}) and has no CRDs of its own; remove it, or "
            "leave role volcano out"
        )
        return Claim(REFUSE, by, reason)
    if MINDCLUSTER in owners:
        said = ", ".join(owners[MINDCLUSTER])
        return Claim(COEXIST, MINDCLUSTER, f"MindCluster ({said}) stays as it is")
    return None


def _runtime_classes(seen: Seen, wanted: Wanted) -> Claim | None:
    adopted = []
    for thing in seen.runtime_classes:
        name = thing["metadata"]["name"]
        handler = wanted.handlers.get(name)
        if handler is None or is_ours(thing):
            continue
        if thing["handler"] != handler:
            return Claim(
                REFUSE,
                f"RuntimeClass {name}",
                f"RuntimeClass {name} exists with handler {thing['handler']}, slices need "
                f"{handler}; remove it with whatever made it, or give that another name",
            )
        adopted.append(name)
    if adopted:
        names = ", ".join(sorted(adopted))
        reason = f"RuntimeClass {names} is somebody else's with the same handler; used as it is"
        return Claim(ADOPT, f"RuntimeClass {names}", reason)
    return None


def _node_labels(seen: Seen, wanted: Wanted, record: str) -> Claim | None:
    for node in seen.nodes:
        name, meta = node["metadata"]["name"], node["metadata"]
        if name not in wanted.nodes or record in (meta.get("annotations") or {}):
            continue
        has = meta.get("labels") or {}
        for key, value in wanted.labels.items():
            if has.get(key, value) != value:
                return Claim(
                    REFUSE,
                    f"label {key}",
                    f"node {name} bears {key}={has[key]}, set by somebody else; remove that label, "
                    "or take the node out of flexai_kubernetes",
                )
    return None


def decide(seen: Seen, wanted: Wanted, record: str) -> list[Decision]:
    """Per component of the cluster: what somebody else has in it. *record* is the annotation that
    says what we set on a node."""
    owners = owners_of_workloads(seen.workloads)
    claims = {
        "runtime_classes": _runtime_classes(seen, wanted),
        "node_labels": _node_labels(seen, wanted, record),
        "volcano": _volcano(seen, wanted, owners),
        "gpupool": _gpupool(seen, wanted, owners),
    }
    return [
        Decision(
            component,
            BLOCKED if claim.stance == REFUSE else OK,
            "",
            claim.owner,
            claim.reason,
            claim.stance,
            claim.owner,
        )
        for component, claim in claims.items()
        if claim is not None
    ]
