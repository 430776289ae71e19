# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration files of every component, as text. Pure.

Settings that differ from an ordinary site's are the ones a container as a host needs; each says so.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import yaml

from .layout import Layout, Node
from .pki import Pair

PKI = "/etc/kubernetes/pki"
CNI_CONFIG = "/etc/cni/net.d"
CNI_PLUGINS = "/usr/lib/cni"
BRIDGE = "cni0"
CONTROL_PLANE_ROLE = "node-role.kubernetes.io/control-plane"
CLUSTER_DOMAIN = "cluster.local"
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
CRI_SOCKETS = {"cri-dockerd": "unix:///run/cri-dockerd.sock"}
CONTAINERD_SOCKET = "unix:///run/containerd/containerd.sock"
# Debian 12's containerd 1.6 doesn't know the CDI field of the CRI.
CDI_SYSTEMS = ("ubuntu2404",)


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False)


def kubeconfig(layout: Layout, user: str, authority: bytes, pair: Pair) -> str:
    """A kubeconfig that holds everything it needs, so that it can be copied anywhere."""

    def data(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    cluster = {"server": layout.endpoint, "certificate-authority-data": data(authority)}
    credentials = {
        "client-certificate-data": data(pair.certificate),
        "client-key-data": data(pair.key),
    }
    return _yaml(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": layout.name, "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [
                {"name": layout.name, "context": {"cluster": layout.name, "user": user}},
            ],
            "current-context": layout.name,
        }
    )


def kubelet(layout: Layout, node: Node) -> str:
    """KubeletConfiguration."""
    taint = {"key": CONTROL_PLANE_ROLE, "effect": "NoSchedule"}
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{PKI}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{PKI}/kubelet-server.crt",
            "tlsPrivateKeyFile": f"{PKI}/kubelet-server.key",
            "containerRuntimeEndpoint": CRI_SOCKETS.get(node.engine, CONTAINERD_SOCKET),
            "clusterDomain": CLUSTER_DOMAIN,
            "clusterDNS": [layout.dns_service_ip],
            "registerWithTaints": [taint] if node.control_plane else [],
            "serializeImagePulls": False,
            # A host is a container: systemd in it delegates no slices, swap is the machine's, and
            # sysctls and oom scores can't be set; in "user namespace" mode that is no error.
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "featureGates": {"KubeletInUserNamespace": True},
            "oomScoreAdj": 0,
            # Disk and memory are the machine's too: what others do there must evict nothing here.
            "evictionHard": {
                "memory.available": "1Mi",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
            # No registry could bring a collected image back.
            "imageGCHighThresholdPercent": 100,
        }
    )


def kube_proxy(layout: Layout, node: Node) -> str:
    """KubeProxyConfiguration."""
    # Zero leaves the setting alone; the machine's conntrack table can't be sized from here.
    conntrack = {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": layout.pod_cidr,
            "hostnameOverride": node.name,
            "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.conf"},
            "conntrack": conntrack,
            "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        }
    )


def pod_network(node: Node) -> str:
    """CNI: one bridge per node; routes between nodes and masquerading are ``network_script``'s."""
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "hairpinMode": True,
                    # The plugin would hide a pod's address from pods on other nodes.
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": node.pod_subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )


def network_script(layout: Layout, node: Node) -> str:
    """What a network plugin's daemon would do: routes to the peers' pods, a way out for our own."""
    routes = "".join(
        f"ip route replace {peer.pod_subnet} via {peer.address}\n" for peer in layout.peers(node)
    )
    # dockerd, started before anything else had switched forwarding on, forbids it to all others.
    forward = "iptables -w -P FORWARD ACCEPT\n" if node.engine == "cri-dockerd" else ""
    rule = f"POSTROUTING -s {node.pod_subnet} ! -d {layout.pod_cidr} -j MASQUERADE"
    return (
        "#!/bin/sh\n"
        f"# Pod network of node {node.name}; made by the testbed, run at each boot.\n"
        "set -eu\n"
        "echo 1 > /proc/sys/net/ipv4/ip_forward\n"
        "# Without it a pod can't reach a service whose backend is on the pod's own node.\n"
        "bridged=/proc/sys/net/bridge/bridge-nf-call-iptables\n"
        "[ ! -e $bridged ] || echo 1 > $bridged\n"
        f"{routes}{forward}"
        f"iptables -w -t nat -C {rule} 2>/dev/null || iptables -w -t nat -A {rule}\n"
    )


def containerd(system: str, pause_image: str) -> str:
    """The site's own containerd configuration, which the collection finds and leaves alone."""
    cdi = ""
    if system in CDI_SYSTEMS:
        cdi = f"  enable_cdi = true\n  cdi_spec_dirs = {json.dumps(list(CDI_DIRECTORIES))}\n"
    plugin = '[plugins."io.containerd.grpc.v1.cri"'
    return (
        "# containerd of this site. Additions go to conf.d, one file per owner.\n"
        "version = 2\n"
        'imports = ["/etc/containerd/conf.d/*.toml"]\n'
        "\n"
        f"{plugin}]\n"
        f'  sandbox_image = "{pause_image}"\n'
        "  # Hosts are containers: they may raise no process's protection from the OOM killer.\n"
        "  restrict_oom_score_adj = true\n"
        f"{cdi}"
        "\n"
        f"{plugin}.cni]\n"
        f'  bin_dir = "{CNI_PLUGINS}"\n'
        f'  conf_dir = "{CNI_CONFIG}"\n'
        "\n"
        f"{plugin}.containerd]\n"
        '  default_runtime_name = "runc"\n'
        "\n"
        f"{plugin}.containerd.runtimes.runc]\n"
        '  runtime_type = "io.containerd.runc.v2"\n'
        "\n"
        f"{plugin}.containerd.runtimes.runc.options]\n"
        "  SystemdCgroup = false\n"
        "\n"
        f"{plugin}.registry]\n"
        '  config_path = "/etc/containerd/certs.d"\n'
    )


def containerd_2(pause_image: str) -> str:
    """The same site's configuration for containerd 2, in its own format (version 3)."""
    images = "[plugins.'io.containerd.cri.v1.images'"
    runtime = "[plugins.'io.containerd.cri.v1.runtime'"
    return (
        "# containerd 2 of this site. Additions go to conf.d, one file per owner.\n"
        "version = 3\n"
        'imports = ["/etc/containerd/conf.d/*.toml"]\n'
        "\n"
        f"{images}.pinned_images]\n"
        f'  sandbox = "{pause_image}"\n'
        "\n"
        f"{images}.registry]\n"
        '  config_path = "/etc/containerd/certs.d"\n'
        "\n"
        f"{runtime}]\n"
        "  # Hosts are containers: they may raise no process's protection from the OOM killer.\n"
        "  restrict_oom_score_adj = true\n"
        "  enable_cdi = true\n"
        f"  cdi_spec_dirs = {json.dumps(list(CDI_DIRECTORIES))}\n"
        "\n"
        f"{runtime}.cni]\n"
        f'  bin_dir = "{CNI_PLUGINS}"\n'
        f'  conf_dir = "{CNI_CONFIG}"\n'
        "\n"
        f"{runtime}.containerd]\n"
        '  default_runtime_name = "runc"\n'
        "\n"
        f"{runtime}.containerd.runtimes.runc]\n"
        '  runtime_type = "io.containerd.runc.v2"\n'
        "\n"
        f"{runtime}.containerd.runtimes.runc.options]\n"
        "  SystemdCgroup = false\n"
    )


def docker() -> str:
    """The site's own daemon.json on a node whose kubelet uses Docker."""
    return (
        json.dumps(
            {
                # The pod network is the kubelet's; Docker makes none of its own.
                "bridge": "none",
                "iptables": False,
                "exec-opts": ["native.cgroupdriver=cgroupfs"],
                "live-restore": True,
            },
            indent=2,
        )
        + "\n"
    )


def runc_wrapper() -> str:
    """runc for a Docker node.

    cri-dockerd gives every sandbox an oom score of -998, and Docker gives privileged containers
    every capability there is; hosts are containers, on a machine that may give neither. containerd
    asks for what the host has itself; Docker has no setting for it.
    """
    return (
        "#!/bin/sh\n"
        "# The testbed's runc: the real one, asked for nothing that this host may not give.\n"
        "previous=\n"
        'for word in "$@"; do\n'
        "    case $previous in\n"
        "        --bundle) asked=$word/config.json ;;\n"
        "        --process) asked=$word ;;\n"
        "        *) asked= ;;\n"
        "    esac\n"
        '    [ -z "$asked" ] || sed -i -e \'s/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/\' \\\n'
        '        -e \'s/,"CAP_SYS_RESOURCE"//g\' "$asked"\n'
        "    previous=$word\n"
        "done\n"
        'exec /usr/sbin/runc "$@"\n'
    )
