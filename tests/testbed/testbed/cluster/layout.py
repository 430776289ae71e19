# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host becomes which node, and who gets which addresses. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import islice

from ..errors import TestbedError
from ..hosts import Host, Testbed
from ..topology import ENGINE_ROLES

API_PORT = 6443
POD_PREFIX = 24
NODE_ROLES = ("control-plane", "worker")
# The control plane keeps its state in Debian's etcd-server, which the other systems' images lack.
CONTROL_PLANE_OS = "debian12"


@dataclass(frozen=True)
class Node:
    """One Kubernetes node. Its name is its host's."""

    name: str
    address: str
    os: str
    control_plane: bool
    pod_subnet: str
    # What its kubelet speaks to: containerd (the system's own), or one of topology.ENGINE_ROLES.
    engine: str = "containerd"


@dataclass(frozen=True)
class Layout:
    """The whole cluster, as it shall be."""

    name: str
    nodes: tuple[Node, ...]
    pod_cidr: str
    service_cidr: str

    @property
    def control_plane(self) -> Node:
        return next(node for node in self.nodes if node.control_plane)

    @property
    def endpoint(self) -> str:
        return f"https://{self.control_plane.address}:{API_PORT}"

    @property
    def api_service_ip(self) -> str:
        """The address of service ``kubernetes``: by definition the range's first."""
        return str(ipaddress.IPv4Network(self.service_cidr)[1])

    @property
    def dns_service_ip(self) -> str:
        """Where a cluster DNS is expected to be installed; kubelets tell it to every pod."""
        return str(ipaddress.IPv4Network(self.service_cidr)[10])

    def peers(self, node: Node) -> tuple[Node, ...]:
        return tuple(other for other in self.nodes if other != node)


def _node_hosts(testbed: Testbed) -> list[Host]:
    return [host for host in testbed.hosts if set(host.roles) & set(NODE_ROLES)]


def _engine(host: Host) -> str:
    return next((role for role in host.roles if role in ENGINE_ROLES), "containerd")


def _pod_subnets(pod_cidr: str, count: int) -> list[str]:
    network = ipaddress.IPv4Network(pod_cidr)
    room = 1 << max(0, POD_PREFIX - network.prefixlen)
    if network.prefixlen > POD_PREFIX or count > room:
        raise TestbedError(
            f"kubernetes.pod_cidr {pod_cidr} has no /{POD_PREFIX} for each of {count} nodes",
            "use a wider range, 10.244.0.0/16 say",
        )
    return [str(subnet) for subnet in islice(network.subnets(new_prefix=POD_PREFIX), count)]


def plan(testbed: Testbed) -> Layout:
    """The cluster that *testbed*'s topology asks for."""
    kubernetes = testbed.topology.kubernetes
    hosts = _node_hosts(testbed)
    masters = [host for host in hosts if "control-plane" in host.roles]
    if kubernetes is None or len(masters) != 1:
        raise TestbedError(
            f"testbed {testbed.name} has {len(masters)} hosts with the role control-plane, not one",
            "give exactly one host roles: [control-plane]",
        )
    if masters[0].os != CONTROL_PLANE_OS:
        raise TestbedError(
            f"control-plane host {masters[0].name} runs {masters[0].os}, which has no etcd",
            f"give it os: {CONTROL_PLANE_OS}",
        )
    subnets = _pod_subnets(kubernetes.pod_cidr, len(hosts))
    nodes = tuple(
        Node(host.name, host.address, host.os, host is masters[0], subnet, _engine(host))
        for host, subnet in zip(hosts, subnets, strict=True)
    )
    return Layout(testbed.name, nodes, kubernetes.pod_cidr, kubernetes.service_cidr)
