# SPDX-License-Identifier: GPL-3.0-or-later
"""Cluster DNS as a site has it: CoreDNS behind the address that kubelets tell to pods. Pure.

It knows the cluster's names, and of any other that there is none: what happens in a testbed must
not depend on a server outside.
"""

from __future__ import annotations

import hashlib
from typing import Any

from .config import CLUSTER_DOMAIN, CONTROL_PLANE_ROLE
from .layout import Layout

Object = dict[str, Any]

NAMESPACE, NAME = "kube-system", "coredns"
# The Service's name of every cluster since the days of kube-dns; others look for it.
SERVICE = "kube-dns"
LABELS = {"k8s-app": SERVICE}
READY_PORT, HEALTH_PORT = 8181, 8080
# Two servers, since within one the template would answer before Kubernetes is asked.
COREFILE = f"""\
{CLUSTER_DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {{
    errors
    health :{HEALTH_PORT}
    ready :{READY_PORT}
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
    }}
    loadbalance
}}
.:53 {{
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def _thing(
    api_version: str, kind: str, name: str, *, namespaced: bool = True, **body: Any
) -> Object:
    metadata = {"name": name, "labels": LABELS, **({"namespace": NAMESPACE} if namespaced else {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def _rights() -> list[Object]:
    listed = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]},
    ]
    role = "system:coredns"
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        _thing("v1", "ServiceAccount", NAME),
        _thing(
            rbac, "ClusterRole", role, namespaced=False,
            rules=[{**one, "verbs": ["list", "watch"]} for one in listed],
        ),
        _thing(
            rbac, "ClusterRoleBinding", role, namespaced=False,
            roleRef=reference, subjects=[subject],
        ),
    ]  # fmt: skip


def _pod(image: str) -> Object:
    container = {
        "name": "coredns",
        "image": image,
        # No registry has it.
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": READY_PORT},
            "periodSeconds": 1,
        },
        "livenessProbe": {"httpGet": {"path": "/health", "port": HEALTH_PORT}, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    return {
        "serviceAccountName": NAME,
        "priorityClassName": "system-cluster-critical",
        # The one node that tests neither drain nor lose, and the one that has the image.
        "nodeSelector": {CONTROL_PLANE_ROLE: ""},
        "tolerations": [{"key": CONTROL_PLANE_ROLE, "effect": "NoSchedule"}],
        # Its own names are not its to ask for.
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": NAME}}],
    }


def _service(address: str) -> Object:
    ports = [
        {"name": name, "port": 53, "protocol": protocol, "targetPort": name}
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    return _thing(
        "v1", "Service", SERVICE, spec={"selector": LABELS, "clusterIP": address, "ports": ports}
    )


def objects(layout: Layout, image: str) -> list[Object]:
    """All of it, in the order in which to apply it."""
    read = {"testbed.invalid/corefile": hashlib.sha256(COREFILE.encode()).hexdigest()[:16]}
    deployment = {
        "replicas": 1,
        "selector": {"matchLabels": LABELS},
        # Another Corefile is another pod.
        "template": {"metadata": {"labels": LABELS, "annotations": read}, "spec": _pod(image)},
    }
    return [
        *_rights(),
        _thing("v1", "ConfigMap", NAME, data={"Corefile": COREFILE}),
        _thing("apps/v1", "Deployment", NAME, spec=deployment),
        _service(layout.dns_service_ip),
    ]


# Where each kind lies below its group and version.
_PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
}
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}"


def path(thing: Object) -> str:
    """Where the API server has an object."""
    api_version, metadata = thing["apiVersion"], thing["metadata"]
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    room = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{room}/{_PLURALS[thing['kind']]}/{metadata['name']}"


def waiting_for(deployment: Object) -> str:
    """Empty once the Deployment as it is now has its pod ready, else what is missing."""
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment.get("metadata", {}).get("generation", 1):
        return "its controller has not seen it yet"
    if status.get("updatedReplicas", 0) < 1 or status.get("readyReplicas", 0) < 1:
        return "its pod is not ready"
    return ""
