# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything one host shall have, as the order that ``on_host`` carries out."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from . import config, units
from .config import PKI
from .layout import Layout, Node
from .pki import Identity, Store

PROGRAMS_LINKED = ("kubectl",)
# In place of the system's package, or where a package of it would put them.
ENGINE_PROGRAMS = {
    "containerd-2": ("containerd", "containerd-shim-runc-v2", "ctr"),
    "cri-dockerd": ("cri-dockerd",),
}
# Before /usr/sbin on the path that dockerd's containerd and NVIDIA's runtime look along.
RUNC_WRAPPER = "/usr/local/sbin/runc"


@dataclass(frozen=True)
class Image:
    """An image's name, its manifest's digest, and where its archive lies on a host."""

    name: str
    digest: str
    archive: str


@dataclass(frozen=True)
class Delivered:
    """Where the programs and images lie on the hosts: ``pause`` on each, ``dns`` on the control
    plane's."""

    binaries: str
    pause: Image
    dns: Image
    # Directory of each engine that some host takes from us.
    engines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """One file of a host. ``keep``: written once; what its administrator edits stays."""

    data: bytes
    mode: int = 0o644
    keep: bool = False


def admin() -> Identity:
    """The cluster's administrator, in whose name the testbed and its users act."""
    return Identity("admin", "testbed-admin", "system:masters")


def api_server(layout: Layout) -> Identity:
    """The API server, under every name something may call it by."""
    node = layout.control_plane
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += ["kubernetes.default.svc.cluster.local", node.name, "localhost"]
    return Identity(
        "apiserver",
        "kube-apiserver",
        addresses=[*names, layout.api_service_ip, node.address, "127.0.0.1"],
    )


def _pair_files(store: Store, name: str, identity: Identity) -> dict[str, File]:
    pair = store.pair(identity)
    return {
        f"{PKI}/{name}.crt": File(pair.certificate),
        f"{PKI}/{name}.key": File(pair.key, 0o600),
    }


def _kubeconfig(layout: Layout, store: Store, identity: Identity) -> File:
    authority = store.authority().certificate
    text = config.kubeconfig(layout, identity.name, authority, store.pair(identity))
    return File(text.encode(), 0o600)


def _control_plane_files(layout: Layout, store: Store) -> dict[str, File]:
    manager = Identity("controller-manager", "system:kube-controller-manager")
    scheduler = Identity("scheduler", "system:kube-scheduler")
    to_kubelets = Identity("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters")
    front_proxy = Identity("front-proxy-client", "front-proxy-client")
    return {
        f"{PKI}/ca.key": File(store.authority().key, 0o600),
        f"{PKI}/service-account.key": File(store.service_account_key(), 0o600),
        **_pair_files(store, "apiserver", api_server(layout)),
        **_pair_files(store, "apiserver-kubelet", to_kubelets),
        **_pair_files(store, "front-proxy-client", front_proxy),
        "/etc/kubernetes/admin.conf": _kubeconfig(layout, store, admin()),
        "/etc/kubernetes/controller-manager.conf": _kubeconfig(layout, store, manager),
        "/etc/kubernetes/scheduler.conf": _kubeconfig(layout, store, scheduler),
    }


def _node_files(layout: Layout, node: Node, store: Store, pause: str) -> dict[str, File]:
    client = Identity(f"kubelet-{node.name}", f"system:node:{node.name}", "system:nodes")
    proxy = Identity("kube-proxy", "system:kube-proxy")
    server = Identity(f"kubelet-server-{node.name}", node.name, addresses=[node.name, node.address])
    return {
        f"{PKI}/ca.crt": File(store.authority().certificate),
        **_pair_files(store, "kubelet-server", server),
        "/etc/kubernetes/kubelet.conf": _kubeconfig(layout, store, client),
        "/etc/kubernetes/kube-proxy.conf": _kubeconfig(layout, store, proxy),
        "/etc/kubernetes/kubelet.yaml": File(config.kubelet(layout, node).encode()),
        "/etc/kubernetes/kube-proxy.yaml": File(config.kube_proxy(layout, node).encode()),
        f"{config.CNI_CONFIG}/10-pods.conflist": File(config.pod_network(node).encode()),
        units.NETWORK_SCRIPT: File(config.network_script(layout, node).encode(), 0o755),
        **_engine_files(node, pause),
    }


def _engine_files(node: Node, pause: str) -> dict[str, File]:
    of_two = node.engine == "containerd-2"
    text = config.containerd_2(pause) if of_two else config.containerd(node.os, pause)
    files = {"/etc/containerd/config.toml": File(text.encode(), keep=True)}
    if node.engine == "cri-dockerd":
        files["/etc/docker/daemon.json"] = File(config.docker().encode(), keep=True)
        files[RUNC_WRAPPER] = File(config.runc_wrapper().encode(), 0o755)
    return files


def _links(node: Node, delivered: Delivered) -> dict[str, str]:
    links = {f"/usr/local/bin/{name}": f"{delivered.binaries}/{name}" for name in PROGRAMS_LINKED}
    for name in ENGINE_PROGRAMS.get(node.engine, ()):
        links[f"/usr/bin/{name}"] = f"{delivered.engines[node.engine]}/{name}"
    return links


def _unit_document(unit: units.Unit) -> dict[str, Any]:
    return {"name": unit.name, "files": list(unit.files)}


def _image_document(image: Image, node: Node) -> dict[str, Any]:
    engine = "docker" if node.engine == "cri-dockerd" else "containerd"
    return {**asdict(image), "engine": engine}


def _file_document(file: File) -> dict[str, Any]:
    return {
        "data": base64.b64encode(file.data).decode(),
        "mode": file.mode,
        "keep": file.keep,
    }


def make_order(layout: Layout, node: Node, store: Store, delivered: Delivered) -> dict[str, Any]:
    """The order for *node*'s host. Issues the certificates it needs; changes nothing else."""
    first = units.first_units(node, delivered.pause.name)
    later = units.units(layout, node, delivered.binaries)
    files = {
        **_node_files(layout, node, store, delivered.pause.name),
        **(_control_plane_files(layout, store) if node.control_plane else {}),
        **{unit.path: File(unit.text.encode()) for unit in (*first, *later) if unit.text},
    }
    images = (delivered.pause, *([delivered.dns] if node.control_plane else []))
    return {
        "files": {path: _file_document(file) for path, file in files.items()},
        "links": _links(node, delivered),
        "first_units": [_unit_document(unit) for unit in first],
        "units": [_unit_document(unit) for unit in later],
        "images": [_image_document(image, node) for image in images],
    }
