# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd units: which component runs where, with which flags. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from .config import CNI_CONFIG, CNI_PLUGINS, CRI_SOCKETS, PKI
from .layout import API_PORT, Layout, Node

UNIT_DIRECTORY = "/etc/systemd/system"
ETCD = "http://127.0.0.1:2379"
NETWORK_SCRIPT = "/usr/local/lib/testbed/pod-network"
# Where a package would put it.
CRI_DOCKERD = "/usr/bin/cri-dockerd"
CRI_DOCKERD_UNIT = "cri-docker.service"

# A connection to a host that was reset gets no answer at all; Go's clients notice that only after
# 45 s by default, and until then a node only seems ready.
NOTICE_DEAD_PEERS = (
    "Environment=HTTP2_READ_IDLE_TIMEOUT_SECONDS=5",
    "Environment=HTTP2_PING_TIMEOUT_SECONDS=3",
)


@dataclass(frozen=True)
class Unit:
    """A unit of ours. ``text`` None: a package brought it. ``reads``: files it must restart for."""

    name: str
    text: str | None
    reads: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"{UNIT_DIRECTORY}/{self.name}"

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.reads, *([self.path] if self.text else []))


def _service(
    name: str,
    description: str,
    argv: Sequence[str],
    *,
    reads: Sequence[str] = (),
    unit: Sequence[str] = (),
    service: Sequence[str] = ("Type=simple",),
) -> Unit:
    """A service that is started again for as long as it takes: its peers may come up later."""
    command = " \\\n    ".join(shlex.quote(word) for word in argv)
    lines = [
        "[Unit]",
        f"Description={description} (testbed)",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        *unit,
        "",
        "[Service]",
        *service,
        f"ExecStart={command}",
        "Restart=always",
        "RestartSec=1",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return Unit(f"{name}.service", "\n".join(lines) + "\n", tuple(reads))


def _oneshot(name: str, description: str, script: str) -> Unit:
    lines = [
        "[Unit]",
        f"Description={description} (testbed)",
        "Before=containerd.service kubelet.service",
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        f"ExecStart={script}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return Unit(f"{name}.service", "\n".join(lines) + "\n", (script,))


def _etcd() -> Unit:
    return _service(
        "etcd",
        "Kubernetes' store",
        [
            "/usr/bin/etcd",
            "--name=testbed",
            "--data-dir=/var/lib/etcd/testbed",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # Its writes then cost nothing on a slow disk; what a crash of the machine loses is a
            # testbed.
            "--unsafe-no-fsync",
        ],
        service=("Type=notify",),
    )


def _api_server(layout: Layout, binaries: str) -> Unit:
    node = layout.control_plane
    flags = {
        "etcd-servers": ETCD,
        "advertise-address": node.address,
        "secure-port": str(API_PORT),
        "service-cluster-ip-range": layout.service_cidr,
        "allow-privileged": "true",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "client-ca-file": f"{PKI}/ca.crt",
        "tls-cert-file": f"{PKI}/apiserver.crt",
        "tls-private-key-file": f"{PKI}/apiserver.key",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": f"{PKI}/service-account.key",
        "service-account-signing-key-file": f"{PKI}/service-account.key",
        "kubelet-preferred-address-types": "InternalIP",
        "kubelet-certificate-authority": f"{PKI}/ca.crt",
        "kubelet-client-certificate": f"{PKI}/apiserver-kubelet.crt",
        "kubelet-client-key": f"{PKI}/apiserver-kubelet.key",
        # For API services that run as pods, as a metrics adapter does.
        "requestheader-client-ca-file": f"{PKI}/ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-username-headers": "X-Remote-User",
        "proxy-client-cert-file": f"{PKI}/front-proxy-client.crt",
        "proxy-client-key-file": f"{PKI}/front-proxy-client.key",
        "enable-aggregator-routing": "true",
    }
    return _service(
        "kube-apiserver",
        "Kubernetes API server",
        [f"{binaries}/kube-apiserver", *_flags(flags)],
        reads=sorted(value for value in flags.values() if value.startswith(PKI)),
        unit=("Wants=etcd.service", "After=etcd.service"),
        service=("Type=notify",),
    )


def _controller_manager(layout: Layout, binaries: str) -> Unit:
    kubeconfig = "/etc/kubernetes/controller-manager.conf"
    flags = {
        "kubeconfig": kubeconfig,
        # With an election, a restart of the API server ends the program ("leaderelection lost").
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "root-ca-file": f"{PKI}/ca.crt",
        "service-account-private-key-file": f"{PKI}/service-account.key",
        "cluster-signing-cert-file": f"{PKI}/ca.crt",
        "cluster-signing-key-file": f"{PKI}/ca.key",
        # A host that goes away shall be noticed within a test's patience.
        "node-monitor-grace-period": "20s",
    }
    return _service(
        "kube-controller-manager",
        "Kubernetes controllers",
        [f"{binaries}/kube-controller-manager", *_flags(flags)],
        reads=(kubeconfig, f"{PKI}/service-account.key"),
        unit=("After=kube-apiserver.service",),
    )


def _scheduler(binaries: str) -> Unit:
    kubeconfig = "/etc/kubernetes/scheduler.conf"
    return _service(
        "kube-scheduler",
        "Kubernetes scheduler",
        [f"{binaries}/kube-scheduler", f"--kubeconfig={kubeconfig}", "--leader-elect=false"],
        reads=(kubeconfig,),
        unit=("After=kube-apiserver.service",),
    )


def _kubelet(node: Node, binaries: str) -> Unit:
    reads = ("/etc/kubernetes/kubelet.yaml", "/etc/kubernetes/kubelet.conf")
    engine = CRI_DOCKERD_UNIT if node.engine == "cri-dockerd" else "containerd.service"
    return _service(
        "kubelet",
        "Kubernetes node agent",
        [
            f"{binaries}/kubelet",
            f"--config={reads[0]}",
            f"--kubeconfig={reads[1]}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
        ],
        reads=(*reads, f"{PKI}/kubelet-server.crt"),
        unit=(f"Wants={engine}", f"After={engine} testbed-pod-network.service"),
        # Volumes mounted by pods reach other pods only through shared mounts, which systemd makes
        # at boot on a machine, but not in a container.
        service=(
            "Type=notify",
            *NOTICE_DEAD_PEERS,
            "ExecStartPre=/bin/mount --make-rshared /",
        ),
    )


def _cri_dockerd(pause_image: str) -> Unit:
    return _service(
        CRI_DOCKERD_UNIT.removesuffix(".service"),
        "the kubelet's way to Docker",
        [
            CRI_DOCKERD,
            f"--container-runtime-endpoint={CRI_SOCKETS['cri-dockerd']}",
            f"--pod-infra-container-image={pause_image}",
            "--network-plugin=cni",
            f"--cni-bin-dir={CNI_PLUGINS}",
            f"--cni-conf-dir={CNI_CONFIG}",
        ],
        reads=(CRI_DOCKERD,),
        unit=("Wants=docker.service", "After=docker.service testbed-pod-network.service"),
        service=("Type=notify",),
    )


def _kube_proxy(binaries: str) -> Unit:
    config = "/etc/kubernetes/kube-proxy.yaml"
    return _service(
        "kube-proxy",
        "Kubernetes service proxy",
        [f"{binaries}/kube-proxy", f"--config={config}"],
        reads=(config, "/etc/kubernetes/kube-proxy.conf"),
        unit=("After=testbed-pod-network.service",),
        service=("Type=simple", *NOTICE_DEAD_PEERS),
    )


def _flags(flags: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def first_units(node: Node, pause_image: str) -> tuple[Unit, ...]:
    """What must be up before images can be imported, or before anything else makes sense."""
    program = ("/usr/bin/containerd",) if node.engine == "containerd-2" else ()
    containerd = Unit("containerd.service", None, ("/etc/containerd/config.toml", *program))
    network = _oneshot("testbed-pod-network", "Pod network", NETWORK_SCRIPT)
    docker = (
        Unit("docker.service", None, ("/etc/docker/daemon.json",)),
        _cri_dockerd(pause_image),
    )
    return (
        network,
        containerd,
        *(docker if node.engine == "cri-dockerd" else ()),
        *([_etcd()] if node.control_plane else []),
    )


def units(layout: Layout, node: Node, binaries: str) -> tuple[Unit, ...]:
    """The components of Kubernetes that run on *node*."""
    control = (
        _api_server(layout, binaries),
        _controller_manager(layout, binaries),
        _scheduler(binaries),
    )
    return (
        *(control if node.control_plane else ()),
        _kubelet(node, binaries),
        _kube_proxy(binaries),
    )
